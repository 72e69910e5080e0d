"""Computes the data that the page shows from the content of a run's folder. A rate compares two moments. Pure.

Knows heartbeats and finished rows. ``folder.py`` reads them from the state folder, ``server.py`` sends the board.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Literal

from deltatap.driver.control import newest, working
from deltatap.driver.progress import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.driver.progress import Snapshot
    from deltatap.messages import Control, Heartbeat

State = Literal["waiting", "running", "stopping", "silent", "ended"]

# The driver sends a message every half second; after this long without a new one, the page says so.
SILENT_S = 15.0
# A driver sends no messages while it plans, or while the last answers land. After this time, it counts as dead.
DEAD_S = 600.0
# Rates cover the last seconds; the page draws minutes of them.
_RATE_S, _DRAWN = 5.0, 240
_FINISHED, _TTFTS = 12, 512
_P50, _P95, _HUNDRED = 49, 94, 100


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished row of the journal."""

    request_id: str
    mode: str
    status: str
    model: str
    ttft_ms: float | None
    e2e_ms: float | None
    error: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The content of a run's folder at one moment.

    Attributes:
        run_id: of the run; empty while there is none.
        control: the driver's message; None before the first.
        heartbeats: of the workers of the latest plan.
        owed: requests in the plan; 0 if there is no plan.
        finished: new rows since the last look.
    """

    run_id: str = ""
    control: Control | None = None
    heartbeats: Sequence[Heartbeat] = ()
    owed: int = 0
    finished: Sequence[Finished] = ()


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    calls: int
    tokens: int
    rows: int
    open: int


@dataclass(slots=True)
class Board:
    """Follows one run.

    Attributes:
        state: of the run.
        reason: why the run is stopping or has ended, as text.
    """

    state: State = "waiting"
    reason: str = ""
    _run_id: str = ""
    _began: float | None = None
    _beat: tuple[int, int] | None = None
    _beat_at: float = 0.0
    _moments: deque[_Moment] = field(default_factory=deque)
    _drawn: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=_DRAWN))
    _ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=_TTFTS))
    _finished: deque[Finished] = field(default_factory=lambda: deque(maxlen=_FINISHED))
    _epoch: int = 0
    _rows: int = 0
    _last: dict[str, Any] = field(default_factory=dict)

    def turn(self, seen: Seen | None, now: float) -> dict[str, Any]:
        """Take the content of the folder, and return the data that the page shows.

        Args:
            seen: None if the folder is gone: a run that has ended removes it.
            now: monotonic seconds.
        """
        if seen is None:
            self.state = "ended"
        elif seen.run_id:
            self._follow(seen, now)
        if self.state == "ended" and self._last:
            self._last |= {"streams": [], "open": 0}
        return {**self._last, "state": self.state, "reason": self.reason, "run": self._run_id}

    def _follow(self, seen: Seen, now: float) -> None:
        self._run_id, self._began = seen.run_id, now if self._began is None else self._began
        self._judge(seen, now)
        if seen.control is not None and seen.control.epoch != self._epoch:
            self._epoch, self._rows = seen.control.epoch, 0
        for row in seen.finished:
            self._rows += 1
            self._finished.appendleft(row)
            if row.ttft_ms is not None:
                self._ttfts.append(row.ttft_ms)
        sums = snapshot(seen.owed, seen.heartbeats, seen.control.cool_s if seen.control else 0.0)
        rates = self._rates(sums, now)
        self._last = {
            **_sums(sums),
            **rates,
            "elapsed_s": now - self._began,
            "ttft": self._ttft(sums),
            "loop_lag_ms": max((beat.loop_lag_ms for beat in working(seen.heartbeats)), default=0.0),
            "workers": len(working(seen.heartbeats)),
            "streams": [
                asdict(stream) for beat in newest(seen.heartbeats) for stream in beat.streams if not beat.ended
            ],
            # Rows that no heartbeat counts yet would contradict the number of rows that are done.
            "finished": [asdict(row) for row in self._finished][max(0, self._rows - sums.done) :],
            "drawn": [[round(now - at, 1), round(tokens, 1), open_] for at, tokens, open_ in self._drawn],
            "recording": self._recording(seen),
        }

    def _recording(self, seen: Seen) -> bool:
        """Whether this is a recording: workers without a plan. A run that has ended may have deleted its plan."""
        if self.state == "ended":
            return bool(self._last.get("recording"))
        return bool(seen.heartbeats) and not seen.owed

    def _judge(self, seen: Seen, now: float) -> None:
        """Decide on the state of the run."""
        control = seen.control
        beat = None if control is None else (control.epoch, control.beat)
        if beat != self._beat:
            self._beat, self._beat_at = beat, now
        silent_s = now - self._beat_at
        if control is not None and control.stop == "ended":
            self.state, self.reason = "ended", ""
        elif silent_s > DEAD_S:
            self.state = "ended"
            self.reason = f"the driver has sent nothing for {silent_s:.0f} s; it is probably dead"
        elif control is not None and control.stop is not None:
            self.state, self.reason = "stopping", f"stopping ({control.stop})"
        elif seen.heartbeats and not working(seen.heartbeats):
            self.state, self.reason = "stopping", "all workers have ended; the last answers are landing"
        elif not seen.heartbeats:
            self.state, self.reason = "running", "no worker has started yet"
        elif silent_s > SILENT_S:
            self.state, self.reason = "silent", f"the driver has sent nothing for {silent_s:.0f} s"
        else:
            self.state, self.reason = "running", ""

    def _rates(self, sums: Snapshot, now: float) -> dict[str, float]:
        """Calls, rows and tokens per second, over the last seconds."""
        moments = self._moments
        moments.append(_Moment(now, sums.requests, sums.output_tokens, sums.done, sums.open))
        while len(moments) > 2 and moments[1].at <= now - _RATE_S:  # noqa: PLR2004 - the first one is older
            moments.popleft()
        first, last = moments[0], moments[-1]
        seconds = last.at - first.at

        def rate(before: int, after: int) -> float:
            return max(0.0, (after - before) / seconds) if seconds > 0 else 0.0

        tokens = rate(first.tokens, last.tokens)
        if not self._drawn or now - self._drawn[-1][0] >= 1.0:
            self._drawn.append((now, tokens, sums.open))
        return {
            "calls_per_s": rate(first.calls, last.calls),
            "rows_per_s": rate(first.rows, last.rows),
            "tokens_per_s": tokens,
        }

    def _ttft(self, sums: Snapshot) -> dict[str, float | None]:
        """Median and 95th percentile of the latest rows; if no rows were seen, the median of the workers."""
        if len(self._ttfts) < 2:  # noqa: PLR2004 - quantiles need two
            return {"p50": sums.ttft_ms, "p95": None}
        cuts = quantiles(self._ttfts, n=_HUNDRED, method="inclusive")
        return {"p50": cuts[_P50], "p95": cuts[_P95]}


def _sums(sums: Snapshot) -> Mapping[str, Any]:
    return {
        "owed": sums.owed,
        "rows": dict(sums.rows),
        "done": sums.done,
        "open": sums.open,
        "calls": sums.requests,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "cost_usd": sums.cost_usd,
        "errors": dict(sums.errors),
        "waits": f"waits {max(1.0, sums.waits_s):.0f} s: {sums.waits_for}" if sums.waits_s else "",
    }


def of_epoch(heartbeats: Iterable[Heartbeat], control: Control) -> list[Heartbeat]:
    """The heartbeats of the latest plan. Those of earlier drivers count other requests."""
    return [beat for beat in heartbeats if beat.epoch == control.epoch]
