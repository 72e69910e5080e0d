"""Compares captures in Spark's workers and in the driver: time to the first request, total time, and loop lag.

``python -m bench.where [REQUESTS] [STREAMS] [TURNS]`` starts a simulator, and a new process with a new Spark session
for each run. It prints the medians, and the ratios of the driver to the workers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.job import job
from bench.simulators import plain
from deltatap.spark.session import local_session

if TYPE_CHECKING:
    from tests.simulation import Simulation

_WHERE = ("workers", "driver")
_DEFAULTS = (200, 64, 3)
_JOB = "--job"


def measured(where: str, simulator: Simulation, streams: int, requests: int) -> dict[str, float]:
    """One run, in a separate process."""
    simulator.reset()
    command = [sys.executable, "-m", "bench.where", _JOB, simulator.base_url, str(streams), str(requests), where]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    starts = [call["started"] for call in simulator.calls()]
    lags = np.array([lag for _, _, lag, *_ in found["streams"]])
    return {
        "to the first request, s": min(starts) - found["ready"],
        "run, s": found["closed"] - found["ready"],
        "loop lag p50, ms": float(np.percentile(lags, 50)),
        "loop lag p99, ms": float(np.percentile(lags, 99)),
    }


def one_job(base_url: str, streams: str, requests: str, where: str) -> None:
    """The run of :func:`measured`; prints its record."""
    spark = local_session("local[2]", app_name="bench")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        print(json.dumps(job(spark, Path(name), base_url, int(streams), int(requests), where=where)))
    spark.stop()


def main() -> None:
    if sys.argv[1:2] == [_JOB]:
        one_job(*sys.argv[2:])
        return
    requests, streams, turns = (*map(int, sys.argv[1:]), *_DEFAULTS[len(sys.argv) - 1 :])
    found: dict[str, list[dict[str, float]]] = {where: [] for where in _WHERE}
    with plain() as simulator:
        for _ in range(turns):
            for where in _WHERE:
                found[where].append(measured(where, simulator, streams, requests))
                print(where, json.dumps(found[where][-1]), flush=True)
    for name in found["workers"][0]:
        workers, driver = (statistics.median(each[name] for each in found[where]) for where in _WHERE)
        ratios = [ours[name] / theirs[name] for theirs, ours in zip(*(found[where] for where in _WHERE), strict=True)]
        print(f"{name}: workers {workers:.2f}, driver {driver:.2f}, ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
