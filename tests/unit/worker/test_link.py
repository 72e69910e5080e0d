"""A worker's reaction to the driver's messages, and to their absence."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.messages import LOST_S, STALE_S, Control, Permit
from deltatap.plan_state import PlanState
from deltatap.state import RunState
from deltatap.worker import link
from deltatap.worker.engine import Proceed
from deltatap.worker.journal import Totals
from deltatap.worker.link import Link, Situation, Stop, decide

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "00000-000001-a"
EPOCH = 5
PAUSE = Proceed(share=0)
RUNNING = Proceed(share=3, cool_s=1.5, mean_output_tokens=80.0)


def control(epoch: int = EPOCH, **fields: Any) -> Control:
    return Control(epoch, 1, {CLAIM: 3}, cool_s=1.5, mean_output_tokens=80.0, grace_s=20.0, **fields)


def situation(**changes: Any) -> Situation:
    normal: dict[str, Any] = {
        "claim": CLAIM,
        "epoch": EPOCH,
        "holds_claim": True,
        "silent_s": 0.4,
        "waiting": 10,
        "journal_failing": False,
        "journal_failed": False,
        "grace_s": 7.0,
    }
    return Situation(**(normal | changes))


@pytest.mark.parametrize(
    ("message", "now", "decision"),
    [
        pytest.param(control(), {}, RUNNING, id="normal"),
        pytest.param(None, {}, PAUSE, id="no message yet"),
        pytest.param(Control(EPOCH, 1, {"other": 3}), {}, PAUSE, id="no share for this claim"),
        pytest.param(control(permits={CLAIM: Permit(9)}), {}, Proceed(3, 1.5, Permit(9), 80.0), id="a permit"),
        pytest.param(control(permits={"other": Permit(9)}), {}, Proceed(3, 1.5, Permit(), 80.0), id="no permit for this claim"),
        pytest.param(control(), {"silent_s": STALE_S}, RUNNING, id="not stale yet"),
        pytest.param(control(), {"silent_s": STALE_S + 0.1}, PAUSE, id="stale"),
        pytest.param(control(), {"silent_s": LOST_S}, PAUSE, id="not lost yet"),
        pytest.param(control(), {"silent_s": LOST_S + 0.1}, Stop(7.0), id="lost"),
        pytest.param(None, {"silent_s": LOST_S + 0.1}, Stop(7.0), id="lost before the first message"),
        pytest.param(control(), {"waiting": 2048}, RUNNING, id="full queue"),
        pytest.param(control(), {"waiting": 2049}, PAUSE, id="backlog"),
        pytest.param(control(stop="stopped"), {}, Stop(20.0), id="stop"),
        pytest.param(control(stop="stopped"), {"waiting": 9999, "silent_s": STALE_S + 1}, Stop(20.0), id="stop in a backlog"),
        pytest.param(control(EPOCH - 1, stop="stopped"), {}, RUNNING, id="stop of an older epoch"),
        pytest.param(control(EPOCH + 1), {}, Stop(7.0), id="newer epoch"),
        pytest.param(control(EPOCH + 1, stop="stopped"), {}, Stop(7.0), id="stop of a newer epoch"),
        pytest.param(control(), {"holds_claim": False}, Stop(7.0), id="newer attempt"),
        pytest.param(control(), {"journal_failing": True}, PAUSE, id="a write of the journal is retried"),
        pytest.param(control(stop="stopped"), {"journal_failing": True}, Stop(20.0), id="a write is retried during a stop"),
        pytest.param(control(), {"journal_failed": True}, Stop(0), id="journal failed"),
        pytest.param(control(stop="stopped"), {"journal_failed": True}, Stop(0), id="journal failed during a stop"),
    ],
)  # fmt: skip
def test_each_situation_has_its_decision(
    message: Control | None, now: dict[str, Any], decision: Stop | Proceed
) -> None:
    assert decide(message, situation(**now)) == decision


def test_the_documented_times() -> None:
    assert (STALE_S, LOST_S) == (15.0, 300.0)


class Recorder:
    """Stands in for an engine and records how it is directed."""

    def __init__(self) -> None:
        self.directions: list[Stop | Proceed] = []
        self.directed = threading.Event()

    def status(self) -> dict[str, Any]:
        return {"open": 2}

    def stop(self, grace_s: float) -> None:
        self.directions.append(Stop(grace_s))

    def control(self, bounds: Proceed) -> None:
        self.directions.append(bounds)
        self.directed.set()


@pytest.fixture
def exchange(tmp_path: Path) -> SimpleNamespace:
    """A link with a recording engine, a real state folder and a clock that the test sets."""
    state = RunState(tmp_path / "run")
    state.prepare()
    plan = state.plan(EPOCH)
    plan.prepare()
    claim = plan.claim(0)
    clock = SimpleNamespace(now=1000.0)
    engine, journal = Recorder(), SimpleNamespace(waiting=0, failing=False, failure=None, totals=Totals())
    parts: Any = (engine, journal)
    made = Link(state, plan, claim, EPOCH, *parts, grace_s=7.0, clock=lambda: clock.now)
    return SimpleNamespace(link=made, state=state, plan=plan, claim=claim, clock=clock, engine=engine, journal=journal)


def test_only_a_new_message_shows_that_the_driver_is_alive(exchange: SimpleNamespace) -> None:
    exchange.state.publish(Control(EPOCH, 1, {exchange.claim: 2}))
    exchange.link.exchange()
    exchange.clock.now += STALE_S + 1
    exchange.link.exchange()
    exchange.state.publish(Control(EPOCH, 2, {exchange.claim: 2}))
    exchange.link.exchange()
    exchange.clock.now += LOST_S + 1
    exchange.link.exchange()
    assert exchange.engine.directions == [Proceed(2), PAUSE, Proceed(2), Stop(7.0)]


def test_the_journal_and_the_claim_are_watched(exchange: SimpleNamespace) -> None:
    exchange.state.publish(Control(EPOCH, 1, {exchange.claim: 2}))
    exchange.journal.waiting = 5000
    exchange.link.exchange()
    exchange.journal.failure = OSError("full")
    exchange.link.exchange()
    exchange.journal.failure = None
    exchange.plan.claim(0)
    exchange.link.exchange()
    assert exchange.engine.directions == [PAUSE, Stop(0), Stop(7.0)]


def test_the_checks_of_open_streams_have_permits_after_a_stop(exchange: SimpleNamespace) -> None:
    permit = Permit(3)
    exchange.state.publish(Control(EPOCH, 1, {}, stop="stopped", grace_s=9.0, permits={exchange.claim: permit}))
    exchange.link.exchange()
    assert exchange.engine.directions == [Stop(9.0), Proceed(0, permit=permit)]


def test_each_exchange_sends_a_new_heartbeat(exchange: SimpleNamespace) -> None:
    exchange.journal.totals.uncalled = 3
    for beat in (1, 2):
        exchange.link.exchange()
        (heartbeat,) = exchange.state.heartbeats()
        assert (heartbeat.beat, heartbeat.claim, heartbeat.epoch, heartbeat.open) == (beat, exchange.claim, EPOCH, 2)
        assert heartbeat.uncalled == 3


def test_an_old_message_is_not_taken_for_a_new_one(exchange: SimpleNamespace) -> None:
    exchange.state.publish(Control(EPOCH, 9, {exchange.claim: 2}))
    exchange.link.exchange()
    exchange.state.publish(Control(EPOCH, 8, {exchange.claim: 5}))
    exchange.clock.now += STALE_S + 1
    exchange.link.exchange()
    exchange.state.publish(Control(EPOCH + 1, 1))
    exchange.link.exchange()
    exchange.state.publish(Control(EPOCH, 99, {exchange.claim: 5}))
    exchange.link.exchange()
    assert exchange.engine.directions == [Proceed(2), PAUSE, Stop(7.0), Stop(7.0)]


@pytest.mark.parametrize("where", ["beat", "control", "holds"])
def test_a_file_that_cannot_be_read_or_written_now_leaves_the_worker_as_it_is(
    exchange: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    exchange.state.publish(Control(EPOCH, 1, {exchange.claim: 2}))
    exchange.link.exchange()
    monkeypatch.setattr(PlanState if where == "holds" else RunState, where, failing)
    for beat in (2, 3):
        exchange.state.publish(Control(EPOCH, beat, {exchange.claim: 2}))
        exchange.clock.now += STALE_S - 1
        exchange.link.exchange()
    assert exchange.engine.directions == [Proceed(2), Proceed(2), Proceed(2) if where == "beat" else PAUSE]


def test_nothing_starts_while_the_driver_s_messages_cannot_be_read(
    exchange: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: RunState) -> Control:
        raise OSError("stale file handle")

    monkeypatch.setattr(RunState, "control", unreadable)
    monkeypatch.setattr(link, "POLL_S", 0.001)
    with exchange.link:
        assert exchange.engine.directed.wait(20)
    assert exchange.engine.directions[0] == PAUSE
