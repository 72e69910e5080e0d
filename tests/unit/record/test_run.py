"""A recording while its state folder fails: clients are served on."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.delta.identity import Identity
from deltatap.driver.lease import Lease, Moment
from deltatap.errors import ConfigError, LandingError, LeaseLostError
from deltatap.messages import Heartbeat
from deltatap.record import run, server
from deltatap.settings_loading import load_settings
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
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


HERE = Identity("t", "1", "file:/t")


def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **fakes: Callable[..., Any]) -> None:
    """Start a recording whose table, lease and leftovers are fakes."""
    lease = Lease("r", 2, datetime.now(UTC), resumed=True, others=(), died=(), taken_at=Moment.now(), captures=HERE)
    usual = {
        "prepare_tables": lambda *_: None, "guard": lambda *_: HERE, "leases.acquire": lambda *_, **__: lease,
        "land_leftovers": lambda *_, **__: [], "_close": lambda *_: {},
    }  # fmt: skip
    for name, value in (usual | fakes).items():
        monkeypatch.setattr(f"deltatap.record.run.{name}", value)
    none: Any = None
    settings = load_settings({"run": {"id": "r"}, "state": {"dir": str(tmp_path)}})
    run.record(settings, none, none, none, lambda _: None)


def fail(error: Exception) -> Callable[..., Any]:
    def raises(*_: object, **__: object) -> Any:
        raise error

    return raises


def test_the_first_error_ends_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LandingError, match="no space left"):
        start(
            monkeypatch, tmp_path, land_leftovers=fail(LandingError("no space left")), _close=fail(LeaseLostError("x"))
        )


def test_the_lease_of_a_recording_is_renewed_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()

    def land(*_: object, **__: object) -> None:
        assert renewed.wait(5)
        raise LandingError("the end of this test")

    monkeypatch.setattr("deltatap.driver.lease.HEARTBEAT_S", 0.001)
    monkeypatch.setattr("deltatap.driver.lease.Renewal.renew", lambda _: renewed.set())
    with pytest.raises(LandingError, match="the end of this test"):
        start(monkeypatch, tmp_path, land_leftovers=land)


class Lost:
    """A renewal that notices at a certain look that the lease is lost, and notes what the recording does."""

    def __init__(self, look: int) -> None:
        self.looks, self.did = look, list[str]()
        self.counts: dict[str, Any] = {}

    def renew(self) -> None:
        """The lease is held so far."""

    def require(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise LeaseLostError("another driver has taken over")

    def noting(self, what: str, value: Any = None) -> Callable[..., Any]:
        def note(*_: object, **__: object) -> Any:
            self.did.append(what)
            return value

        return note


@pytest.mark.parametrize(
    ("look", "did"),
    [
        (0, []),
        (1, ["publish", "drain", "serve"]),
        (2, ["publish", "drain", "serve", "finish", "close", "publish", "remove"]),
    ],
)
def test_a_recording_that_has_lost_its_lease_does_not_touch_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int, did: list[str]
) -> None:
    lost, given = Lost(look), list[Any]()
    fake: Any = SimpleNamespace
    landing = fake(
        drain=lost.noting("drain"), finish=lost.noting("finish"), set_aside=[], keep=None, state=fake(aside="")
    )
    recorder = nullcontext(fake(heartbeat=lambda **_: Heartbeat(2, "00000-1-x", 1)))
    server = fake(start=lambda: None, stop=lambda _: None)
    for name in ("publish", "remove"):
        monkeypatch.setattr(RunState, name, lost.noting(name))
    monkeypatch.setattr(run._Recording, "_keep", lost.noting("serve"))

    def renewal(*_: object, give_up_s: float) -> Lost:
        given.append(give_up_s)
        return lost

    fakes: dict[str, Any] = {
        "leases.Renewal": renewal, "Landing.of": lambda *_: landing, "Recorder": lambda *_: recorder,
        "Server": lambda *_: server, "_close": lost.noting("close", {}),
    }  # fmt: skip
    with pytest.raises(LeaseLostError) if look < 2 else nullcontext():
        start(monkeypatch, tmp_path, **fakes)
    assert lost.did == did
    assert given == [30.0]


def test_a_recording_does_not_use_the_folder_of_a_run_on_another_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunState.of(tmp_path, "r").prepare(Identity("t", "1", "file:/copy"))
    with pytest.raises(ConfigError, match=r"run\.id: r: .* belongs to a run on another captures table"):
        start(monkeypatch, tmp_path)


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
