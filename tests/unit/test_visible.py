"""Texts of servers and users on a terminal: every command prints them literally, and no terminal obeys them."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import terminal
from deltatap.analysis.compare import Counted, Difference
from deltatap.analysis.facts import Changed
from deltatap.analysis.metrics import METRICS
from deltatap.analysis.series import Change, Measure, Point, Series
from deltatap.cli.runner import guarded, say
from deltatap.cli.trend_text import show_trend, trend_json
from deltatap.driver import estimate_text
from deltatap.driver.active import ActiveRun
from deltatap.driver.estimate import Estimate
from deltatap.driver.progress import Display, Snapshot
from deltatap.errors import LandingError
from deltatap.reconcile import charges
from deltatap.settings_loading import load_settings
from deltatap.sweep import output
from deltatap.sweep.running import Swept
from deltatap.sweep.stages import Plan
from deltatap.terminal.reconciled import reconciled_json, show_reconciled
from deltatap.visible import json_text, visible
from tests.printing import CAPTURE, NOW, RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

# A title, a cleared screen, a color in C1, DEL, a hidden start of a line, reordered text, and markup of rich.
BAD = "[/][red]x[/red]\x1b]0;t\x07\x1b[2J\x9b31m\x7f\rover\u202eabc\u2066d"
SHOWN = r"[/][red]x[/red]\x1b]0;t\x07\x1b[2J\x9b31m\x7f\x0dover\u202eabc\u2066d"
OBEYED = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
AT = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)
NONE = {"count": 0, "p50": None, "p95": None}
OUTCOME: dict[str, Any] = {"mode": BAD, "status": "failed", "why": BAD, "rows": 2, "retries": None, "example": BAD,
                           "checked": 0, "flagged": 0, "failed_checks": 0}  # fmt: skip
FAILURE = {"request_id": BAD, "mode": BAD, "status": BAD, "type": BAD, "code": BAD, "http_status": 500, "message": BAD,
           "final": False, "api": "chat", "body": None}  # fmt: skip
HOSTILE_CAPTURE = CAPTURE | {
    "request_id": BAD, "run_id": BAD, "mode": BAD, "status": BAD, "response_model": BAD,
    "error": {"type": BAD, "code": BAD, "message": BAD, "http_status": 502},
    "request": json.dumps({"messages": [{"content": BAD, "role": "user"}], "model": "m"}),
    "retries": [{"error_type": BAD, "text": None}],
    "partial_moderation": json.dumps([{"choice": 0, "chunk": 1, "chars": 1, "flagged": True, "seen": 2, "categories": [BAD],
                                       "error": BAD}]),
    "choices": [{"index": 0, "text": BAD, "reasoning": BAD, "refusal": BAD, "tool_calls": BAD}],
}  # fmt: skip
METRIC_ROW: dict[str, Any] = {metric.name: NONE for metric in METRICS} | {
    "run_id": BAD, "request_model": BAD, "endpoint": BAD, "mode": BAD, "rows": 1, "late": 0, "cached_share": None,
    "inter_chunk_ms": NONE, "checked": 0,
}  # fmt: skip
DIFFERENCES = {("stream", "ttft_ms", "p50"): Difference(100.0, 130.0, 20.0, 40.0)}
POINTS = tuple(Point(BAD + str(at), AT, 30, 1.0, 1.0, 1.0, {BAD: BAD + str(at)}) for at in range(2))
SERIES = Series(BAD, BAD, BAD, Measure("ttft_ms", "p50"), POINTS,
                (Change(POINTS[1].run_id, AT, 1, 1, Difference(1.0, 2.0, 0.5, 1.5), 0.0, (Changed(BAD, BAD, BAD),)),))  # fmt: skip
TREND_RUNS = [{"run_id": point.run_id, "labels": {BAD: f"{BAD}{at}"}} for at, point in enumerate(POINTS)]
CHARGE = charges.Charge((BAD,), 1, 2, 3, 4, Decimal(1))
RECONCILED = charges.Reconciled(
    (charges.Difference(BAD, BAD, 1, {}, Decimal(1), (BAD,)),), {BAD: CHARGE}, {BAD: CHARGE}
)
ESTIMATE = Estimate(BAD, "stream", 2, 0, 16, 2, None, None, None, 0, elsewhere=(BAD,), tier=BAD)
SWEPT = Swept(sweep=BAD, points=(), found=None, reason=BAD)
SETTINGS, PLAN = load_settings({"analysis": {"slo": {"ttft_ms": 500}}}), Plan((), 30.0, 0.95)


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from strings(each)


def fail(error: Exception) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def progress(console: Console) -> None:
    times = iter([0.0, 100.0])
    snapshot = Snapshot(3, {BAD: 1}, errors={BAD: 2}, waits_s=3.0, waits_for=BAD)
    with Display(console, lambda: next(times)) as display:
        display.update(snapshot, note=BAD)


def compared(console: Console) -> None:
    terminal.show_counts(
        console,
        {BAD: BAD},
        [{"run_id": BAD, "completed": 2, "interrupted": 0, "failed": 0, "retries": 0, "cost_usd": None}] * 2,
        {},
    )
    terminal.show_comparison(console, (BAD, BAD), DIFFERENCES, {"stream": [Counted(2, {"late": 1}), Counted(2, {})]})


def said_by_a_run(console: Console) -> None:
    ActiveRun.say(type("Run", (), {"console": console})(), BAD)


PRINTED: dict[str, Callable[[Console], object]] = {
    "runs": lambda console: terminal.show_runs(
        console, [RUN | {"run_id": BAD, "reason": BAD, "status": BAD, "labels": {BAD: BAD}}], {}, {}, NOW
    ),
    "runs: prices": lambda console: terminal.show_price_changes(console, [(BAD, Changed(BAD, BAD, BAD))]),
    "summary": lambda console: terminal.show_summary(
        console, RUN | {"run_id": BAD, "status": BAD}, [OUTCOME, OUTCOME | {"mode": "stream", "status": "completed"}], [],
        [{"model": BAD, "cost_usd": 0.25}, {"model": "b", "cost_usd": 1.25}],
    ),
    "show": lambda console: terminal.show_capture(console, HOSTILE_CAPTURE),
    "show: reused": lambda console: terminal.show_capture(
        console, HOSTILE_CAPTURE | {"reused_from": {"run_id": BAD, "request_id": BAD}}
    ),
    "failures": lambda console: terminal.show_failures(console, BAD, [FAILURE, FAILURE | {"mode": "stream"}], 2),
    "analyze": lambda console: terminal.show_metrics(console, [METRIC_ROW]),
    "compare": compared,
    "trend": lambda console: show_trend(console, [SERIES], TREND_RUNS),
    "reconcile": lambda console: show_reconciled(console, RECONCILED, BAD),
    "capture --dry-run": lambda console: estimate_text.show(console, [ESTIMATE]),
    "capture, record: progress": progress,
    "capture, record: messages": said_by_a_run,
    "sweep": lambda console: say(console, "\n".join(output.lines(SWEPT, PLAN, SETTINGS))),
    "check, load, watch, …: messages": lambda console: say(console, BAD, "warning"),
    "an error": lambda console: guarded(console, fail(LandingError(BAD))),
    "an unexpected error": lambda console: guarded(console, fail(OSError(BAD)), BAD),
}  # fmt: skip


@pytest.mark.parametrize("command", PRINTED)
@pytest.mark.parametrize("width", [80, 1000])
def test_no_command_lets_the_terminal_obey_a_text(command: str, width: int) -> None:
    console = terminal.plain_console()
    console.file, console.width = out = io.StringIO(), width
    PRINTED[command](console)
    text = out[0].getvalue()
    assert OBEYED.findall(text) == []
    # A narrow table folds its cells.
    assert (SHOWN if width > len(SHOWN) else "[/][red]x") in text


def test_a_live_display_shows_only_escapes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = terminal.plain_console()
    console.file = out = io.StringIO()
    progress(console)
    text = out.getvalue()
    assert "\x1b[?25l" in text, "it hides the cursor"
    assert r"\x1b]0;t" in text
    assert [bad for bad in ("\x1b]0", "\x1b[2J\\x9b", "\x07", "\x9b", "\x7f", "\u202e") if bad in text] == []


def test_a_traceback_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal.plain_console()
    console.file = io.StringIO()
    assert guarded(console, fail(ValueError(BAD))) == 1
    shown = capsys.readouterr().err
    assert SHOWN in shown
    assert OBEYED.findall(shown) == []


@pytest.mark.parametrize(
    "text",
    {
        "compare": terminal.comparison_json(BAD, BAD, DIFFERENCES, []),
        "trend": trend_json([SERIES], TREND_RUNS, []),
        "sweep": output.as_json(SWEPT, PLAN, SETTINGS),
        "reconcile": json_text(reconciled_json(RECONCILED, [BAD]), ensure_ascii=True),
    }.values(),
)
def test_json_stays_valid_and_has_no_control_characters(text: str) -> None:
    assert OBEYED.findall(text) == []
    assert any(BAD in each for each in strings(json.loads(text)))


def test_lines_tabs_and_other_scripts_stay_as_they_are() -> None:
    for text in ("a\r\nb\tc\n", "größe 🙂 שלום", "\u200d\u2028"):
        assert visible(text) == text
    assert visible("a\ud800") == r"a\ud800"
    assert json_text([math.inf, {"a": (math.nan, 1.5)}]) == '[null, {"a": [null, 1.5]}]'
    assert json.loads(json_text({"ä\x9b": "\x7f\ud800"})) == {"ä\x9b": "\x7f\ud800"}
