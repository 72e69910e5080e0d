"""Measures the cost of checking texts while they arrive: ``python -m bench.moderation [STREAMS [TURNS]]``.

A worker without moderation, one that calls ``/moderations`` and one that searches patterns take turns at the same load.
Prints, for each: answers per second, CPU per chunk, how late the event loop ran, and the errors of the latencies.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np

from bench.clients import MODERATION
from bench.processes import client
from bench.simulators import EVEN
from bench.truth import Measured, errors
from tests.simulation import start_simulator

_ROUNDS, _TURNS, _STREAMS, _DELAY_MS = 4, 3, 100, 200
_NAMES = ("worker", *MODERATION)


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    streams, turns = (*given, *(_STREAMS, _TURNS)[len(given) :])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _NAMES}
    with start_simulator(*EVEN, "--moderation-ms", str(_DELAY_MS)) as simulator:
        for turn in range(turns):
            for name in _NAMES if turn % 2 == 0 else reversed(_NAMES):
                made = client(name, simulator, streams, _ROUNDS * streams)
                calls = {call["key"]: call for call in simulator.calls()}
                measured = [Measured(*each) for each in made.pop("streams")]
                lags = [each.lag_ms for each in measured]
                made["answers_per_s"] = len(measured) / made["wall_s"]
                made["lag_p50"], made["lag_p99"] = map(float, np.quantile(lags, (0.5, 0.99)))
                made["checks"] = len(simulator.moderations())
                found[name].append(made | errors(measured, calls))
    for name, runs in found.items():
        middle = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        ratios = [run["answers_per_s"] / off["answers_per_s"] for run, off in zip(runs, found["worker"], strict=True)]
        print(f"{name}: {statistics.median(ratios):.1%} of the throughput without moderation; {middle}")


if __name__ == "__main__":
    main()
