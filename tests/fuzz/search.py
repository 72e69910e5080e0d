"""Searches for an answer that fails, makes it smaller, and writes it to a file."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.fuzz.mutations import mutated, seeds
from tests.fuzz.running import SLOW_S, STUCK_S, Input, run

if TYPE_CHECKING:
    from pathlib import Path


def smaller(given: Input) -> Input:
    """A smaller answer that fails, too: without cuts, and without every piece that does not matter."""
    for simpler in (replace(given, cuts=()), replace(given, reset=False)):
        if run([simpler], beside=1)[0]:
            given = simpler
    size = len(given.data) // 2
    give_up = time.monotonic() + STUCK_S
    while size and time.monotonic() < give_up:
        at = 0
        while at < len(given.data) and time.monotonic() < give_up:
            shorter = replace(given, data=given.data[:at] + given.data[at + size :])
            if run([shorter], beside=1)[0]:
                given = shorter
            else:
                at += size
        size //= 2
    return given


def write(given: Input, folder: Path) -> Path:
    """Write an answer to a file: a line that describes the call, then the bytes."""
    described = {"api": given.api, "mode": given.mode, "cuts": given.cuts, "reset": given.reset}
    path = folder / f"failing-{abs(hash(given.data)) % 10**8:08d}.http"
    path.write_bytes(json.dumps(described).encode() + b"\n" + given.data)
    return path


def read(path: Path) -> Input:
    """Read what :func:`write` wrote."""
    described, _, data = path.read_bytes().partition(b"\n")
    options = json.loads(described)
    return Input(**{**options, "cuts": tuple(options["cuts"]), "data": data})


def search(minutes: float, seed: int, folder: Path, *, batch: int = 200) -> int:
    """Run mutated answers until the time is over. Returns the number of failures."""
    chosen, known = random.Random(seed), seeds()  # noqa: S311
    started, count, shown, reasons = time.monotonic(), 0, 0.0, set[str]()
    while (minutes_so_far := (time.monotonic() - started) / 60) < minutes:
        inputs = [mutated(chosen, known) for _ in range(batch)]
        began = time.process_time()
        failures = run(inputs)
        count += batch
        if time.process_time() - began > SLOW_S * 5:
            failures = [alone(given) or failure for given, failure in zip(inputs, failures, strict=True)]
        for given, failure in zip(inputs, failures, strict=True):
            reason = (failure or "").strip().splitlines()[-1:]
            # One file for each kind of failure.
            if failure and (kind := "".join(c for c in reason[0] if not c.isdigit())[:80]) not in reasons:
                reasons.add(kind)
                small = smaller(given) if run([given], beside=1)[0] else given
                print(f"{write(small, folder)}: {failure}")
        if minutes_so_far - shown >= 1:
            shown = minutes_so_far
            print(f"{count:,} inputs in {minutes_so_far:.1f} minutes, {len(reasons)} kinds of failures", flush=True)
    print(f"{count:,} inputs, seed {seed}: {len(reasons)} kinds of failures")
    return len(reasons)


def alone(given: Input) -> str | None:
    """What is wrong with an answer of a slow batch."""
    began = time.process_time()
    failure = run([given], beside=1)[0]
    took = time.process_time() - began
    return failure or (f"slow: {took:.1f} s" if took > SLOW_S else None)
