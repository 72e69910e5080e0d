"""Runs the measured processes, and samples their CPU time and memory, so that a span can exclude the start."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.simulation import Simulation

# Sampling all processes takes some ms of CPU time away from the measured processes.
_SAMPLE_S = 0.5


def spent(samples: Sequence[tuple[float, Mapping[str, float]]], start: float, end: float) -> dict[str, float]:
    """CPU seconds of each process within a span, interpolated between samples.

    CPU time is zero at the sample before a process's first sample, and constant after its last one. The span from minus
    to plus infinity gives the total.
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
    """Samples a process and its descendants while the context is entered.

    Attributes:
        samples: the monotonic time, and the CPU seconds of each process up to then.
        descriptors: the maximum number of open file descriptors, by process.
        mb: resident memory in MB at each sample, by process.
    """

    def __init__(self, pid: int, name: Callable[[psutil.Process], str]) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self.descriptors: dict[str, int] = {}
        self.mb: dict[str, list[float]] = {}
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
                # The name is looked up at each sample, because a shell can become a JVM.
                name = f"{self._name(process)} {process.pid}"
                times = process.cpu_times()
                cpu_s[name] = times.user + times.system
                self.mb.setdefault(name, []).append(process.memory_info().rss / 2**20)
                self.descriptors[name] = max(process.num_fds(), self.descriptors.get(name, 0))
        self.samples.append((time.monotonic(), cpu_s))

    def spent(self, kind: str, start: float = -math.inf, end: float = math.inf) -> float:
        """CPU seconds of all processes of one kind within a span."""
        return sum(cpu_s for name, cpu_s in spent(self.samples, start, end).items() if name.startswith(kind))

    def busiest(self, kind: str) -> str:
        """The process of one kind with the most CPU time."""
        found = spent(self.samples, -math.inf, math.inf)
        return max((name for name in found if name.startswith(kind)), key=lambda name: found[name])


def client(name: str, simulator: Simulation, streams: int, requests: int, within_s: float = 900) -> dict[str, Any]:
    """Run a client of bench/clients.py as a process. Returns what it measured."""
    simulator.reset()
    command = [sys.executable, "-m", "bench.clients", name, simulator.base_url, str(streams), str(requests)]
    command += [] if simulator.ca_file is None else [simulator.ca_file]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within_s)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def watched(*command: object, within_s: float = 900) -> tuple[dict[str, Any], Watch]:
    """Run a Python module that starts Spark, and watch its processes.

    The kinds of processes are `driver`, its `jvm`, each `executor` and each Python `worker`. Other processes that this
    process has started are `simulator`.

    Returns:
        The last line that the module prints, parsed as JSON, and the samples.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):

        def name(each: psutil.Process) -> str:
            if each.pid in (os.getpid(), process.pid):
                return "driver" if each.pid == process.pid else "bench"
            if each.name() == "java":
                return "jvm" if each.ppid() == process.pid else "executor"
            return "simulator" if each.ppid() == os.getpid() else "worker"

        with Watch(os.getpid(), name) as watch:
            try:
                out, _ = process.communicate(timeout=within_s)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{errors.read()}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found, watch
