"""Where a run makes its calls: in Spark's workers or in the driver. Pure.

Knows which of the two is impossible, which one fits a run better, and why. ``check.py`` finds out what Spark has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from deltatap.config import Capture

Where = Literal["workers", "driver"]
_NO_NETWORK = "UDFs on serverless compute have no network access"


@dataclass(frozen=True, slots=True)
class Compute:
    """The compute that a driver has.

    Attributes:
        serverless: whether Spark is that of Databricks serverless compute.
        slots: how many tasks Spark can run at once.
        here: whether all of Spark's workers are on the driver's machine.
    """

    serverless: bool
    slots: int
    here: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a run should capture.

    Attributes:
        where: the value for ``capture.where``.
        why: the reason, as text.
        must: whether the other place could not open all streams, or would not work at all.
    """

    where: Where
    why: str
    must: bool = False


def impossible(capture: Capture, *, serverless: bool) -> str | None:
    """Why calls cannot be made in the place that ``capture.where`` names; None if they can."""
    if capture.where == "workers" and serverless:
        return f"capture.where: workers: {_NO_NETWORK}; use --set capture.where=driver, or a classic cluster"
    return None


def fit(capture: Capture, compute: Compute) -> Fit:
    """Where a run with these settings should capture."""
    processes = math.ceil(capture.concurrency / capture.streams_per_worker)
    streams = f"{capture.concurrency:,} streams"
    if compute.serverless:
        return Fit("driver", _NO_NETWORK, must=True)
    if processes > 1:
        needed = f"{streams} need {processes:,} processes (capture.streams_per_worker), and the driver is one process"
        return Fit("workers", needed, must=True)
    if not compute.here:
        return Fit("workers", "they are on other machines, where planning and landing do not delay the streams")
    if compute.slots == 1:
        return Fit("driver", "a UDF would take Spark's only task slot, and no capture could land until it ends")
    return Fit("driver", f"one process on this machine can hold all {streams}, and no UDF has to start")
