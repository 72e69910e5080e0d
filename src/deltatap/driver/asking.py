"""Asks a run to stop, from any process that sees its state folder.

Knows which runs are active, and how long to wait for a run that is about to start, and for its answer. Leaves the
answer to the run's driver: ``loop.py`` while it captures, ``follow.py`` between two rounds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.errors import ConfigError
from deltatap.files import Files
from deltatap.messages import POLL_S
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deltatap.messages import Control

# How long to wait for the run to start, and as long for its answer. Between two rounds of capture.follow_s, no run is
# active for a few seconds.
PATIENCE_S = 10.0
# A message that is being replaced is readable soon, even without rename. The message of a dead driver may never be.
_READ_S = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """The run that was asked, and whether its driver has answered."""

    run_id: str
    answered: bool


def ask_to_stop(
    folder: Path,
    run_id: str = "",
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Asked:
    """Ask a run to stop, and wait for its answer.

    Args:
        folder: the state folder of the settings.
        run_id: the run; empty: the active run.
        clock: monotonic seconds.
        sleep: as ``time.sleep``.

    Raises:
        ConfigError: if the run is not active, or if several are active and none is named.
    """
    files = Files(patience_s=_READ_S, clock=clock, sleep=sleep)
    until, asked, answered = clock() + PATIENCE_S, None, False
    while True:
        active = _active(folder, files)
        names = [name for name in active if run_id in ("", name)]
        if len(names) > 1:
            raise ConfigError([f"state.dir: {folder}: several runs are active here; name one: {', '.join(names)}"])
        if not names:
            answered = asked is not None  # it has ended
        else:
            state, control = active[names[0]]
            if control.epoch == asked:
                answered = control.stop is not None
            else:  # the first look, or another driver has taken over
                with suppress(OSError):  # the next turn repeats it
                    state.ask_to_stop(control.epoch)
                    run_id, asked, until = names[0], control.epoch, clock() + PATIENCE_S
        if answered or clock() >= until:
            break
        sleep(POLL_S)
    if asked is None:
        problem = f"run {run_id} is not active here; active runs: {', '.join(active) or 'none'}"
        raise ConfigError([f"state.dir: {folder}: {problem if run_id else 'no run is active here'}"])
    return Asked(run_id, answered)


def _active(folder: Path, files: Files) -> dict[str, tuple[RunState, Control]]:
    """The runs in a state folder that have not ended, sorted by id: each with its driver's latest message."""
    found = {}
    for path in files.names(folder):
        state = RunState(path, files=files)
        with suppress(OSError):  # not the folder of a run, or the message of a dead driver is damaged
            control = state.control()
            if control is not None and control.stop != "ended":
                found[state.name] = (state.at_once(), control)
    return dict(sorted(found.items()))
