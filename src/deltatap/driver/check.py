"""``deltatap check``: checks everything that a run needs, on the driver and in Spark's workers, without a paid call.

``needs.py`` defines the needs, ``visibility.py`` measures the delays of the state folder, and the command line prints
the findings.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from deltatap.delta import columns, tables
from deltatap.driver.check_where import Level, compute_of, shared_folder_problem, verdict
from deltatap.driver.needs import NETWORK, PRIVACY, Checked, checked, price_need, prices_of, process_needs, table_needs
from deltatap.driver.visibility import Marks, measure
from deltatap.errors import ConfigError, CredentialError, one_line
from deltatap.files import Files
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import read_secrets
from deltatap.model import CaptureError
from deltatap.spark.slots import slots as count_slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from pyspark.sql import SparkSession

    from deltatap.config import Moderation, Settings
    from deltatap.http.credentials import Secrets

_T = TypeVar("_T")
SPARK = ((4, 0), (4, 1), (4, 2))
_FOUND = tuple(columns.Column(name, columns.STRING, "") for name in ("host", "need", "problem"))
_SHARED = "shared state folder"
# Maximum number of models of the prompts to check.
_MODELS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one need.

    Attributes:
        what: the need, and where it was checked.
        level: ``ok``, ``warning`` or ``problem``.
        detail: the problem, the warning, or more about what was found; may be empty.
    """

    what: str
    level: Level
    detail: str


def check(settings: Settings, session: Callable[[], SparkSession]) -> Iterator[Finding]:
    """Check what a run needs, one finding at a time. Creates the tables, as a run does; makes no paid call.

    Args:
        settings: of the run.
        session: returns the session; called after the checks that need no Spark.
    """
    reachable = True
    for need in process_needs(settings):
        result = checked(need)
        reachable = reachable and not (need.name == NETWORK and result.problems)
        yield from _findings(f"{need.name}, driver", result)
    yield from _price(settings)
    if (schedule := settings.capture.arrivals) is not None:
        yield Finding("arrivals", "ok", str(schedule))
    if settings.capture.resume:
        yield Finding("capture.resume", "ok", PRIVACY)
    spark = session()
    yield _runtime(spark)
    yield from _tables(spark, settings)
    named = _named_models(spark, settings)
    if named:
        yield _price_of(settings, named)
    yield from _where(spark, settings)
    if reachable:
        yield _models(settings, named)
    else:
        yield Finding("models", "warning", "not checked: the endpoint cannot be reached")
    if settings.moderation is not None:
        yield _moderation(settings, settings.moderation, reachable=reachable)


def _findings(what: str, result: Checked) -> Iterator[Finding]:
    if result.problems:
        # A problem may begin with the name of the need, which is printed before the problem anyway.
        yield from (Finding(what, "problem", problem.removeprefix(f"{what}: ")) for problem in result.problems)
    else:
        yield Finding(what, "ok", result.detail)


def _price(settings: Settings) -> Iterator[Finding]:
    result, model = checked(price_need(settings)), settings.endpoint.model
    if result.problems:
        yield from _findings("price", result)
    elif model is None:
        yield Finding("price", "ok", "the prompts name their models")
    elif prices_of(settings).find(model) is None:
        yield Finding("price", "warning", f"model {model} has no price: cost_usd will be null")
    else:
        yield Finding("price", "ok", f"for {model}")


def _runtime(spark: SparkSession) -> Finding:
    runtime = os.environ.get("DATABRICKS_RUNTIME_VERSION", "")
    version = f"Spark {spark.version}" + (f", Databricks {runtime}" if runtime else "")
    if tuple(int(part) for part in spark.version.split(".")[:2]) not in SPARK:
        return Finding("runtime", "problem", f"{version}: expected Spark 4.0, 4.1 or 4.2")
    return Finding("runtime", "ok", version)


def _tables(spark: SparkSession, settings: Settings) -> Iterator[Finding]:
    prompts, ours = table_needs(spark, settings)
    yield from _findings(prompts.name, checked(prompts))
    if (result := checked(ours)).problems:
        yield from _findings(ours.name, result)
        return
    for name, table in (("captures", settings.captures.table), ("runs", settings.runs.table)):
        try:
            # This statement needs the right to modify the table, and changes nothing.
            spark.sql(f"DELETE FROM {tables.quoted(table)} WHERE run_id IS NULL AND run_id IS NOT NULL")
        except Exception as error:  # noqa: BLE001 - a catalog raises many kinds of errors
            yield Finding(name, "problem", f"{name}.table: {table}: cannot be written: {one_line(error)}")
        else:
            yield Finding(name, "ok", f"{table}: can be written")


def _named_models(spark: SparkSession, settings: Settings) -> list[str]:
    """The first models that the prompts' column ``model`` names."""
    from deltatap.driver.source import source  # noqa: PLC0415 - the first checks need no Spark

    try:
        prompts = source(spark, settings)
        if "model" not in prompts.columns:
            return []
        rows = prompts.select("model").where("trim(model) != ''").distinct().limit(_MODELS).collect()
    except Exception:  # noqa: BLE001 - the check of the prompts reports it
        return []
    return sorted(row["model"] for row in rows)


def _price_of(settings: Settings, named: Sequence[str]) -> Finding:
    """Whether the models that the prompts name have prices."""
    try:
        prices = prices_of(settings)
    except ConfigError:
        return Finding("price, prompts", "warning", "not checked: see price")
    if without := [model for model in named if prices.find(model) is None]:
        return Finding("price, prompts", "warning", f"no price for {', '.join(without)}: cost_usd will be null")
    return Finding("price, prompts", "ok", f"for {', '.join(named)}")


