"""The report of real runs, in a real browser."""

from __future__ import annotations

import html
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.delta.reader import SparkReader
from deltatap.driver.run import run
from deltatap.errors import ConfigError
from deltatap.prices import Prices
from deltatap.report import write_report
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.browser import opened
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

ATTACK = "</script><script>document.title='owned'</script><!--<script>"
DRAWN = "document.querySelectorAll('.plot').length === document.querySelectorAll('.js-plotly-plot').length"
PLOTS = {"saved", "ttft", "gaps", "waterfall", "stalls", "load", "errors", "tokens"}


@pytest.fixture(scope="module")
def two_runs(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[str]]:
    folder = tmp_path_factory.mktemp("report")
    rows: list[tuple[str | None, ...]] = [(f"q{at:02d}", f"Prompt {at}?", "gpt-4o-mini") for at in range(20)]
    rows += [("cut", "x", "gpt-4o-mini!cut@5"), ("limited", "x", "gpt-4o-mini!429=0.05:1"), (ATTACK, ATTACK, None)]
    rows.append(("bad", " ", None))
    prompts.write(spark, folder / "prompts", rows)
    runs = []
    with start_simulator("--ttft-ms", "40", "--itl-ms", "4", "--tokens", "30") as simulator:
        for temperature in (0, 1):
            capture = {"mode": "paired", "owed": "all", "max_broken": 1, "max_attempts": 1}
            request = {"temperature": temperature}
            labels = {"labels": {"temperature": str(temperature)}}
            analysis = {"slo": {"ttft_ms": 10_000}}
            settings = load_settings(
                prompts.config(
                    folder, simulator.base_url, capture=capture, request=request, run=labels, analysis=analysis
                )
            )
            runs.append(run(settings, spark, Prices(), Console(file=io.StringIO())).row["run_id"])
    return settings, runs


def element_text(page: str, id_: str) -> str:
    """The text of an element that has no nested element of the same kind."""
    found = re.search(rf'<(\w+)[^>]* id="{id_}"[^>]*>(.*?)</\1>', page, re.DOTALL)
    assert found, id_
    return html.unescape(re.sub(r"<[^>]+>", "", found[2]))


@pytest.mark.slow
@pytest.mark.chromium
def test_the_report_of_one_run_draws_and_replays_in_a_browser(
    spark: SparkSession, two_runs: tuple[Settings, list[str]], tmp_path: Path
) -> None:
    settings, runs = two_runs
    page = tmp_path / "some" / "report.html"
    assert write_report(SparkReader(spark), settings, [], page) == runs[-1:]
    assert page.stat().st_size < 15_000_000
    shown, console = opened(
        page.as_uri() + "#play=0",
        tmp_path / "browser",
        f"{DRAWN} && document.getElementById('replay-streamed').textContent",
    )
    assert console == []
    assert "<title>deltatap: " in shown, "text of a row ran as a script"
    for name in PLOTS:
        drawn = re.search(rf'id="plot-{name}".*?</figure>', shown, re.DOTALL)
        assert drawn, name
        assert "<svg" in drawn[0], name
    source = page.read_text()
    streams = json.loads(re.search(r"^const STREAMS = (.*);$", source, re.MULTILINE)[1])  # type: ignore[index]
    assert any(stream["why"] == "broken" for stream in streams)
    assert all(stream["paired"] for stream in streams if stream["why"] != "broken")
    played = element_text(shown, "replay-streamed")
    assert played, "the replay does not play"
    assert "".join(text for _, text, _ in streams[0]["chunks"]).startswith(played)
    assert element_text(shown, "replay-clock") != "0 ms"
    for expected in (
        "TTFT p50",
        "Time saved by streaming",
        "Interrupted and failed",
        "stream_interrupted",
        "rate_limit",
    ):
        assert expected in source
    assert "const FIGURES" in source
    assert "https://cdn" not in source.split("<script>")[0], "the page needs the network"


@pytest.mark.slow
@pytest.mark.chromium
def test_the_report_of_two_runs_shows_their_differences(
    spark: SparkSession, two_runs: tuple[Settings, list[str]], tmp_path: Path
) -> None:
    settings, runs = two_runs
    page = tmp_path / "report.html"
    assert write_report(SparkReader(spark), settings, runs, page) == runs
    shown, console = opened(page.as_uri(), tmp_path / "browser", DRAWN)
    assert console == []
    assert "Differences" in shown
    numbers = shown.partition('id="numbers"')[2].partition("</section>")[0]
    assert numbers.count("<caption>") == 13, "two runs, three models, two modes; and paired"
    assert "temperature=0, gpt-4o-mini, stream" in shown
    overview = shown.partition('id="overview"')[2].partition("</section>")[0]
    assert "<caption>By run, model, mode</caption>" in overview
    assert re.findall(r'<th scope="row">(.*?)</th>', overview) == ["temperature=0"] * 6 + ["temperature=1"] * 6
    assert "Good: completed with TTFT ≤ 10,000 ms." in overview
    assert element_text(shown, "requests-count").startswith("96 of 96 rows")
    errors = html.unescape(shown.partition('id="failures"')[2].partition("</section>")[0])
    assert "invalid_request: " in errors
    assert "#request=bad&run=" in errors
    assert "The request was not sent" in shown.partition('id="left-out"')[2]


@pytest.mark.slow
@pytest.mark.chromium
def test_the_report_of_a_single_row_logs_no_errors(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    prompts.write(spark, tables / "prompts", [("only", "x")])
    with start_simulator("--speed", "0", "--tokens", "1", "--sigma", "0") as simulator:
        settings = load_settings(prompts.config(tables, simulator.base_url))
        run(settings, spark, Prices(), Console(file=io.StringIO()))
    page = tmp_path / "report.html"
    write_report(SparkReader(spark), settings, [], page)
    _, console = opened(page.as_uri(), tmp_path / "browser", DRAWN)
    assert console == []


def test_a_report_without_captures_runs_or_rows_is_refused(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    with pytest.raises(ConfigError, match="capture something first"):
        write_report(SparkReader(spark), settings, [], tmp_path / "report.html")
    delta_tables.ensure(spark, settings.runs.table, columns.RUNS)
    with pytest.raises(ConfigError, match="run nobody does not exist on this captures table; newest: none"):
        write_report(SparkReader(spark), settings, ["nobody"], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="no run has rows yet"):
        write_report(SparkReader(spark), settings, [], tmp_path / "report.html")
