"""How many jobs the engine has: the jobs submitted and not finished. Above a maximum, the submitting thread waits."""

from __future__ import annotations

import threading


class Unfinished:
    """Counts jobs.

    A blocked thread continues only when there is room for several jobs, because waking a thread costs the event loop as
    much time as a chunk.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._low = maximum - 1 - maximum // 16
        self._count = 0
        self._changed = threading.Condition()

    def add(self, timeout: float) -> bool:
        """Count a job. False if the maximum was reached for `timeout` seconds."""
        with self._changed:
            full = self._count >= self._maximum
            if full and not self._changed.wait_for(lambda: self._count <= self._low, timeout):
                return False
            self._count += 1
            return True

    def remove(self) -> None:
        """A job is finished."""
        with self._changed:
            self._count -= 1
            if self._count in (0, self._low):
                self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until no job is left. False if any is left after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout)
