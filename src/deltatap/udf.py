"""The two pandas UDFs: the job's, which captures parts of a plan, and the public one, which captures a column.

Knows Spark's side of a UDF: types, batches, order. The body of each UDF is a plain function that needs no Spark:
:func:`capture_batches` here, and :func:`~deltatap.worker.attempt.capture_part`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping  # pandas_udf evaluates the hints
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deltatap.api.prompt import Json
from deltatap.delta import columns
from deltatap.errors import ConfigError
from deltatap.http.credentials import credential_of, read_secrets
from deltatap.http.faults import internal_error
from deltatap.http.route import route_of
from deltatap.model import INTERNAL_REQUEST, Capture, CaptureError, Job, Request
from deltatap.prices import load_prices
from deltatap.prompt_columns import COLUMNS, find
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.worker.attempt import CaptureTask, capture_part
from deltatap.worker.bootstrap import context_of, running_engine, streams_of
from deltatap.worker.counting import counted
from deltatap.worker.jobs import job_of
from deltatap.worker.rows import captures_batch

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql._typing import UserDefinedFunctionLike

    from deltatap.config import Settings
    from deltatap.http.credentials import Secrets
    from deltatap.model import Mode
    from deltatap.prices import Prices
    from deltatap.worker.engine import Engine

RECEIPT = "part INT, claim STRING, known BIGINT, requests BIGINT"


def part_udf(task: CaptureTask) -> UserDefinedFunctionLike:
    """The job's UDF: maps a part's number to a receipt, after the part's captures are in the journal."""
    from pyspark.sql.pandas.functions import pandas_udf  # noqa: PLC0415 - the core is imported without Spark

    @pandas_udf(RECEIPT)  # type: ignore[call-overload,untyped-decorator]
    def capture_parts(parts: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        retried = _retried()
        for series in parts:
            yield pd.DataFrame([asdict(capture_part(task, int(part), retried=retried)) for part in series])

    udf: UserDefinedFunctionLike = capture_parts.asNondeterministic()
    return udf


def _retried() -> bool:
    """Whether Spark has started this task before. Spark knows this without the state folder."""
    from pyspark import TaskContext  # noqa: PLC0415 - the core is imported without Spark

    context = TaskContext.get()
    return context is not None and context.attemptNumber() > 0


def capture_udf(config: Settings | Mapping[str, Any] | str | Path, *, max_requests: int) -> UserDefinedFunctionLike:
    """A pandas UDF that streams a completion for each row and returns a struct with the columns of ``captures``.

    The UDF takes one column: a prompt STRING, or a STRUCT with the columns of a prompts table. If a stream breaks, the
    row keeps the output that arrived. Times are as accurate as the job's. There is **no journal**: if Spark loses a
    task, its captures are paid for again, and captures of earlier runs are not reused. For more than a quick look, run
    the job.

    Three mistakes cost money:

    - Limiting rows *after* the UDF. ``df.withColumn("c", f("prompt")).show(3)`` made 25,000 calls in a measurement.
      Limit the rows before you apply the UDF.
    - Running more than one action on the result. Each action calls the API again. Write the result to Delta once, and
      read it from there.
    - Filtering, sorting or joining on the result before it is written.

    Args:
        config: settings, a path or a dict. The UDF uses ``endpoint``, ``request``, ``capture``, ``timeouts``,
            ``tokens`` and ``prices``.
        max_requests: the maximum number of rows that one task sends. Further rows fail without a call and cost
            nothing. Spark chooses the number of tasks, and each task holds up to ``capture.concurrency`` streams open.

    Raises:
        ConfigError: lists every problem, before any call.
        ValueError: if max_requests is below 1.
    """
    from pyspark.sql.pandas.functions import pandas_udf  # noqa: PLC0415 - the core is imported without Spark

    if max_requests < 1:
        raise ValueError(f"max_requests: expected at least 1, found {max_requests}")
    settings = load_settings(config)
    prices = load_prices(settings.prices, settings.endpoint.base_url)
    secrets = read_secrets(settings.endpoint)
    credential_of(settings.endpoint, secrets)
    route_of(settings.endpoint, secrets)
    if settings.capture.arrivals is not None:
        raise ConfigError(["capture.arrivals: the tasks of a UDF have no common schedule: run the job"])
    if len(settings.capture.modes) > 1:
        raise ConfigError(["capture.mode: a UDF returns one row for each prompt, and paired needs two: run the job"])

    @pandas_udf(columns.spark_schema(columns.CAPTURES))  # type: ignore[call-overload,untyped-decorator]
    def capture(prompts: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from capture_batches(
            prompts, settings, prices, max_requests=max_requests, partition=_partition(), secrets=secrets
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
    secrets: Secrets | None = None,
) -> Iterator[pd.DataFrame]:
    """Capture batches of prompts; yields one batch of captures per batch of prompts, in order.

    While the caller handles one batch, the next one streams.
    """
    settings = settings.of_run("")
    context = context_of(settings, prices, "", partition)
    endpoint, (mode,) = settings.endpoint, settings.capture.modes
    credential, route = credential_of(endpoint, secrets), route_of(endpoint, secrets)
    results = _Results()
    pending: deque[range] = deque()
    planned = 0

    def frame(engine: Engine) -> pd.DataFrame:
        captures = [results.take(row, engine) for row in pending.popleft()]
        rows = [counted(capture, context) for capture in captures]
        made: pd.DataFrame = captures_batch(rows, context).to_pandas(maps_as_pydicts="strict")
        return made

    # No limit on the look-ahead is needed, because at most two batches are unfinished.
    with running_engine(
        settings, credential, results.put, look_ahead=sys.maxsize, share=streams_of(settings), route=route
    ) as engine:
        for batch in prompts:
            start = planned
            for row in _rows(batch):
                job = _job(row, planned, settings, mode)
                planned += 1
                if planned <= max_requests:
                    engine.submit(job)
                else:
                    message = f"max_requests={max_requests} was reached"
                    results.put(Capture(job, CaptureError("cancelled", None, message)))
            pending.append(range(start, planned))
            if len(pending) > 1:
                yield frame(engine)
        while pending:
            yield frame(engine)


def _job(values: Mapping[str, Any], row: int, settings: Settings, mode: Mode) -> Job:
    """The job of a row of prompts; if its request cannot be built, only this row fails."""
    endpoint = settings.endpoint
    try:
        request = build_request(
            values,
            api=endpoint.api,
            model=endpoint.model,
            defaults=settings.request,
            keep=(),
            resume=settings.capture.resume,
        )
    except BaseException as error:  # noqa: BLE001 - raised again if it is not this row's trouble
        fault = internal_error(error, f"of row {row}", INTERNAL_REQUEST, "build the request")
        return Job(Request("", "", endpoint.model, None, None, None), None, mode, row, [], 0.0, fault=fault)
    return job_of(request, row, [], settings, mode)


class _Results:
    """Captures by row: the engine's thread puts them, Spark's thread takes them in order."""

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


def _rows(batch: pd.Series | pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows as :func:`build_request` takes them: missing values as None, arrays as lists."""
    if isinstance(batch, pd.Series):
        batch = batch.to_frame("prompt")
    for name in COLUMNS:
        find(name, list(batch.columns))  # raises if there are several
    names = [name.lower() if name.lower() in COLUMNS else name for name in batch.columns]
    for values in zip(*(batch[name] for name in batch.columns), strict=True):
        yield {name: _plain(value) for name, value in zip(names, values, strict=True)}


def _plain(value: object, *, nan_is_null: bool = True) -> Any:  # noqa: ANN401 - any value of a column
    """A value without the types of numpy and pandas, which have NaN for a null in a column or an array of numbers."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item, nan_is_null=False) for key, item in value.items()}
    if hasattr(value, "toJson"):  # a VARIANT
        return Json.of(value.toJson())
    if hasattr(value, "asDict"):  # a Row inside an array
        return _plain(value.asDict())
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    if isinstance(value, np.generic):
        value = value.item()
    is_nan = nan_is_null and isinstance(value, float) and math.isnan(value)
    missing = value is None or value is pd.NA or value is pd.NaT or is_nan
    return None if missing else value
