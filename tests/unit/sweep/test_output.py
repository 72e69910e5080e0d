from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from deltatap import cli
from deltatap.settings_loading import load_settings
from deltatap.sweep import output
from deltatap.sweep.chart import figure, write_chart
from deltatap.sweep.running import Swept
from deltatap.sweep.search import Found
from deltatap.sweep.stages import Plan, Point

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = load_settings({"analysis": {"slo": {"ttft_ms": 500}}})
PLAN = Plan((), 30.0, 0.95)
FOUND = Found(4.0, 4.0, 8.0)
POINTS = (
    Point(4.0, 120, 120, "s-01", 3.9, 200.0, 300.0, 900.0, 990.0, 1.0),
    Point(8.0, 240, 60, "s-02", 2.1, 800.0, 1900.0, 1500.0, 2990.0, 120.0),
)


def swept(found: Found | None = FOUND, **values: Any) -> Swept:
    return Swept(**{"sweep": "s", "points": POINTS, "found": found, **values})


def test_the_table_fits_into_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(output.table(swept(), PLAN))
    text = out.getvalue()
    assert "…" not in text
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["4", "120/120", "3.9", "200.0", "300.0", "1.0", "yes"],
        ["8", "60/240", "2.1", "800.0", "1,900.0", "120.0", "no"],
    ]


def test_whole_answers_show_their_end() -> None:
    point = Point(4.0, 120, 120, "s-01", 3.9, None, None, 900.0, 990.0, 1.0)
    out = io.StringIO()
    Console(file=out, width=80).print(output.table(swept(points=(point,)), PLAN))
    assert "E2E p50 ms" in out.getvalue()
    assert "900.0" in out.getvalue()


def said(*arguments: Any, **values: Any) -> list[str]:
    return list(output.lines(swept(*arguments, **values), PLAN, SETTINGS))


def test_the_result_in_words() -> None:
    what = "95 % of requests have ttft_ms at most 500"
    late = "at 8 per second and above, requests started late (p99 120 ms): raise capture.concurrency (64) to measure only the server"
    assert said() == [f"result: 4 requests per second (interval: 4 to 8): at least {what}", late]
    calm = {"points": POINTS[:1]}
    assert said(Found(4.0, None, 8.0), **calm) == [
        f"result: 4 requests per second (interval: below 8): at least {what}"
    ]
    (top,) = said(Found(4.0, 4.0, None), **calm)
    assert top.startswith(f"result: at least 4 requests per second, the highest tested rate: at least {what}; ")
    hint = "raise --duration to test lower rates"
    assert said(Found(None, None, 4.0), **calm) == [f"result: none; at every tested rate, fewer than {what}: {hint}"]
    assert said(None, reason="budget.requests: 5 is used up", **calm) == [
        "sweep s has not ended: budget.requests: 5 is used up; to continue it, raise the budget and run the command again"
    ]


def test_given_rates_that_do_not_hold_are_to_be_lowered() -> None:
    (result, _) = output.lines(swept(Found(None, None, 4.0)), Plan((4.0, 8.0), 30.0, 0.95), SETTINGS)
    assert result.endswith(": lower --rates, or raise --duration")


def test_small_stages_without_a_result_are_said_in_the_same_line() -> None:
    points = (Point(1.0, 16, 10, "s-01"), Point(2.0, 120, 60, "s-02"))
    (line,) = said(Found(None, None, 1.0), points=points)
    assert line == (
        "result: none; at every tested rate, fewer than 95 % of requests have ttft_ms at most 500; "
        "but the smallest stage had 16 requests, too few to decide this: "
        "raise --duration to test lower rates, with 100 or more requests in each stage"
    )


@pytest.mark.parametrize(
    ("found", "failed", "code"),
    [(FOUND, False, cli.OK), (Found(None, None, 4.0), False, 3), (None, False, cli.OK), (None, True, cli.FAILED)],
)
def test_a_sweep_without_a_rate_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Found | None, code: int, *, failed: bool
) -> None:
    monkeypatch.setattr("deltatap.driver.needs.preflight", lambda _: None)
    monkeypatch.setattr("deltatap.cli.sweeping.session", lambda *_: None)
    ended = swept(found, reason=None if found else "stopped", failed=failed)
    monkeypatch.setattr("deltatap.sweep.running.sweep", lambda *_: ended)
    config = tmp_path / "conf.yml"
    config.write_text("analysis: {slo: {ttft_ms: 500}}")
    assert (
        cli.run(cli.sweep, config, rates=None, duration=30.0, share=0.95, as_json=False, out=tmp_path / "s.html")
        == code
    )


@pytest.mark.parametrize(("share", "needed"), [(0.95, 100), (0.9, 50), (0.99, 500), (0.5, 10), (0.01, 6), (1.0, 1)])
def test_a_stage_with_few_requests_cannot_decide_a_high_share(share: float, needed: int) -> None:
    assert output.fewest(share) == needed
    plan = Plan((), 30.0, share)
    for requests in needed - 1, needed:
        points = (Point(4.0, requests, 0, "s-01"), Point(8.0, 1000, 0, "s-02"))
        _, *more = output.lines(swept(points=points), plan, SETTINGS)
        few = (
            f"the smallest stage had {requests} request{'s' * (requests != 1)}, too few to decide {100 * share:.10g} %"
        )
        assert more == ([] if requests == needed else [f"{few}: raise --duration, for {needed} or more"])


def test_json_has_the_result_and_every_stage() -> None:
    tree = json.loads(output.as_json(swept(), PLAN, SETTINGS))
    assert (tree["sweep"], tree["ended"], tree["rate"], tree["low"], tree["high"]) == ("s", True, 4.0, 4.0, 8.0)
    assert [(each["rate"], each["run_id"], each["holds"]) for each in tree["stages"]] == [
        (4.0, "s-01", True), (8.0, "s-02", False),
    ]  # fmt: skip
    assert tree["slo"] == {"ttft_ms": 500}
    unended = json.loads(output.as_json(swept(None, reason="stopped"), PLAN, SETTINGS))
    assert (unended["ended"], unended["reason"], unended["rate"]) == (False, "stopped", None)


def test_the_chart_opens_without_a_network(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sweep.html"
    write_chart(swept(sweep="<s>"), PLAN, SETTINGS, path)
    page = path.read_text(encoding="utf-8")
    assert "<title>deltatap: &lt;s&gt;</title>" in page
    assert "<script src=" not in page
    assert "goodput" in page
    assert "result: 4 requests per second" in page
    assert "Green: the result and its interval" in page
    assert '"displaylogo": false' in page
    assert '"modeBarButtons": [["toImage"],' in page, "plotly's own set has a button that sends the data to a server"


def test_only_a_chart_with_a_result_explains_green(tmp_path: Path) -> None:
    for found in (None, Found(None, None, 4.0)):
        write_chart(swept(found, reason="stopped"), PLAN, SETTINGS, tmp_path / "sweep.html")
        assert "Green: the result" not in (tmp_path / "sweep.html").read_text(encoding="utf-8")


def test_every_line_of_the_chart_has_a_color_of_its_own() -> None:
    drawn = figure(swept(), SETTINGS)
    assert len({trace.line.color for trace in drawn.data}) == len(drawn.data) == 4
    assert "10,000" in drawn.layout.yaxis2.ticktext, "ticks with all digits, at 1, 2 and 5"
