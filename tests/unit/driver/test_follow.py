"""Rounds of `capture.follow_s`: their requests, their budgets, and their end. A round itself is a fake."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from deltatap.driver import follow
from deltatap.driver.follow import Rounds
from deltatap.driver.run import Ended
from deltatap.errors import ConfigError, RunningError
from deltatap.messages import Control
from deltatap.settings_loading import load_settings
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deltatap.config import Settings

AT = datetime(2026, 12, 1, 8, tzinfo=UTC)


def row(run_id: str, status: str = "completed", **values: Any) -> dict[str, Any]:
    used = {"owed": 2, "requests": 2, "input_tokens": 10, "output_tokens": 30, "cost_usd": 0.25}
    times = {"started_at": AT, "heartbeat_at": AT, "finished_at": AT + timedelta(seconds=1)}
    return {"run_id": run_id, "status": status, "reason": None, "epoch": 3, **used, **times, **values}


def rounds(*runs: dict[str, Any], **sections: Any) -> Rounds:
    sections = {"capture": {"follow_s": 5, **sections.pop("capture", {})}, "prices": None, **sections}
    return Rounds(load_settings(sections), began=100.0, runs=list(runs))


def test_the_first_round_has_the_configured_settings() -> None:
    first = rounds(budget={"requests": 10, "runtime_s": 60}, capture={"limit": 7}, run={"id": "mine"})
    assert first.next(100.0) == first.settings
    assert first.ids == ()


def test_a_later_round_has_its_own_id_and_what_is_left() -> None:
    budget = {"requests": 10, "tokens": 100, "cost_usd": 1.0, "runtime_s": 60}
    later = rounds(row("mine"), row("mine-2"), budget=budget, capture={"limit": 7}, run={"id": "mine"})
    settings = later.next(130.0)
    assert later.ids == ("mine", "mine-2")
    assert settings.run.id == "mine-3"
    assert settings.capture.limit == 3
    left = settings.budget
    assert (left.requests, left.tokens, left.cost_usd, left.runtime_s) == (6, 20, 0.5, 30)
    assert rounds(row("generated")).next(130.0).run.id is None


@pytest.mark.parametrize(
    ("sections", "runs", "why"),
    [
        ({}, [row("a")], None),
        ({}, [row("a", "stopped", reason="stopped by a signal")], "stopped by a signal"),
        ({}, [row("a"), row("b", "failed")], "failed"),
        ({"budget": {"requests": 4}}, [row("a")], None),
        ({"budget": {"requests": 4}}, [row("a"), row("b")], "budget.requests: 4 is used up"),
        ({"budget": {"runtime_s": 30}}, [row("a")], "budget.runtime_s: 30 is used up"),
        ({"budget": {"runtime_s": 31}}, [row("a")], None),
        ({"capture": {"limit": 4}}, [row("a", owed=None), row("b", owed=3)], None),
        ({"capture": {"limit": 4}}, [row("a"), row("b")], "capture.limit: 4 requests have been captured"),
    ],
)
def test_conditions_that_end_the_rounds(sections: dict[str, Any], runs: list[dict[str, Any]], why: str | None) -> None:
    assert rounds(*runs, **sections).over(130.0) == why


def test_starts_of_the_last_round_do_not_count_for_the_limits_of_the_next() -> None:
    assert rounds().every_s() == 5
    assert rounds(limits={"requests_per_minute": 6}).every_s() == 60
    assert rounds(limits={"requests_per_minute": 6}, capture={"follow_s": 90}).every_s() == 90


class World:
    """Fake runs and looks. Each look takes the next of `looks`: due, not due, or an error."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *looks: bool | Exception, **sections: Any
    ) -> None:
        capture = {"follow_s": 0.01, **sections.pop("capture", {})}
        self.settings = load_settings({"state": {"dir": str(folder)}, "prices": None, "capture": capture, **sections})
        self.signalled = threading.Event()
        self.looks, self.said = list(looks), list[str]()
        self.started: list[tuple[Settings, tuple[str, ...]]] = []
        self.asked = False
        self.before_look: Callable[[], None] = lambda: None
        self.on_run: Callable[[int], dict[str, Any]] = lambda number: row(f"run{number}")
        monkeypatch.setattr(follow, "signals", self._signals)
        monkeypatch.setattr(follow, "run", self._run)
        monkeypatch.setattr(follow, "owed_requests", self._owed)

    @contextmanager
    def _signals(self) -> Iterator[threading.Event]:
        yield self.signalled

    def _run(self, settings: Settings, *_: object, after: tuple[str, ...], signalled: threading.Event) -> Ended:
        assert signalled is self.signalled
        self.started.append((settings, after))
        return Ended(self.on_run(len(self.started)), asked_to_stop=self.asked)

    @contextmanager
    def _owed(self, *_: object, after: tuple[str, ...]) -> Iterator[Any]:
        self.before_look()
        assert after == tuple(f"run{n + 1}" for n in range(len(after)))
        if not self.looks:
            self.signalled.set()
        look = self.looks.pop(0) if self.looks else False
        if isinstance(look, Exception):
            raise look
        yield SimpleNamespace(isEmpty=lambda: not look)

    def follow(self) -> list[str]:
        none = cast("Any", None)
        ended = list(follow.follow(self.settings, none, none, none, self.said.append))
        return [each.row["run_id"] for each in ended]


