"""The progress of a run: the sum of the workers' heartbeats, shown live in a terminal or as a line in a log.

``loop.py`` decides when to show it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deltatap.driver.control import working
from deltatap.prices import money

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console, RenderableType

    from deltatap.messages import Heartbeat

# Without a terminal, a line follows after 4 s, 8 s, 16 s and so on; later, every 30 s.
FIRST_LINE_S, LINE_EVERY_S = 4.0, 30.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. All counts are of this driver's plan.

    Attributes:
        owed: requests in the plan.
        rows: captured rows, by status.
        uncalled: rows without a call: invalid prompts, reused answers.
        open: open streams.
        requests: calls made.
        input_tokens, output_tokens, cost_usd: of the calls of finished rows; cost_usd is None if none has a price.
        ttft_ms: the median of the workers' medians; None before the first.
        errors: failed calls of finished rows by error type, including retried calls.
        waits_s: seconds until a request may start; 0 if nothing has to wait.
        waits_for: what the run is waiting for, as text.
    """

    owed: int
    rows: Mapping[str, int] = field(default_factory=dict)
    open: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    ttft_ms: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    waits_s: float = 0.0
    waits_for: str = ""
    uncalled: int = 0

    @property
    def done(self) -> int:
        """Requests captured."""
        return sum(self.rows.values())

    @property
    def called(self) -> int:
        """Requests captured by calls."""
        return self.done - self.uncalled

    def left_s(self, elapsed_s: float) -> float | None:
        """Expected seconds until the end, if every other request needs a call; None if unknown, or at the end."""
        if self.called <= 0 or self.done >= self.owed or elapsed_s <= 0:
            return None
        return (self.owed - self.done) * elapsed_s / self.called

    def counts(self) -> dict[str, Any]:
        """The counts as columns of the run's row."""
        return {
            **{status: self.rows.get(status, 0) for status in ("completed", "interrupted", "failed")},
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }


def snapshot(owed: int, heartbeats: Iterable[Heartbeat], cool_s: float) -> Snapshot:
    """Add up heartbeats. Workers that ended or died count, too: their captures are in the journal.

    Args:
        owed: requests in the plan.
        heartbeats: of the plan's workers.
        cool_s: seconds until a request may start.
    """
    beats = list(heartbeats)
    rows: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for beat in beats:
        rows.update(beat.rows)
        errors.update(beat.errors)
    costs = [beat.cost_usd for beat in beats if beat.cost_usd is not None]
    alive = working(beats)
    waits_s, waits_for = _wait(alive, cool_s)
    ttft = sorted(beat.ttft_ms for beat in alive or beats if beat.ttft_ms is not None)
    return Snapshot(
        owed=owed,
        rows=rows,
        uncalled=sum(beat.uncalled for beat in beats),
        open=sum(beat.open for beat in alive),
        requests=sum(beat.requests for beat in beats),
        input_tokens=sum(beat.input_tokens for beat in beats),
        output_tokens=sum(beat.output_tokens for beat in beats),
        cost_usd=sum(costs) if costs else None,
        ttft_ms=ttft[len(ttft) // 2] if ttft else None,
        errors=errors,
        waits_s=waits_s,
        waits_for=waits_for,
    )


def _wait(alive: Sequence[Heartbeat], cool_s: float) -> tuple[float, str]:
    """How long the run waits, and for what: the server's limits, or retries if nothing else is active."""
    why = [(beat.waits_s, beat.waits_for or "") for beat in alive]
    if cool_s > 0:
        return cool_s, max(why, default=(0.0, ""))[1] or "rate limited by the server"
    return min(why, default=(0.0, ""))


class Display:
    """Shows snapshots: as a live bar in a terminal, else as plain lines, at most every :data:`LINE_EVERY_S`."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Show nothing until the display is entered."""
        self._console, self._clock = console, clock
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._bar = Progress(
            TextColumn("[bold]capture"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("capture", total=None)
        self._started = clock()
        self._due_s = FIRST_LINE_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, now: Snapshot, *, note: str | None = None) -> None:
        """Show a snapshot, followed by a note."""
        elapsed = self._clock() - self._started
        if self._live is not None:
            self._bar.update(self._task, completed=now.done, total=now.owed)
            self._live.update(_shown(self._bar, now, elapsed, note))
        elif elapsed >= self._due_s:
            self._due_s = elapsed + min(elapsed, LINE_EVERY_S)
            self._console.print(line(now, elapsed, note), markup=False, highlight=False, soft_wrap=True)


def line(now: Snapshot, elapsed_s: float, note: str | None = None) -> str:
    """A snapshot as one plain line of text."""
    parts = [f"captured {now.done:,}/{now.owed:,}", *(f"{n:,} {status}" for status, n in now.rows.items() if n)]
    parts += _facts(now, elapsed_s)
    if now.errors:
        parts.append("errors: " + " ".join(f"{kind} {n:,}" for kind, n in now.errors.items()))
    if now.waits_s:
        parts.append(_waiting(now))
    if note:
        parts.append(note)
    return ", ".join(parts)


def _shown(bar: Progress, now: Snapshot, elapsed_s: float, note: str | None) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(bar)
    table.add_row(Text("  ".join(_facts(now, elapsed_s)), style="dim"))
    if now.errors:
        table.add_row(Text("errors  " + "  ".join(f"{kind} {n:,}" for kind, n in now.errors.items()), style="yellow"))
    if now.waits_s:
        table.add_row(Text(_waiting(now), style="yellow"))
    if note:
        table.add_row(Text(note, style="bold"))
    return table


def _waiting(now: Snapshot) -> str:
    return f"waiting {max(1.0, now.waits_s):.0f} s: {now.waits_for}"


def _facts(now: Snapshot, elapsed_s: float) -> list[str]:
    facts = [
        f"{now.open:,} stream{'s' * (now.open != 1)} open",
        f"{now.requests:,} call{'s' * (now.requests != 1)}",
        f"{_rate(now.called, elapsed_s)} requests/s",
        f"{_rate(now.output_tokens, elapsed_s)} tokens/s",
    ]
    if now.ttft_ms is not None:
        facts.append(f"TTFT p50 {now.ttft_ms:,.0f} ms")
    if now.cost_usd is not None:
        facts.append(f"${money(now.cost_usd)}")
    if (left_s := now.left_s(elapsed_s)) is not None:
        facts.append(f"{_duration(left_s)} left")
    return facts


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:  # noqa: PLR2004 - below this, seconds are more useful
        return f"{seconds:,.0f} s"
    return f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"  # noqa: PLR2004 - the same for hours


def _rate(count: int, seconds: float) -> str:
    rate = count / seconds if seconds > 0 else 0.0
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"  # noqa: PLR2004 - two digits are enough
