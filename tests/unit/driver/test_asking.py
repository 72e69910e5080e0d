"""Requests to stop a run, in virtual time: each wait is a turn of the driver, which may start, answer or end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.driver.asking import PATIENCE_S, Asked, ask_to_stop
from deltatap.errors import ConfigError
from deltatap.messages import POLL_S, Control
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class World:
    """The state folder, and a driver that acts at a time: seconds since the start."""

    def __init__(self, folder: Path, acts: dict[float, Callable[[], object]] | None = None) -> None:
        self.folder, self.acts, self.now = folder, acts or {}, 0.0

    def publish(self, epoch: int, stop: str | None = None, run_id: str = "one") -> None:
        state = RunState.of(self.folder, run_id)
        state.prepare()
        state.publish(Control(epoch, beat=1, stop=stop))

    def asked(self, epoch: int, run_id: str = "one") -> bool:
        return RunState.of(self.folder, run_id).asked_to_stop(epoch)

    def ask(self, run_id: str = "") -> Asked:
        def sleep(seconds: float) -> None:
            self.now += seconds
            if act := self.acts.pop(self.now, None):
                act()

        return ask_to_stop(self.folder, run_id, clock=lambda: self.now, sleep=sleep)


@pytest.mark.parametrize("run_id", ["", "one"])
@pytest.mark.parametrize("left", [None, "ended"])
def test_a_run_that_is_about_to_start_is_asked(tmp_path: Path, run_id: str, left: str | None) -> None:
    """As between two rounds of `capture.follow_s`, or beside the folder of a failed run."""
    world = World(tmp_path)
    if left is not None:
        world.publish(1, stop=left)
    world.acts = {3.0: lambda: world.publish(2), 4.0: lambda: world.publish(2, stop="stopped")}
    assert world.ask(run_id) == Asked("one", answered=True)
    assert world.asked(2)
    assert world.now == 4.0


def test_the_driver_that_resumes_a_killed_run_is_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path)

    def start() -> None:
        assert world.asked(1), "the message of the killed driver looked like that of an active one"
        RunState.of(tmp_path, "one").forget_stop()
        world.publish(2)

    world.publish(1)
    world.acts = {8.0: start, 15.0: lambda: world.publish(2, stop="stopped")}
    assert world.ask() == Asked("one", answered=True), "the new driver has as long as the first one to answer"
    assert world.asked(2)


def test_a_driver_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    assert world.ask() == Asked("one", answered=False)
    assert world.now == PATIENCE_S


def test_a_run_that_ends_meanwhile_needs_no_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    world.acts = {POLL_S: RunState.of(tmp_path, "one").remove}
    assert world.ask() == Asked("one", answered=True)
    assert world.now == POLL_S


def test_a_command_between_two_rounds_answers_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1, stop="completed")
    assert world.ask() == Asked("one", answered=True)
    assert world.asked(1)


def test_a_message_that_is_being_replaced_does_not_hide_a_run(tmp_path: Path) -> None:
    """Otherwise the other run would be the only active one, and be stopped."""
    world = World(tmp_path)
    world.publish(1)
    world.publish(1, run_id="two")
    path = RunState.of(tmp_path, "two").folder / "control.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    world.acts = {0.05: lambda: path.write_bytes(whole)}
    with pytest.raises(ConfigError, match="several runs are active here; name one: one, two"):
        world.ask()
    assert not world.asked(1)


def test_nothing_is_asked_if_no_run_starts(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(ConfigError, match="no run is active here"):
        world.ask()
    assert world.now == PATIENCE_S
    world.publish(1)
    with pytest.raises(ConfigError, match="run two is not active here; active runs: one"):
        world.ask("two")
    assert not world.asked(1)
