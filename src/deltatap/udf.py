"""The pandas UDFs: the job's, which captures parts of a plan, and the public one, which captures a column.

Knows Spark's side of a UDF: types, batches, order. What happens between rows in and rows out are plain functions from
iterator to iterator, here and in ``worker.py``, which need no Spark.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping  # pandas_udf evaluates the hints
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deltatap.config import Settings, load_settings
from deltatap.delta import columns
from deltatap.errors import ConfigError
from deltatap.http.credentials import credential_of, handed_over
from deltatap.model import Capture, CaptureError
from deltatap.prices import load_prices
from deltatap.prompts import build_request
from deltatap.worker.attempt import CaptureTask, capture_part, client_of, context_of, job_of, retry_policy, settle
from deltatap.worker.engine import Engine
from deltatap.worker.rows import captures_batch, counted

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql._typing import UserDefinedFunctionLike

    from deltatap.http.credentials import Token
    from deltatap.prices import Prices

RECEIPT = "part INT, claim STRING, known BIGINT, requests BIGINT"


def part_udf(task: CaptureTask) -> UserDefinedFunctionLike:
    """The job's UDF: from a part's number to a receipt. What it captured is in the journal by then."""
    from pyspark.sql.pandas.functions import pandas_udf  # noqa: PLC0415 - the core is imported without Spark

    @pandas_udf(RECEIPT)  # type: ignore[call-overload,untyped-decorator]
    def capture_parts(parts: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for series in parts:
            yield pd.DataFrame([asdict(capture_part(task, int(part))) for part in series])

    udf: UserDefinedFunctionLike = capture_parts.asNondeterministic()
    return udf


def capture_udf(config: Settings | Mapping[str, Any] | str | Path, *, max_requests: int) -> UserDefinedFunctionLike:
    """A pandas UDF that streams a completion for each row and returns the struct of ``captures``.

    It takes one column: a prompt STRING, or a STRUCT with the columns of a prompts table. It keeps what arrived when a
    stream breaks, and its times are as true as the job's. It has **no journal**: what a lost task had captured is paid
    for again, and nothing is known of earlier runs. For more than a look, run the job.

    Traps, each of which costs money:

    - Limit the rows *before* the UDF. ``df.withColumn("c", f("prompt")).show(3)`` was measured to call 25,000 times.
    - Run one action on the result: write it once to Delta, and read it from there. Each action calls again.
    - Do not filter, sort or join on the result before it is written.

    Args:
        config: settings, a path or a dict; of it endpoint, request, capture, timeouts, tokens and prices count.
        max_requests: how many rows one task may send; those after it become failed rows, which cost nothing. Spark
            decides how many tasks there are, and each task holds up to ``capture.concurrency`` streams open.

    Raises:
        ConfigError: with all that is wrong, before any call.
        ValueError: when max_requests is below 1.
    """
    from pyspark.sql.pandas.functions import pandas_udf  # noqa: PLC0415 - the core is imported without Spark

    if max_requests < 1:
        raise ValueError(f"max_requests: expected at least 1, found {max_requests}")
    settings = load_settings(config)
    prices = load_prices(settings.prices)
    key = handed_over(settings.endpoint)
    credential_of(settings.endpoint, key)
    if len(settings.capture.modes) > 1:
        raise ConfigError(["capture.mode: paired gives two rows for a prompt, which a UDF cannot: use the job"])

    @pandas_udf(columns.spark_schema(columns.CAPTURES))  # type: ignore[call-overload,untyped-decorator]
    def capture(prompts: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from capture_batches(
            prompts, settings, prices, max_requests=max_requests, partition=_partition(), key=key
        )

    udf: UserDefinedFunctionLike = capture.asNondeterministic()
    return udf


def _partition() -> int:
    from pyspark import TaskContext  # noqa: PLC0415 - as above

    context = TaskContext.get()
    return 0 if context is None else context.partitionId()


def capture_batches(
    prompts: Iterator[pd.Series | pd.DataFrame],
    settings: Settings,
    prices: Prices,
    *,
    max_requests: int,
    partition: int = 0,
    key: Token | None = None,
) -> Iterator[pd.DataFrame]:
    """Captures for batches of prompts, in order, a batch out for each batch in; the next batch streams meanwhile."""
    context = context_of(settings, prices, "", partition)
    endpoint, (mode,) = settings.endpoint, settings.capture.modes
    streams = min(settings.capture.streams_per_worker, settings.capture.concurrency)
    results = _Results()
    engine = Engine(
        lambda: client_of(settings, credential_of(settings.endpoint, key)),
        policy=retry_policy(settings),
        look_ahead=1 << 20,  # the batches bound it: two are in hand
        deliver=results.put,
        share=streams,
    )
    pending: deque[tuple[int, int]] = deque()
    planned = 0

    def frame() -> pd.DataFrame:
        captures = [results.take(row, engine) for row in range(*pending.popleft())]
        rows = [counted(_explained(c, engine.fatal), context) for c in captures]
        made: pd.DataFrame = captures_batch(rows, context).to_pandas()
        return made

    with engine:
        settle()
        for batch in prompts:
            start = planned
            for columns in _columns(batch):
                request = build_request(
                    columns, api=endpoint.api, model=endpoint.model, defaults=settings.request, keep=()
                )
                job = job_of(request, planned, [], endpoint, mode)
                planned += 1
                if planned > max_requests:
                    results.put(
                        Capture(job, CaptureError("cancelled", None, f"max_requests={max_requests} was reached"))
                    )
                else:
                    engine.submit(job)
            pending.append((start, planned))
            if len(pending) > 1:
                yield frame()
        while pending:
            yield frame()


def _explained(capture: Capture, fatal: CaptureError | None) -> Capture:
    """A row that was not sent because no request can succeed says why."""
    if capture.job.calls or fatal is None or capture.error is None or capture.error.type != "cancelled":
        return capture
    return Capture(capture.job, CaptureError("cancelled", fatal.code, f"not sent, since {fatal.type}: {fatal.message}"))


class _Results:
    """Captures by row, put by the engine's thread, taken in order by Spark's."""

    def __init__(self) -> None:
        self._captures: dict[int, Capture] = {}
        self._changed = threading.Condition()

    def put(self, capture: Capture) -> None:
        with self._changed:
            self._captures[capture.job.row] = capture
            self._changed.notify()

    def take(self, row: int, engine: Engine) -> Capture:
        with self._changed:
            while not self._changed.wait_for(lambda: row in self._captures, timeout=1):
                engine.check()
            return self._captures.pop(row)


def _columns(batch: pd.Series | pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The batch's rows as :func:`build_request` takes them: pandas' missing values as None, arrays as lists."""
    if isinstance(batch, pd.Series):
        batch = batch.to_frame("prompt")
    names = list(batch.columns)
    for values in zip(*(batch[name] for name in names), strict=True):
        yield {name: _plain(value) for name, value in zip(names, values, strict=True)}


def _plain(value: object) -> Any:  # noqa: ANN401 - whatever a column holds
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "asDict"):  # a Row inside an array
        return _plain(value.asDict())
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or (isinstance(value, float) and value != value) or value is pd.NA else value  # noqa: PLR0124
