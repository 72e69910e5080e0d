from __future__ import annotations

import threading

import pytest

from deltatap.driver.background import Background, Periodic


def test_a_background_thread_keeps_its_error() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    thread = Background("test", fail)
    thread.join()
    assert isinstance(thread.error, KeyboardInterrupt)
    assert thread.name == "deltatap-test"


class Steps:
    """A step with the given outcomes. It sets an event after the last one."""

    def __init__(self, *fails: bool) -> None:
        self.fails, self.done = list(fails), 0
        self.used_up = threading.Event()

    def __call__(self) -> None:
        self.done += 1
        fails = self.fails.pop(0) if self.fails else False
        if not self.fails:
            self.used_up.set()
        if fails:
            raise OSError(f"step {self.done}")


@pytest.mark.parametrize(
    ("fails", "tries", "error"),
    [
        ((True,), 1, "step 1"),
        ((True, True), 2, "step 2"),
        ((True, False, True), 2, None),
        ((False, True, True, True, True, True), 5, "step 6"),
        ((True, True, True, True, False, True), 5, None),
    ],
)
def test_a_periodic_thread_ends_after_consecutive_failures(
    fails: tuple[bool, ...], tries: int, error: str | None
) -> None:
    steps = Steps(*fails)
    thread = Periodic("test", steps, every_s=0.001, tries=tries)
    assert steps.used_up.wait(10)
    if error is not None:
        thread.join(10)
        assert not thread.is_alive()
    thread.stop()
    assert (str(thread.error) if thread.error else None) == error


def test_a_periodic_thread_waits_before_its_first_step() -> None:
    steps = Steps()
    thread = Periodic("test", steps, every_s=60)
    thread.stop()
    assert steps.done == 0
