"""A recording while its state folder fails: clients are served on."""

from __future__ import annotations

import errno
import socket
import threading
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.messages import Heartbeat
from deltatap.record import run, server
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path


def test_messages_that_cannot_be_written_now_do_not_end_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tmp_path)
    state.prepare()
    asked: list[int] = []

    def fails(*_: object) -> Any:
        raise OSError(errno.EIO, "for a while")

    def stops_at_the_third(self: RunState, epoch: int | None = None) -> bool:  # noqa: ARG001
        asked.append(0)
        return bool(fails()) if len(asked) < 3 else True

    monkeypatch.setattr(RunState, "beat", fails)
    monkeypatch.setattr(RunState, "publish", fails)
    monkeypatch.setattr(RunState, "asked_to_stop", stops_at_the_third)
    monkeypatch.setattr(run, "POLL_S", 0.001)
    fake: Any = SimpleNamespace
    serving = fake(heartbeat=lambda: Heartbeat(1, "00000-1-x", 1), failure=None)
    recording = run._Recording(fake(), fake(), fake(), fake(epoch=1), state, fake(counts={}), fake())
    keep: Any = recording._keep
    assert keep(serving, fake(failure=None), [], threading.Event(), count()) is None
    assert len(asked) == 3


@pytest.mark.parametrize("ended", [False, True])
def test_a_late_heartbeat_is_skipped(monkeypatch: pytest.MonkeyPatch, *, ended: bool) -> None:
    """The event loop does not run: the machine stalls, or the loop has just ended."""
    monkeypatch.setattr(server, "_LATE_S", 0.01)
    fake: Any = SimpleNamespace
    with socket.socket() as listening:
        stalled = server.Server(listening, fake)
        stalled._shared, stalled._thread = fake(), threading.current_thread()
        if ended:
            stalled._loop.close()
        assert stalled.heartbeat() is None
        stalled._loop.close()
