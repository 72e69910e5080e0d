"""Injects the fault that FAULT names into every Python process of a job that has this folder on PYTHONPATH."""

from __future__ import annotations

import os
import time
from pathlib import Path

SLOW_S = 10.0
STEP_EVERY_S, STEPS_S = 2.0, (0.0, 3600.0, -7200.0)


def slow_fsync() -> None:
    """Syncing a journal file takes ten seconds."""
    fsync = os.fsync

    def slowly(file: int) -> None:
        if "/journal/" in str(Path(f"/proc/self/fd/{file}").readlink()):
            time.sleep(SLOW_S)
        fsync(file)

    os.fsync = slowly  # type: ignore[assignment]


def clock_steps() -> None:
    """The wall clock jumps forward and back."""
    now = time.time
    time.time = lambda: now() + STEPS_S[int(time.monotonic() / STEP_EVERY_S) % len(STEPS_S)]


{"slow-fsync": slow_fsync, "clock-steps": clock_steps}.get(os.environ.get("FAULT", ""), lambda: None)()
