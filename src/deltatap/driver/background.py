"""Background threads that keep their errors for the control loop.

Capture, landing and the lease each have a thread, because each waits for Spark, and the control loop must not wait.
``loop.py`` and ``run.py`` decide what an error means.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Background(threading.Thread):
    """A daemon thread that runs a function once. It starts when it is created.

    Attributes:
        error: what the function raised; None if it is running or has returned.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=f"deltatap-{name}", daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Run the function; for ``threading``."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the control loop decides
            self.error = error


class Periodic(Background):
    """A daemon thread that repeats a step until it is stopped, or until the step fails too often in a row."""

    def __init__(self, name: str, step: Callable[[], None], *, every_s: float, tries: int = 1) -> None:
        """Start; the first step comes after the first wait.

        Args:
            name: of the thread.
            step: what to repeat.
            every_s: how long to wait before each step, in seconds.
            tries: how many steps in a row must fail before the thread ends with the last error.
        """
        self._step, self._every_s, self._tries = step, every_s, tries
        self._stopped = threading.Event()
        super().__init__(name, self._repeat)

    def stop(self) -> None:
        """Wait for the current step, and end the thread."""
        self._stopped.set()
        self.join()

    def _repeat(self) -> None:
        failures = 0
        while not self._stopped.wait(self._every_s):
            try:
                self._step()
                failures = 0
            except Exception:
                failures += 1
                if failures == self._tries:
                    raise
