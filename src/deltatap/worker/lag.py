"""How late the event loop ran, and the worst of it since any time. Pure."""

from __future__ import annotations

from bisect import bisect_left


class LagRecord:
    """How late an event loop ran, and the worst of it since any time.

    Only lags that no later one exceeds can be the worst since some time: kept alone, they fall from the oldest to the
    newest, so the worst since a time is the first one after it.
    """

    __slots__ = ("_at", "_lag")

    def __init__(self) -> None:
        self._at: list[float] = []
        self._lag: list[float] = []

    def add(self, at: float, lag: float) -> None:
        """The loop was `lag` seconds late at `at`, in monotonic seconds; times come in order."""
        while self._lag and self._lag[-1] <= lag:
            self._lag.pop()
            self._at.pop()
        self._at.append(at)
        self._lag.append(lag)

    def worst(self, since: float) -> float:
        """The worst lag in seconds since a time; 0 when there was none."""
        at = bisect_left(self._at, since)
        return self._lag[at] if at < len(self._lag) else 0.0
