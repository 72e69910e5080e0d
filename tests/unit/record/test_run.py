"""A recording while its state folder fails: clients are served on."""

from __future__ import annotations

import errno
import threading
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from deltatap.messages import Heartbeat
from deltatap.record import run
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
    server = fake(heartbeat=lambda: Heartbeat(1, "00000-1-x", 1), failure=None)
    recording = run._Recording(fake(), fake(), fake(), fake(epoch=1), state)
    keep: Any = recording._keep
    assert keep(server, fake(failure=None), [], fake(counts={}), threading.Event(), count()) is None
    assert len(asked) == 3