def _where(spark: SparkSession, settings: Settings) -> Iterator[Finding]:
    """Check where the run captures, and whether Spark has everything that this place needs."""
    try:
        level, detail = verdict(settings.capture, compute_of(spark))
    except Exception as error:  # noqa: BLE001 - anything can keep a worker from starting
        yield Finding("workers", "problem", one_line(error))
        return
    yield Finding("where", level, detail)
    if settings.capture.where == "driver":
        problem = shared_folder_problem(spark, settings)
        yield from _findings("shared state folder, Spark", Checked((problem,) if problem else ()))
    else:
        yield from _workers(spark, settings)


def _workers(spark: SparkSession, settings: Settings) -> Iterator[Finding]:
    """Check the same needs in Spark's workers, and whether they share the driver's state folder."""
    mark, files = Path(settings.state.dir) / f".check-{uuid.uuid4().hex}", Files(settings.state.files_per_s)
    marks = Marks.of(mark)
    try:
        files.write(mark, b"old")
    except OSError as error:
        yield Finding("state folder, workers", "problem", f"state.dir: {mark.parent}: {error.strerror}")
        return
    slots = count_slots(spark)
    try:
        secrets = read_secrets(settings.endpoint)
    except ConfigError:  # already reported for the driver; the other needs are checked without secrets
        secrets = None
        without = settings.endpoint.model_copy(update={"api_key": None, "headers": {}, "proxy": None})
        settings = settings.model_copy(update={"endpoint": without})
    try:
        rows = (
            spark.range(0, slots, 1, slots)
            .mapInArrow(worker_checks(settings, str(mark), secrets), columns.spark_schema(_FOUND))
            .collect()
        )
        shared = not any(row["need"] == _SHARED and row["problem"] for row in rows)
        delays = measure(spark, marks, slots, files) if shared else None
    except Exception as error:  # noqa: BLE001 - anything can keep a worker from starting
        yield Finding("workers", "problem", one_line(error))
        return
    finally:
        for path in (marks.replaced, marks.created):
            with suppress(OSError):
                files.delete(path)
    hosts = sorted({row["host"] for row in rows})
    where = f"{slots} slots on {', '.join(hosts)}"
    for need in dict.fromkeys(row["need"] for row in rows):
        problems = {f"{row['problem']} (on {row['host']})" for row in rows if row["need"] == need and row["problem"]}
        if need == _SHARED and delays is not None:
            level, detail = delays
            yield Finding(f"{need}, workers", level, f"{where}: {detail}")
        else:
            yield from _findings(f"{need}, workers", Checked(tuple(sorted(problems)), where))


def worker_checks(
    settings: Settings, mark: str, secrets: Secrets | None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function that checks a worker. It returns rows of host, need, and the problem or null.

    Args:
        settings: of the run.
        mark: the path of a file that the driver has written into the state folder.
        secrets: what the driver has read from secret scopes for the workers.
    """

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                found: list[tuple[str, str | None]] = []
                for need in process_needs(settings, secrets):
                    found += [(need.name, problem) for problem in checked(need).problems or (None,)]
                # The first look at both files. After it, this node's cache of them is old.
                Marks.of(Path(mark)).look()
                shared = Files().exists(Path(mark))
                problem = (
                    None if shared else f"state.dir: {settings.state.dir}: is not the folder that the driver writes to"
                )
                found.append((_SHARED, problem))
                rows = [{"host": socket.gethostname(), "need": need, "problem": problem} for need, problem in found]
                yield pa.RecordBatch.from_pylist(rows, columns.arrow_schema(_FOUND))

    return work


def _asked(settings: Settings, ask: Callable[[EndpointClient], Awaitable[_T]]) -> _T:
    """Send the endpoint a request that costs nothing."""

    async def asked() -> _T:
        client = EndpointClient(settings.endpoint, settings.timeouts)
        try:
            return await ask(client)
        finally:
            await client.close()

    return asyncio.run(asked())


def _moderation(settings: Settings, moderation: Moderation, *, reachable: bool) -> Finding:
    """Check that the endpoint moderates a text."""
    model, count = moderation.asks, len(moderation.patterns)
    patterns = f"{count} pattern{'s' * (count != 1)}"
    if model is None:
        return Finding("moderation", "ok", patterns)
    if not reachable:
        return Finding("moderation", "warning", "not checked: the endpoint cannot be reached")
    try:
        found = _asked(settings, lambda client: client.moderate(model, "deltatap check"))
    except (ConfigError, CredentialError) as error:
        return Finding("moderation", "problem", str(error))
    if isinstance(found, CaptureError):
        why = f"the endpoint does not moderate texts with {model} ({found.type}): {found.message}"
        return Finding("moderation", "problem", why)
    return Finding(
        "moderation", "ok", f"the endpoint moderates texts with {model}" + (f"; {patterns}" if count else "")
    )


def _models(settings: Settings, named: Sequence[str] = ()) -> Finding:
    """Check that the endpoint accepts the key and knows the models. Listing models costs nothing.

    Args:
        settings: of the run.
        named: the models that the prompts name.
    """
    try:
        found = _asked(settings, EndpointClient.models)
    except (ConfigError, CredentialError) as error:
        return Finding("models", "problem", str(error))
    if isinstance(found, CaptureError):
        level: Level = "problem" if found.type in ("authentication", "permission") else "warning"
        return Finding("models", level, f"the endpoint does not list its models ({found.type}): {found.message}")
    used = dict.fromkeys([*([settings.endpoint.model] if settings.endpoint.model else []), *named])
    listed, unlisted = ([model for model in used if (model in found) is known] for known in (True, False))
    detail = f"the endpoint lists {len(found):,} models"
    detail += f", including {', '.join(listed)}" if listed else ""
    detail += f", but not {', '.join(unlisted)}" if unlisted else ""
    return Finding("models", "warning" if unlisted else "ok", detail)
