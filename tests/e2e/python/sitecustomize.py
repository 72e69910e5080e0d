"""Injects the fault that FAULT names into every Python process of a job that has this folder on PYTHONPATH."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_EVERY_S, STEPS_S = 2.0, (0.0, 3600.0, -7200.0)


def slow_fsync(seconds: float) -> None:
    """Syncing a journal file takes this long."""
    fsync = os.fsync

    def slowly(file: int) -> None:
        if "/journal/" in str(Path(f"/proc/self/fd/{file}").readlink()):
            time.sleep(seconds)
        fsync(file)

    os.fsync = slowly  # type: ignore[assignment]


def clock_steps() -> None:
    """The wall clock jumps forward and back."""
    now = time.time
    time.time = lambda: now() + STEPS_S[int(time.monotonic() / STEP_EVERY_S) % len(STEPS_S)]


def no_persist() -> None:
    """Spark keeps no DataFrames, as on serverless compute."""
    from pyspark.errors import AnalysisException  # noqa: PLC0415 - only the process of this job imports it
    from pyspark.sql.connect.dataframe import DataFrame  # noqa: PLC0415 - the same

    def refuse(*_: object) -> None:
        raise AnalysisException("[NOT_SUPPORTED_WITH_SERVERLESS] PERSIST TABLE is not supported on serverless compute")

    for name in ("persist", "cache", "unpersist", "checkpoint"):
        setattr(DataFrame, name, refuse)


FAULTS: dict[str, Callable[[], None]] = {
    "slow-fsync": partial(slow_fsync, 10.0),
    "visible-flush": partial(slow_fsync, 0.25),  # a test sees each flush while it lasts
    "clock-steps": clock_steps,
    "no-persist": no_persist,
}
if fault := os.environ.get("FAULT"):
    FAULTS[fault]()
