from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from deltatap import load_settings
from deltatap.delta.identity import Identity
from deltatap.driver import run as driver_run
from deltatap.driver.run import Ended, _capture
from deltatap.errors import ConfigError, LandingError, LeaseLostError
from deltatap.messages import Control
from deltatap.state import RunState
from tests.leases import a_lease, held, lost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("counts", "share"),
    [((1, 1, 2), 0.5), ((0, 0, 0), 0.0), ((None, None, None), 0.0), ((3, 1, 0), 0.0), ((0, 0, 7), 1.0)],
)
def test_the_share_of_failed_rows(counts: tuple[int | None, int | None, int | None], share: float) -> None:
    row = dict(zip(("completed", "interrupted", "failed"), counts, strict=True))
    assert Ended(row).failed_share == share


def test_a_start_that_is_refused_waits_for_the_python_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process ends while Spark starts them, Spark prints a stack trace."""
    waits: list[float] = []

    def refuse(_: object) -> None:
        raise ConfigError(["captures.table: x"])

    monkeypatch.setattr("deltatap.driver.run._start_python", lambda _: SimpleNamespace(join=waits.append))
    monkeypatch.setattr("deltatap.driver.run.table_needs", lambda *_: [])
    monkeypatch.setattr("deltatap.driver.run.require", refuse)
    with pytest.raises(ConfigError):
        driver_run.run(load_settings({}), cast("Any", None), cast("Any", None), Console(quiet=True))
    assert len(waits) == 1


def test_a_run_whose_leftovers_do_not_land_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed: list[BaseException] = []

    def fail(*_: object, **__: object) -> None:
        raise LandingError("no space left")

    monkeypatch.setattr("deltatap.driver.run.land_leftovers", fail)
    monkeypatch.setattr("deltatap.driver.run._close_failed", lambda _, error: closed.append(error))
    state = RunState(tmp_path / "run")
    run = SimpleNamespace(spark=None, settings=None, lease=a_lease(), state=state, say=None, beats=iter([1]))
    with pytest.raises(LandingError):
        driver_run._run_with_lease(cast("Any", run), cast("Any", None))
    assert [str(error) for error in closed] == ["no space left"]


def test_a_request_to_stop_that_comes_at_the_start_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    state, lease, publish = RunState(tmp_path / "run"), a_lease(), RunState.publish

    def publish_and_stop(state: RunState, control: Control) -> None:
        asked.append(state.asked_to_stop(lease.epoch))
        publish(state, control)
        state.ask_to_stop(lease.epoch)

    def end(_: object) -> None:
        asked.append(state.asked_to_stop(lease.epoch))
        raise RuntimeError("the end of this test")

    monkeypatch.setattr(RunState, "publish", publish_and_stop)
    monkeypatch.setattr("deltatap.driver.run.land_leftovers", lambda *_, **__: [])
    monkeypatch.setattr("deltatap.driver.run.resuming.take", end)
    monkeypatch.setattr("deltatap.driver.run._close_failed", lambda *_: None)
    settings = load_settings({})
    run = SimpleNamespace(spark=None, settings=settings, lease=lease, state=state, say=None, beats=iter([1]))
    state.prepare()
    state.ask_to_stop()  # meant for an earlier driver
    with pytest.raises(RuntimeError, match="the end of this test"):
        driver_run._run_with_lease(cast("Any", run), cast("Any", SimpleNamespace(wait=lambda: None, slots=1)))
    assert asked == [False, True]


def test_the_lease_is_renewed_while_leftovers_land(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    renewed = threading.Event()

    def land(*_: object, **__: object) -> None:
        assert renewed.wait(5)
        raise LandingError("the end of this test")

    monkeypatch.setattr("deltatap.driver.run.leases.HEARTBEAT_S", 0.001)
    monkeypatch.setattr(
        "deltatap.driver.run.leases.Renewal", lambda *_: SimpleNamespace(renew=renewed.set, require=held)
    )
    monkeypatch.setattr("deltatap.driver.run.land_leftovers", land)
    monkeypatch.setattr("deltatap.driver.run._close_failed", lambda *_: None)
    state = RunState(tmp_path / "run")
    run = SimpleNamespace(spark=None, settings=None, lease=a_lease(), state=state, say=None, beats=iter([1]))
    with pytest.raises(LandingError, match="the end of this test"):
        driver_run._run_with_lease(cast("Any", run), cast("Any", None))


def test_a_run_that_failed_leaves_its_folder_to_the_driver_that_took_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state, theirs = RunState(tmp_path / "run"), Control(3, beat=1)
    state.prepare()
    state.publish(theirs)
    monkeypatch.setattr("deltatap.driver.run.runs.totals", lambda *_: {})
    monkeypatch.setattr("deltatap.driver.run.leases.close", lost)
    run = SimpleNamespace(spark=None, settings=None, lease=a_lease(), state=state, beats=iter([1]))
    driver_run._close_failed(cast("Any", run), RuntimeError())
    assert state.control() == theirs


class Lost:
    """A renewal that notices at a certain look that the lease is lost, and a landing that notes what it does."""

    def __init__(self, look: int) -> None:
        self.looks, self.did, self.kept = look, list[str](), None

    def require(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            lost()

    def drain(self) -> None:
        self.did.append("drain")

    def capture(self, _threads: object, drain: Callable[[], None]) -> None:
        self.did.append("capture")
        drain()


@pytest.mark.parametrize(
    ("look", "did"),
    [
        (0, []),
        (1, ["take", "plan", "capture"]),
        (2, ["take", "plan", "capture", "drain"]),
        (3, ["take", "plan", "capture", "drain", "drain"]),
        (4, ["take", "plan", "capture", "drain", "drain", "close"]),
    ],
)
@pytest.mark.parametrize("slots", [1, 2])
def test_a_driver_that_has_lost_its_lease_does_not_touch_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slots: int, look: int, did: list[str]
) -> None:
    fake: Any = Lost(look)
    plan = SimpleNamespace(requests=1, counts=lambda _: {})

    def noting(what: str, value: object) -> Callable[..., Any]:
        return lambda *_, **__: fake.did.append(what) or value

    for name, value in {
        "resuming.take": noting("take", None), "Landing.of": lambda *_: fake, "make_plan": noting("plan", plan),
        "announce": lambda *_: [], "CaptureLoop": lambda *_, **__: SimpleNamespace(capture=fake.capture, notes=[]),
        "_close": noting("close", "closed"), "_LAND_EVERY_S": 60.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"deltatap.driver.run.{name}", value)
    run = SimpleNamespace(spark=None, settings=load_settings({}), lease=a_lease(), state=RunState(tmp_path))
    building = SimpleNamespace(slots=slots, wait=lambda: None)
    with pytest.raises(LeaseLostError) if look < 4 else nullcontext():
        driver_run._run_steps(
            cast("Any", run), cast("Any", building), threading.Event(), fake, cast("Any", SimpleNamespace())
        )
    assert fake.did == did


def test_a_run_does_not_use_the_folder_of_a_run_on_another_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_settings({"run": {"id": "nightly"}, "state": {"dir": str(tmp_path)}})
    here = Identity("b", "id", "file:/b")
    monkeypatch.setattr("deltatap.driver.run.guard", lambda *_: here)
    monkeypatch.setattr("deltatap.driver.run.Building", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr("deltatap.driver.run.leases.acquire", lost)
    state, none = RunState.of(tmp_path, "nightly"), cast("Any", None)
    state.prepare(here)
    with pytest.raises(LeaseLostError):  # it went on
        driver_run._run_alone(settings, none, none, none, (), None)
    state.prepare(Identity("a", "id", "file:/a"))
    with pytest.raises(ConfigError, match=r"run\.id: nightly: .*nightly belongs to a run on another captures table"):
        driver_run._run_alone(settings, none, none, none, (), None)


@pytest.mark.parametrize("epoch", [None, 1, 2])
def test_a_run_says_whether_it_was_asked_to_stop_while_it_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, epoch: int | None
) -> None:
    state, lease, nothing = RunState(tmp_path / "run"), a_lease(), lambda *_: None
    state.prepare()

    def finish() -> None:
        if epoch is not None:
            state.ask_to_stop(epoch)

    for name, value in {
        "runs.totals": lambda *_: {}, "leases.close": lambda *_: {"status": "completed"},
        "resuming.notes": lambda *_: [], "resuming.leave": nothing,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"deltatap.driver.run.{name}", value)
    run = SimpleNamespace(spark=None, settings=None, lease=lease, state=state, say=None, beats=iter([1]))
    plan, landing = (
        SimpleNamespace(owed=0, before={}),
        SimpleNamespace(finish=finish, set_aside=[], state=state, compact=nothing),
    )
    closed = driver_run._close(cast("Any", run), cast("Any", plan), cast("Any", landing), None, [])
    assert closed.asked_to_stop is (epoch == lease.epoch)
    assert not state.folder.exists()


class SlowLanding:
    """A landing whose `keep` runs until it is released."""

    def __init__(self) -> None:
        self.keeping, self.release, self.drained = threading.Event(), threading.Event(), threading.Event()

    def keep(self) -> None:
        self.keeping.set()
        self.release.wait(5)

    def drain(self) -> None:
        self.drained.set()


class DrainingLoop:
    """A loop that drains while landing keeps up with the journal."""

    def __init__(self, landing: SlowLanding) -> None:
        self._landing = landing

    def capture(self, _threads: object, drain: Callable[[], None]) -> None:
        landing = self._landing
        assert landing.keeping.wait(5)
        draining = threading.Thread(target=drain)
        draining.start()
        assert not landing.drained.wait(0.05)
        landing.release.set()
        draining.join()
        assert landing.drained.is_set()


def test_landing_is_used_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.driver.run._LAND_EVERY_S", 0.0)
    landing: Any = SlowLanding()
    loop: Any = DrainingLoop(landing)
    renewal: Any = SimpleNamespace(require=lambda: None)
    assert _capture(loop, landing, renewal, cast("Any", None), concurrent=True) is None