def test_a_round_follows_when_there_are_new_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, False, True, False, True)
    assert world.follow() == ["run1", "run2", "run3"]
    assert [after for _, after in world.started] == [(), ("run1",), ("run1", "run2")]
    assert world.said[-1] == "no further round: stopped by a signal"
    assert world.said.count("looking for new prompts every 0.01 s; stop with Ctrl-C or `deltatap stop`") == 3
    assert list(tmp_path.iterdir()) == [], "no state is left"


def test_a_stopped_round_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, True, True)
    world.on_run = lambda number: row(f"run{number}", "stopped" if number == 2 else "completed", reason="by a signal")
    assert world.follow() == ["run1", "run2"]
    assert not any("no further round" in text for text in world.said)


def test_the_command_stop_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, True, True)

    def stop() -> None:
        (folder,) = tmp_path.glob("*/control.json")
        assert RunState(folder.parent).control() is not None, "as `deltatap stop` requires"
        RunState(folder.parent).ask_to_stop()

    world.before_look = stop
    assert world.follow() == ["run1"], "a request to stop during a look prevents the round"
    assert world.said[-1] == "no further round: stopped by `deltatap stop`"


def test_whoever_reads_that_the_command_waits_can_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, True, True)

    def stop(text: str) -> None:
        world.said.append(text)
        if text.startswith("looking for new prompts"):
            (folder,) = tmp_path.glob("*/control.json")
            RunState(folder.parent).ask_to_stop()

    none = cast("Any", None)
    assert [each.row["run_id"] for each in follow.follow(world.settings, none, none, none, stop)] == ["run1"]
    assert world.said[-1] == "no further round: stopped by `deltatap stop`"


def test_another_run_that_removes_the_folder_does_not_hide_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, False, False, True)
    removed: list[bool] = []

    def remove() -> None:
        (folder,) = tmp_path.glob("*/control.json")
        state = RunState(folder.parent)
        assert state.control() == Control(3, beat=0, stop="completed"), "it is back at each look"
        if len(removed) < 2:
            state.publish(Control(9, beat=1, stop="ended"))
            if removed:
                state.remove()
            removed.append(True)
        else:
            state.ask_to_stop()

    world.before_look = remove
    assert world.follow() == ["run1"]
    assert world.said[-1] == "no further round: stopped by `deltatap stop`"
    assert list(tmp_path.iterdir()) == []


def test_a_start_with_the_id_of_the_last_round_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, theirs = World(tmp_path, monkeypatch, False, False), Control(9, beat=1)

    def resume() -> None:
        (folder,) = tmp_path.iterdir()
        RunState(folder).publish(theirs)
        RunState(folder).ask_to_stop(theirs.epoch)

    world.before_look = resume
    assert world.follow() == ["run1"]
    assert world.said[-1] == "no further round: stopped by a signal"
    (folder,) = tmp_path.iterdir()
    assert RunState(folder).control() == theirs


def test_a_stop_that_comes_while_a_round_closes_ends_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, True, True)
    world.asked = True
    assert world.follow() == ["run1"]
    assert world.said == ["no further round: stopped by `deltatap stop`"]


def test_a_signal_during_a_look_prevents_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, True)
    world.before_look = world.signalled.set
    assert world.follow() == ["run1"]


def test_a_state_folder_that_cannot_be_read_now_does_not_end_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, True)

    def fails(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RunState, "asked_to_stop", fails)
    assert world.follow() == ["run1", "run2"]
    assert world.said[-1] == "no further round: stopped by a signal"


def test_some_looks_may_fail_but_not_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ConfigError(["prompts: gone"])
    world = World(tmp_path, monkeypatch, *[broken] * 4, True, *[broken] * 4)
    assert world.follow() == ["run1", "run2"]
    assert world.said.count("prompts: gone; looking again in 0.01 s") == 8
    world = World(tmp_path, monkeypatch, *[broken] * 5)
    with pytest.raises(ConfigError, match="prompts: gone"):
        world.follow()
    assert list(tmp_path.iterdir()) == []


def test_another_run_on_the_table_delays_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> dict[str, Any]:
        if number == 2:
            raise RunningError("another run is active")
        return row("run1" if number == 1 else "run2")

    world = World(tmp_path, monkeypatch, True, True)
    world.on_run = refuse
    assert world.follow() == ["run1", "run2"]
    assert "another run is active; looking again in 0.01 s" in world.said


def test_another_run_on_the_table_refuses_the_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_number: int) -> dict[str, Any]:
        raise RunningError("another run is active")

    world = World(tmp_path, monkeypatch)
    world.on_run = refuse
    with pytest.raises(RunningError):
        world.follow()


def test_a_used_up_budget_ends_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, True, True, True, budget={"requests": 3})
    assert world.follow() == ["run1", "run2"]
    assert [settings.budget.requests for settings, _ in world.started] == [3, 1]
    assert world.said[-1] == "no further round: budget.requests: 3 is used up"
