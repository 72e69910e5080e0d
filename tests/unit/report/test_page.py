"""The page from data in memory, and the error if jinja2 or plotly is not installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import pyarrow as pa
import pytest

from deltatap.analysis.compare import Counted, Difference
from deltatap.analysis.metrics import METRICS
from deltatap.config import Analysis, Settings
from deltatap.errors import ConfigError
from deltatap.model import OUTPUT_KINDS
from deltatap.report.charts import COLORS, KINDS, charts, in_script
from deltatap.report.data import Gathered, Stream, _place, _streams
from deltatap.report.page import _streams as page_streams
from deltatap.report.page import render, write_report

AT = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)
ATTACK = "</script><script>alert(1)</script>"
BODY = json.dumps({"messages": [{"content": f"Ask {ATTACK}", "role": "user"}], "model": "m"})
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from deltatap import errors
import deltatap.analysis.compare, deltatap.terminal
try:
    import deltatap.report
except errors.MissingExtraError as error:
    print(error)
"""


class Row(SimpleNamespace):
    """A row as Spark returns it: with fields by name and by attribute."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def distribution(value: float, count: int = 3) -> Row:
    estimate = Row(value=value, low=None, high=value + 1)
    return Row(count=count, mean=value, p50=estimate, p90=estimate, p95=estimate, p99=estimate)


def metrics_row(**values: Any) -> Row:
    fields: dict[str, Any] = {
        "run_id": "r", "endpoint": "e", "request_model": "m", "mode": "stream", "rows": 10, "completed": 7,
        "interrupted": 2, "failed": 1, "requests": 12, "errors": {"rate_limit": 2, "connection": 3}, "late": 0,
        "input_tokens": 100, "output_tokens": 2000, "cached_share": None, "cost_usd": 0.5,
        "good": None, "good_per_s": None, "checked": 0, "flagged": 0,
        "inter_chunk_ms": Row(count=0, mean=None, p50=None, p90=None, p95=None, p99=None),
    }  # fmt: skip
    return Row(**(fields | {metric.name: distribution(20.0) for metric in METRICS} | values))


def run_row(run_id: str, **labels: str) -> Row:
    return Row(run_id=run_id, status="completed", reason=None, started_at=AT, finished_at=AT, labels=labels or None)


def request_row(run_id: str = "r", request_id: str = "q", **values: Any) -> dict[str, Any]:
    fields = {
        "run_id": run_id, "request_id": request_id, "mode": "stream", "status": "completed", "endpoint": "e",
        "request_model": "m", "finish_reason": "stop", "error": None, "code": None, "http_status": None, "message": None,
        "queued_ms": None, "headers_ms": 1.0, "ttft_ms": 1.26, "e2e_ms": 2.0, "loop_lag_ms": None, "cost_usd": None, "output_tokens": 3, "retries": 0, "at_s": 0.0,
        "text": "text", "length": 4, "api": "chat", "body": BODY,
    }  # fmt: skip
    return fields | values


def requests_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


def gathered(**values: Any) -> Gathered:
    keys = {"run_id": ["r"], "endpoint": ["e"], "request_model": ["m"], "mode": ["stream"]}
    numbers = ("output_tokens", "ttft_ms", "tpot_ms", "stall_ms", "e2e_ms", "loop_lag_ms", "reported", "tiktoken")
    rows = keys | {"request_id": ["q"], "status": ["completed"], "counts": [True]} | {name: [5.0] for name in numbers}
    stream = Stream("q", "r", "median", "completed", None, ((1.0, ATTACK, "content"),), 2.0, 2.0, "text", paired=False)
    data: dict[str, Any] = {
        "analysis": Analysis(),
        "runs": [run_row("r")],
        "metrics": [metrics_row()],
        "rows": pa.table(rows),
        "total": 1,
        "gaps": pa.table(keys | {"bin": [3], "count": [2]}),
        "sizes": pa.table(
            {name: value * 4 for name, value in keys.items()}
            | {"what": ["chunk", "chunk", "chunk", "read"], "tokens": [1, 5, 8, 1000], "count": [6, 1, 1, 2]}
        ),
        "timeline": pa.table({"run_id": ["r"], "at": [0.0], "bin_s": [1.0], "started": [1], "ended": [1]}),
        "errors": pa.table({"run_id": ["r"], "at": [0.0], "bin_s": [1.0], "type": ["server"], "count": [1]}),
        "paired": [],
        "streams": [stream],
        "slowest": [],
        "broken": [],
        "requests": requests_table(request_row()),
        "failures": [],
        "uncounted": [],
    }
    return Gathered(**(data | values))


def test_the_page_shows_every_metric_and_no_text_becomes_a_script() -> None:
    page = render(gathered(), ["r"], {})
    assert all(f">{metric.label}" in page for metric in METRICS)
    assert ATTACK not in page
    assert '"p95":' not in page.split("<script>")[0]
    assert page.count('class="plot"') == 9


def test_the_tokens_per_chunk_are_shares_of_chunks_and_of_reads() -> None:
    chart = next(chart for chart in charts(gathered()) if chart.name == "sizes")
    chunks, reads = chart.figure.data
    shares = {name: (x, y) for name, x, y in zip(chunks.x, chunks.y, reads.y, strict=True) if x or y}
    assert shares == {"1": (75.0, 0.0), "5-8": (25.0, 0.0), "257 or more": (0.0, 100.0)}
    assert (chunks.name, reads.name) == ("stream: in one chunk", "stream: at once")
    none = gathered().sizes.slice(0, 0)
    assert "sizes" not in [chart.name for chart in charts(gathered(sizes=none))], "captured by an older version"


def test_a_series_without_usable_reads_has_no_bars_for_them() -> None:
    chart = next(chart for chart in charts(gathered(sizes=gathered().sizes.slice(0, 3))) if chart.name == "sizes")
    assert [bar.name for bar in chart.figure.data] == ["stream: in one chunk"]


def test_a_run_has_the_same_color_in_every_chart() -> None:
    """Also if the times of an earlier run do not count, so that most charts leave that run out."""
    both = pa.table({"run_id": ["s", "r"], "at": [0.0] * 2, "bin_s": [1.0] * 2, "started": [1] * 2, "ended": [1] * 2})
    of_s = {name: _of_run(getattr(gathered(), name), "s") for name in ("rows", "gaps", "sizes")}
    data = gathered(
        runs=[run_row("r"), run_row("s")], metrics=[metrics_row(), metrics_row(run_id="s")], timeline=both, **of_s
    )
    found = {chart.name: chart.figure.data for chart in charts(data)}
    load = {trace.name: (trace.line.color, trace.line.dash) for trace in found.pop("load")}
    assert load == {
        "started/s r": (COLORS[0], "dot"), "open r": (COLORS[0], None),
        "started/s s": (COLORS[1], "dot"), "open s": (COLORS[1], None),
    }  # fmt: skip
    assert list(load) == ["started/s r", "open r", "started/s s", "open s"], "in the order of the page"
    for name in ("saved", "sizes", "stalls", "tokens"):
        assert found[name][0].marker.color == COLORS[1], name
    for name in ("ttft", "gaps"):
        assert found[name][0].line.color == COLORS[1], name


def _of_run(table: pa.Table, run_id: str) -> pa.Table:
    return table.set_column(table.schema.get_field_index("run_id"), "run_id", [[run_id] * table.num_rows])


def test_a_run_whose_server_reports_no_usage_has_no_chart_of_token_counts() -> None:
    rows = gathered().rows
    reported = rows.schema.get_field_index("reported")
    unreported = rows.set_column(reported, "reported", pa.array([None], pa.int64()))
    assert "tokens" not in [chart.name for chart in charts(gathered(rows=unreported))]


def test_a_run_id_is_shown_once_above_the_figures() -> None:
    assert render(gathered(), ["run-1"], {}).partition("<nav")[0].count("run-1") == 2, "in the title and the heading"
    assert "<strong>s</strong>" in render(gathered(runs=[run_row("r"), run_row("s")]), ["r", "s"], {})


def two_runs(**values: Any) -> Gathered:
    runs = [run_row("r"), run_row("s", variant="hot")]
    table = requests_table(request_row(), request_row("s", "q2"))
    stream = Stream("q2", "s", "slow start", "completed", None, ((1.0, "x", "content"),), 2.0, 2.0, "x", paired=False)
    return gathered(
        runs=runs, metrics=[metrics_row(), metrics_row(run_id="s")], requests=table, streams=[stream], **values
    )


@pytest.mark.parametrize(("e2e_ms", "end"), [(2.0, 2.0), (0.98, 1.0), (None, 1.0)])
def test_a_replay_ends_with_the_stream_but_not_before_its_last_chunk(e2e_ms: float | None, end: float) -> None:
    stream = Stream("q", "r", "median", "completed", None, ((1.0, "x", "content"),), e2e_ms, 2.0, "x", paired=False)
    assert [each["end"] for each in page_streams(gathered(streams=[stream]), {})] == [end]


def test_of_several_runs_each_part_of_the_page_names_its_run() -> None:
    page = render(two_runs(), ["r", "s"], {})
    assert "<title>deltatap: r, variant=hot</title>" in page
    assert "<strong>variant=hot</strong> s:" in page
    assert "<caption>By run</caption>" in page
    assert re.findall(r'<th scope="row">(r|variant=hot)</th><td>7 of 10</td><td>20</td>', page) == [
        "r",
        "variant=hot",
    ]
    assert "q2 (slow start), variant=hot</option>" in page
    assert '{"id":"s","name":"variant=hot"}' in page
    assert "<caption>variant=hot, m at e, stream" in page
    assert 'data-key="run"' in page
    assert 'data-key="run"' not in render(gathered(), ["r"], {})


def test_each_later_run_is_compared_with_the_first_in_the_order_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = ("stream", "ttft_ms", "p50")
    found = {"t": {key: Difference(20.0, 25.0, 1.0, 9.0)}, "s": {key: Difference(20.0, 17.0, None, None)}, "u": {}}
    asked: list[Any] = []

    def compare_each(_: object, __: object, *given: Any) -> Any:
        asked.extend(given)
        return found

    runs = [run_row(run_id, night=night) for run_id, night in zip("rstu", ("one", "two", "three", "four"), strict=True)]
    monkeypatch.setattr("deltatap.report.page.gather", lambda *_: gathered(runs=runs))
    monkeypatch.setattr("deltatap.report.page.require_runs", lambda *given: [{"run_id": each} for each in given[2]])
    monkeypatch.setattr("deltatap.report.page.compare_each", compare_each)
    path = tmp_path / "report.html"
    assert write_report(cast("Any", None), Settings(), ["r", "t", "s", "r", "u"], path) == ["r", "t", "s", "u"]
    assert asked == ["r", ["t", "s", "u"]]
    section = path.read_text(encoding="utf-8").partition('<section id="differences">')[2].partition("</section>")[0]
    assert re.findall("<caption>(.*)</caption>", section) == [
        "night=three minus night=one",
        "night=two minus night=one",
    ]
    rows = re.findall(r"<tr( class=.clear.)?><th scope=.row.>TTFT p50, stream</th><td>20.0</td>(.*?)</tr>", section)
    assert [row[1] for row in rows] == [
        "<td>25.0</td><td>+5.0</td><td>+1.0 to +9.0</td>",
        "<td>17.0</td><td>-3.0</td><td></td>",
    ]
    assert [bool(row[0]) for row in rows] == [True, False]


@pytest.mark.parametrize("name", ["slowest", "broken"])
def test_a_slow_request_says_which_model_and_where_the_time_went(name: str) -> None:
    row = request_row(queued_ms=3.0, headers_ms=5000.7, ttft_ms=5158.6, e2e_ms=6000.0, prompt="Ask.")
    page = render(gathered(**{name: [row]}), ["r"], {})
    said = "m, stream, queued 3.0 ms, headers after 5,000.7 ms, TTFT 5,158.6 ms, E2E 6,000.0 ms</span>"
    assert said in page


def test_the_page_repeats_that_the_machine_was_busy() -> None:
    busy = {("stream", "r"): Counted(100, {}, busy=6), ("stream", "s"): Counted(100, {}, busy=5)}
    of_one = render(gathered(busy=busy | {("complete", "r"): Counted(100, {}, busy=9)}), ["r"], {})
    assert "complete, r: the machine" not in of_one, "a whole answer has no TTFT"
    assert "stream, r: the machine that captured was busy during 6 of 100 rows, so a TTFT can be too long" in of_one
    of_two = render(two_runs(busy=busy), ["r", "s"], {})
    assert "stream, r: the machine that captured was busy during 6 of 100 rows, so a difference can" in of_two
    assert "variant=hot: the machine" not in of_two, "few rows change no p95"
    assert "machine" not in render(gathered(), ["r"], {})


def failure(**values: Any) -> dict[str, Any]:
    fields = {
        "type": "server", "calls": 1, "rows": 1, "kinds": 1, "place": 1, "same": 1, "code": None, "http_status": 500,
        "message": ATTACK, "example": 1, "run_id": "r", "request_id": ATTACK, "mode": "stream",
    }  # fmt: skip
    return fields | values


def test_errors_link_to_the_requests_of_the_table_and_their_text_stays_text() -> None:
    table = requests_table(request_row(request_id=ATTACK, message=ATTACK, text=ATTACK))
    page = render(gathered(requests=table, failures=[failure()]), ["r"], {})
    assert ATTACK not in page
    link = re.search(r'href="#request=([^&"]*)&amp;run=r&amp;mode=stream"', page)
    assert link
    assert unquote(link[1]) == ATTACK
    absent = render(gathered(failures=[failure()]), ["r"], {})
    assert 'href="#request=' not in absent, "a link to a request that the table does not have"


def test_rows_left_out_are_counted_and_explained() -> None:
    uncounted = [left(rows=2, lag_ms=80.0, late=True)]
    page = render(gathered(uncounted=uncounted, total=10), ["r"], {})
    assert "8 of 10 rows are in the time metrics" in page
    assert "ran up to 80 ms late (more than 50 ms)" in page
    assert 'id="left-out"' not in render(gathered(), ["r"], {})


def left(**values: Any) -> dict[str, Any]:
    fields = {
        "run_id": "r", "endpoint": "e", "request_model": "m", "mode": "stream", "status": "completed", "late": False,
        "started": True, "rows": 1, "lag_ms": None,
    }  # fmt: skip
    return fields | values


def test_the_table_of_requests_says_when_it_does_not_have_all_rows() -> None:
    assert "The first 1 of 5 rows; interrupted and failed rows come first." in render(gathered(total=5), ["r"], {})
    page = render(gathered(), ["r"], {})
    assert "The only row." in page
    assert 'data-key="cost_usd"' in page


def test_every_part_of_the_page_names_a_mode_as_the_tables_do() -> None:
    rows = gathered().rows
    rows = pa.concat_tables([rows, rows.set_column(rows.schema.get_field_index("mode"), "mode", [["complete"]])])
    metrics = [metrics_row(), metrics_row(mode="complete")]
    found = {chart.name: chart for chart in charts(gathered(rows=rows, metrics=metrics))}
    assert [trace.name for trace in found["saved"].figure.data] == ["stream: TTFT", "complete: E2E"]


def test_plotly_shows_names_from_tables_as_they_are() -> None:
    name = '<a href="x">&'
    metrics = [metrics_row(run_id=run_id) for run_id in "rs"]
    data = gathered(runs=[run_row("r", v=name), run_row("s")], metrics=metrics)
    found = {chart.name: chart.figure for chart in charts(data)}
    assert found["gaps"].data[0].name == 'v=&lt;a href="x"&gt;&amp;'
    assert found["waterfall"].layout.yaxis.ticktext == ('q, median, v=&lt;a href="x"&gt;&amp;',)


def test_metrics_are_in_the_order_of_the_runs_and_streamed_before_complete() -> None:
    rows = [metrics_row(run_id=run_id, mode=mode) for run_id in "sr" for mode in ("complete", "stream")]
    found = sorted(rows, key=lambda row: _place(cast("Any", row), ["r", "s"]))
    assert [(row.run_id, row.mode) for row in found] == [(run, mode) for run in "rs" for mode in ("stream", "complete")]


@pytest.mark.parametrize(("counts", "dtick"), [([1, 2], 1), ([4, 5], 1), ([5, 5], None), ([40, 1], None)])
def test_ticks_of_failed_calls_are_whole_numbers(counts: list[int], dtick: int | None) -> None:
    kinds = ["server", "timeout"]
    errors = pa.table({"run_id": ["r"] * 2, "at": [0.0] * 2, "bin_s": [1.0] * 2, "type": kinds, "count": counts})
    chart = next(chart for chart in charts(gathered(errors=errors)) if chart.name == "errors")
    assert chart.figure.layout.yaxis.dtick == dtick


def chart_of(name: str, **values: Any) -> Any:
    return next(chart for chart in charts(gathered(**values)) if chart.name == name)


def with_times(name: str, times: list[float]) -> pa.Table:
    rows = gathered().rows.take([0] * len(times))
    return rows.set_column(rows.schema.get_field_index(name), name, [times])


def test_a_few_slow_streams_do_not_hide_the_others() -> None:
    (line,) = chart_of("ttft", rows=with_times("ttft_ms", [101.0] * 50 + [110.0] * 49 + [5000.0])).figure.data
    shares = {x: y for x, y in zip(line.x, line.y, strict=True) if y}
    assert list(shares.values()) == [99.0, 1.0]
    assert (line.y[0], line.y[-1], line.fill) == (0, 0, "tozeroy")
    assert len(line.x) < 60


def test_the_lines_of_several_series_do_not_cover_each_other() -> None:
    metrics = [metrics_row(), metrics_row(request_model="n")]
    rows = gathered().rows
    other = rows.set_column(rows.schema.get_field_index("request_model"), "request_model", [["n"]])
    data = chart_of("ttft", metrics=metrics, rows=pa.concat_tables([rows, other])).figure.data
    assert [line.fill for line in data] == ["none", "none"]
    assert list(data[0].x) == list(data[1].x), "the same bins"


@pytest.mark.parametrize(("longest", "own"), [(59.0, False), (61.0, True)])
def test_an_axis_with_close_values_has_more_than_one_tick(longest: float, own: bool) -> None:  # noqa: FBT001
    axis = chart_of("stalls", rows=with_times("stall_ms", [10.0, longest])).figure.layout.yaxis
    assert (axis.type, bool(axis.tickvals)) == ("log", own)


def test_the_first_requests_do_not_hide_the_rate_of_the_others() -> None:
    at = [0.0, 0.5, 1.5, 2.25]
    timeline = pa.table(
        {"run_id": ["r"] * 4, "at": at, "bin_s": [0.25] * 4, "started": [32, 4, 8, 2], "ended": [0, 4, 8, 34]}
    )
    started, open_ = chart_of("load", timeline=timeline).figure.data
    assert list(zip(started.x, started.y, strict=True)) == [(0.5, 36.0), (1.5, 8.0), (2.25, 4.0)]
    assert open_.y[-1] == 0


def test_a_caption_explains_only_the_modes_of_the_chart() -> None:
    assert "mode complete" not in chart_of("saved").caption
    assert "mode stream" in chart_of("saved").caption


def test_a_series_without_reported_tokens_has_no_chart_of_tokens() -> None:
    rows = gathered().rows
    rows = rows.set_column(rows.schema.get_field_index("reported"), "reported", [pa.array([None], pa.float64())])
    assert "tokens" not in [chart.name for chart in charts(gathered(rows=rows))]


def test_the_longest_stall_is_the_metric() -> None:
    """The sample of streams reads stall_ms of the measured rows, which leaves out chunks without output."""
    asked: list[str] = []

    def query(text: str) -> pa.Table:
        asked.append(text)
        return pa.table({})

    _streams(cast("Any", Row(query=query)), "captures", "measured rows")
    assert any("FROM (measured rows)" in text and "ORDER BY stall_ms" in text for text in asked)
    assert not any("gap_ms" in text for text in asked)


@pytest.mark.parametrize("text", ["</script>", "<!--", "<script>"])
def test_json_cannot_end_a_script(text: str) -> None:
    assert "<" not in in_script(f'"{text}"')


def test_a_page_that_cannot_be_written_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.report.page.gather", lambda *_: gathered())
    monkeypatch.setattr("deltatap.report.page.require_runs", lambda *given: [{"run_id": each} for each in given[2]])
    with pytest.raises(ConfigError, match=r"^/dev/full: cannot be written: No space left on device$"):
        write_report(cast("Any", None), Settings(), ["r"], Path("/dev/full"))


def test_every_output_kind_has_a_color() -> None:
    assert set(KINDS) == set(OUTPUT_KINDS)


@pytest.mark.parametrize("module", ["jinja2", "plotly"])
def test_without_the_extra_only_the_report_fails_and_names_it(module: str) -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT, module], capture_output=True, text=True, check=True)
    assert (
        f"the extra report is not installed ({module} is missing): run `pip install 'deltatap[report]'`" in ended.stdout
    )


def test_missing_intervals_are_blank_and_open_ends_are_marked() -> None:
    pair = Row(
        run_id="r", output_tokens="all", pairs=1, saved_ms=Row(value=5.0, low=None, high=None), slower_ms=Row(value=1.0)
    )
    page = render(gathered(paired=[pair]), ["r"], {})
    assert "<td>5.0</td><td></td><td>1.0</td>" in page
    assert "<td>… to 21.0</td>" in page
