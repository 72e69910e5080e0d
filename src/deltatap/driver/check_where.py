"""The findings of ``deltatap check`` on where a run captures: whether it can capture there, and which place fits.

Finds out which compute Spark has. Leaves the decision to ``where.py``, and the needs of Spark's workers to
``check.py``.
"""

from __future__ import annotations

import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from deltatap.driver.where import Compute, fit, impossible
from deltatap.errors import one_line
from deltatap.spark.serverless import is_serverless
from deltatap.spark.slots import slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyspark.sql import SparkSession

    from deltatap.config import Capture, Settings

Level = Literal["ok", "warning", "problem"]


def compute_of(spark: SparkSession) -> Compute:
    """The compute that Spark has. Fails if Python workers cannot start, or if they cannot import deltatap."""
    count = slots(spark)
    rows = spark.range(0, count, 1, count).mapInArrow(host_names, "host STRING").collect()
    return Compute(is_serverless(), count, here={row["host"] for row in rows} <= {socket.gethostname()})


def host_names(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The name of the machine, once for each batch."""
    for _ in batches:
        yield pa.RecordBatch.from_pydict({"host": [socket.gethostname()]})


def verdict(capture: Capture, compute: Compute) -> tuple[Level, str]:
    """The level of the finding and its text."""
    if (problem := impossible(capture, serverless=compute.serverless)) is not None:
        return "problem", problem
    found = fit(capture, compute)
    if found.where == capture.where:
        return "ok", f"{capture.where}: {found.why}"
    if found.must:
        return "warning", f"{capture.where}; use {found.where}: {found.why}"
    return "ok", f"{capture.where}; {found.where} may fit better: {found.why}"


def shared_folder_problem(spark: SparkSession, settings: Settings) -> str | None:
    """Why the driver would not find the plan that Spark writes to the state folder; None if it would find the plan."""
    folder = Path(settings.state.dir) / f".check-{uuid.uuid4().hex}"
    try:
        spark.range(0, 1, 1, 1).write.parquet(str(folder))
        found = any(folder.glob("part-*.parquet"))
    except Exception as error:  # noqa: BLE001 - a file system raises many kinds of errors
        return f"state.dir: {settings.state.dir}: Spark cannot write to it: {one_line(error)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None if found else f"state.dir: {settings.state.dir}: is not the folder that Spark writes to"
