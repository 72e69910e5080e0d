"""What ``deltatap check`` proves: all that a run needs, on the driver and in the workers, short of a paid call.

Knows what is needed where, and asks the same of the driver and of Spark's workers. Leaves what is printed to the
command line.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deltatap.delta import tables
from deltatap.delta.prepare import check_tables
from deltatap.driver import source
from deltatap.driver.preflight import examine, prices_of
from deltatap.errors import ConfigError, CredentialError, one_line
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import handed_over
from deltatap.model import CaptureError
from deltatap.spark.slots import slots as count_slots
from deltatap.state import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa
    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.http.credentials import Token

Level = Literal["ok", "warning", "problem"]
SPARK = ((4, 0), (4, 1), (4, 2))
_TOLD = "host string, what string, problem string"
_SERVERLESS = (
    "serverless compute: its UDFs reach no network, so nothing can be captured; "
    "use a classic cluster with dedicated access"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a run needs: whether it is there, or what is wrong, or what to know about it."""

    what: str
    level: Level
    said: str


def check(settings: Settings, session: Callable[[], SparkSession]) -> Iterator[Finding]:
    """Prove what a run needs, a finding at a time. Creates the tables, as a run would; calls nothing that is paid for.

    Args:
        settings: of the run.
        session: gives the session; asked for when what needs no Spark is done.
    """
    for what, problems in examine(settings):
        yield from _found(f"{what}, driver", problems)
    yield _price(settings)
    spark = session()
    yield _runtime(spark)
    yield from _tables(spark, settings)
    yield from _workers(spark, settings)
    yield _models(settings)


def _found(what: str, problems: Iterable[str], well: str = "") -> Iterator[Finding]:
    problems = list(problems)
    if problems:
        yield from (Finding(what, "problem", problem) for problem in problems)
    else:
        yield Finding(what, "ok", well)


def _price(settings: Settings) -> Finding:
    try:
        prices = prices_of(settings)
    except ConfigError as error:
        return Finding("price", "problem", "; ".join(error.problems))
    model = settings.endpoint.model
    if model is not None and prices.find(model) is None:
        return Finding("price", "warning", f"model {model} has none in prices: cost_usd will be null")
    return Finding("price", "ok", "prompts name their models" if model is None else f"of {model}")


def _runtime(spark: SparkSession) -> Finding:
    runtime = os.environ.get("DATABRICKS_RUNTIME_VERSION", "")
    version = f"Spark {spark.version}" + (f", Databricks {runtime}" if runtime else "")
    if os.environ.get("IS_SERVERLESS", "").upper() == "TRUE" or runtime.startswith("client."):
        return Finding("runtime", "problem", _SERVERLESS)
    if tuple(int(part) for part in spark.version.split(".")[:2]) not in SPARK:
        return Finding("runtime", "problem", f"{version}: expected Spark 4.0, 4.1 or 4.2")
    return Finding("runtime", "ok", version)


def _tables(spark: SparkSession, settings: Settings) -> Iterator[Finding]:
    try:
        columns = source.source(spark, settings).columns
    except ConfigError as error:
        yield from _found("prompts", error.problems)
    else:
        yield Finding("prompts", "ok", f"{settings.prompts.source}: {', '.join(columns)}")
    try:
        check_tables(spark, settings)
    except ConfigError as error:
        yield from _found("tables", error.problems)
        return
    for name, table in (("captures", settings.captures.table), ("runs", settings.runs.table)):
        try:
            # Needs the right to change it, and changes nothing.
            spark.sql(f"DELETE FROM {tables.quoted(table)} WHERE run_id IS NULL AND run_id IS NOT NULL")
        except Exception as error:  # noqa: BLE001 - whatever the catalog says
            yield Finding(name, "problem", f"{name}.table: {table}: cannot be written: {one_line(error)}")
        else:
            yield Finding(name, "ok", f"{table}: can be written")


def _workers(spark: SparkSession, settings: Settings) -> Iterator[Finding]:
    """The same needs in Spark's workers, and whether their state folder is the driver's."""
    mark = Path(settings.state.dir) / f".check-{uuid.uuid4().hex}"
    try:
        write_whole(mark, b"")
    except OSError as error:
        yield Finding("state folder, workers", "problem", f"state.dir: {mark.parent}: {error.strerror}")
        return
    slots = count_slots(spark)
    try:
        key = handed_over(settings.endpoint)
    except ConfigError:  # told of the driver, and none is needed for the rest
        key, settings = (
            None,
            settings.model_copy(update={"endpoint": settings.endpoint.model_copy(update={"api_key": None})}),
        )
    try:
        rows = spark.range(0, slots, 1, slots).mapInArrow(worker_examines(settings, str(mark), key), _TOLD).collect()
    except Exception as error:  # noqa: BLE001 - what a worker cannot even start with
        yield Finding("workers", "problem", one_line(error))
        return
    finally:
        mark.unlink(missing_ok=True)
    hosts = sorted({row["host"] for row in rows})
    for what in dict.fromkeys(row["what"] for row in rows):
        wrong = sorted(
            {f"{row['problem']} (on {row['host']})" for row in rows if row["what"] == what and row["problem"]}
        )
        yield from _found(f"{what}, workers", wrong, f"{slots} slots on {', '.join(hosts)}")


def worker_examines(
    settings: Settings, mark: str, key: Token | None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a worker examines: rows of host, what, and the problem, null where there is none."""

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa  # noqa: PLC0415 - in the worker

        for batch in batches:
            if batch.num_rows:
                found: list[tuple[str, str | None]] = []
                for what, problems in examine(settings, key):
                    found += [(what, problem) for problem in problems] or [(what, None)]
                seen = None if Path(mark).exists() else f"state.dir: {settings.state.dir}: is not the driver's folder"
                found.append(("one state folder", seen))
                rows = [{"host": socket.gethostname(), "what": what, "problem": problem} for what, problem in found]
                schema = pa.schema([(name, pa.string()) for name in ("host", "what", "problem")])
                yield pa.RecordBatch.from_pylist(rows, schema)

    return work


def _models(settings: Settings) -> Finding:
    """Whether the endpoint takes our key and knows the model; listing models costs nothing."""

    async def listed() -> list[str] | CaptureError:
        client = EndpointClient(settings.endpoint, settings.timeouts)
        try:
            return await client.models()
        finally:
            await client.close()

    model = settings.endpoint.model
    try:
        found = asyncio.run(listed())
    except (ConfigError, CredentialError) as error:
        return Finding("models", "problem", str(error))
    if isinstance(found, CaptureError):
        level: Level = "problem" if found.type in ("authentication", "permission") else "warning"
        return Finding("models", level, f"/models: {found.type}: {found.message}")
    lists = f"the endpoint lists {len(found):,} models"
    if model is None:
        return Finding("models", "ok", lists)
    if model in found:
        return Finding("models", "ok", f"{lists}, {model} among them")
    return Finding("models", "warning", f"{lists}, and {model} is not among them")
