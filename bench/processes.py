"""CPU time of a process and all below it, sampled while it runs: a span of it can be told apart from its start."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SAMPLE_S = 0.1


def spent(samples: Sequence[tuple[float, Mapping[str, float]]], start: float, end: float) -> dict[str, float]:
    """CPU seconds of each process within a span, interpolated between samples.

    A process had spent nothing when the sample before its first was taken; after its last it spends no more. From minus
    to plus infinity is all that was ever spent.
    """
    found = {}
    for name in dict.fromkeys(name for _, seconds in samples for name in seconds):
        known = [(at, seconds[name]) for at, seconds in samples if name in seconds]
        known[:0] = [(at, 0.0) for at, _ in samples if at < known[0][0]][-1:]
        moments, cpu_s = zip(*known, strict=True)
        at_start, at_end = np.interp((start, end), moments, cpu_s, left=0.0)
        found[name] = float(at_end - at_start)
    return found


class Watch:
    """Samples a process and all below it, while entered.

    Attributes:
        samples: the monotonic clock, and the CPU seconds of each process until then.
        descriptors: the most file descriptors that were open at once, by process.
    """

    def __init__(self, pid: int, name: Callable[[psutil.Process], str]) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self.descriptors: dict[str, int] = {}
        self._process, self._name = psutil.Process(pid), name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            with suppress(psutil.NoSuchProcess):
                self._sample()

    def _sample(self) -> None:
        cpu_s = {}
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                # Asked each time: what is a shell now may be a JVM in a moment.
                name = f"{self._name(process)} {process.pid}"
                times = process.cpu_times()
                cpu_s[name] = times.user + times.system
                self.descriptors[name] = max(process.num_fds(), self.descriptors.get(name, 0))
        self.samples.append((time.monotonic(), cpu_s))
