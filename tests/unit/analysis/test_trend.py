"""Trends of nightly runs, read without a JVM, and what the command prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from deltatap import cli
from deltatap.analysis.compare import Difference
from deltatap.analysis.series import Measure, conditions_on, judged, labels_of, parse_measure
from deltatap.analysis.trend import ended_runs, trend
from deltatap.delta import columns
from deltatap.delta.local import LocalReader
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests.local import no_spark
from tests.nightly import AT, NIGHTS, PROMPTS, capture_row, run_row, times_of_nights, write_nights, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.analysis.series import Series
    from deltatap.config import Settings

SINCE = NIGHTS // 2
TIMES = times_of_nights(0, 0.1)
WITHOUT = "import sys; sys.modules['pyspark'] = None; from deltatap.cli import app; app()"


def settings_for(folder: Path) -> Settings:
    return load_settings({name: {"table": str(folder / name)} for name in ("captures", "runs")})


def trend_of(folder: Path, measure: str = "ttft_ms", most: int = 60, **labels: str) -> list[Series]:
    reader, settings = LocalReader(no_spark), settings_for(folder)
    return trend(reader, settings, parse_measure(measure), ended_runs(reader, settings, most, labels))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty nights with a shift and another fingerprint in the middle; then a short run, and one that is active."""
    folder = tmp_path_factory.mktemp("nights")
    write_nights(folder, TIMES, fingerprint_since=SINCE)
    short = [capture_row(NIGHTS, prompt, 9_000.0) for prompt in range(5)]
    write_table(folder / "captures", columns.CAPTURES, [*short, capture_row(NIGHTS + 1, 0, 9_000.0)])
    table = str(folder / "captures")
    last = run_row(NIGHTS, table, {"request": {"temperature": 1}}, completed=5)
    active = run_row(NIGHTS + 1, table, status="running")
    empty = run_row(NIGHTS + 2, table, completed=0)
    write_table(folder / "runs", columns.RUNS, [last, active, empty])
    return folder


def test_values_and_intervals_are_those_of_each_run(nights: Path) -> None:
    (found,) = trend_of(nights)
    assert (found.endpoint, found.request_model, found.mode) == ("e", "m", "stream")
    assert [point.run_id for point in found.points] == [f"run-{night:02d}" for night in range(NIGHTS + 1)]
    assert [point.value for point in found.points[:NIGHTS]] == pytest.approx(np.median(TIMES, axis=1))
    assert all(point.low < point.value < point.high for point in found.points[:NIGHTS])  # type: ignore[operator]
    assert (found.points[0].started_at, found.points[0].rows) == (AT, PROMPTS)


def test_the_change_is_found_with_what_changed_and_a_short_run_does_not_decide(nights: Path) -> None:
    (found,) = trend_of(nights)
    assert (found.deciding, found.points[-1].rows, found.points[-1].decides) == (NIGHTS, 5, False)
    (change,) = found.changes
    assert abs(int(change.run_id[-2:]) - SINCE) <= 1
    assert change.before + change.after == NIGHTS
    assert 0.06 < change.difference.value / change.difference.first < 0.14
    assert change.difference.clear
    assert [str(each) for each in change.with_it] == ["system_fingerprint fp_1 → fp_2"]


def test_without_a_shift_there_is_no_change(tmp_path: Path) -> None:
    write_nights(tmp_path, times_of_nights(0), fingerprint_since=SINCE)
    assert [each.changes for each in trend_of(tmp_path)] == [()]


def test_captures_of_an_older_version_are_read(tmp_path: Path) -> None:
    older = tuple(column for column in columns.CAPTURES if not column.added)
    rows = [capture_row(night, prompt, 300.0) for night in range(3) for prompt in range(20)]
    write_table(tmp_path / "captures", older, rows)
    write_table(tmp_path / "runs", columns.RUNS, [run_row(night, str(tmp_path / "captures")) for night in range(3)])
    (found,) = trend_of(tmp_path)
    assert [point.facts["clock"] for point in found.points] == ["none"] * 3
    assert [point.facts["region"] for point in found.points] == ["none"] * 3


def test_p95_needs_more_rows_to_decide(nights: Path, tmp_path: Path) -> None:
    (found,) = trend_of(nights, "stream.ttft_ms.p95")
    assert found.points[0].value == pytest.approx(np.quantile(TIMES[0], 0.95))
    assert found.deciding == NIGHTS
    write_nights(tmp_path, TIMES[:, :60])
    assert [[each.deciding for each in trend_of(tmp_path, f"ttft_ms.{name}")] for name in ("p50", "p95")] == [[30], [0]]


def test_runs_are_chosen_by_label_and_by_number(nights: Path) -> None:
    (found,) = trend_of(nights, most=2)
    assert [point.run_id for point in found.points] == ["run-29", "run-30"]
    (found,) = trend_of(nights, night="7", suite="nightly")
    assert [point.run_id for point in found.points] == ["run-07"]
    with pytest.raises(ConfigError, match=r"no value of ttft_ms.p50 in 0 runs"):
        trend_of(nights, night="none")
    with pytest.raises(ConfigError, match=r"no value of complete.e2e_ms.p50 in 31 runs"):
        trend_of(nights, "complete.e2e_ms")


def test_flagged_answers_count_although_they_are_interrupted(tmp_path: Path) -> None:
    checks = json.dumps([{"choice": 0, "flagged": True, "error": None, "took_ms": 5.0, "seen": 40}])
    cut = {"status": "interrupted", "partial_moderation": checks}
    rows = [capture_row(night, prompt, 300.0, **cut) for night in range(2) for prompt in range(20)]
    write_table(tmp_path / "captures", columns.CAPTURES, rows)
    write_table(tmp_path / "runs", columns.RUNS, [run_row(night, str(tmp_path / "captures")) for night in range(2)])
    (found,) = trend_of(tmp_path, "flagged_chars")
    assert [(point.rows, point.value) for point in found.points] == [(20, 40.0)] * 2
    with pytest.raises(ConfigError, match="no value of ttft_ms"):
        trend_of(tmp_path, "ttft_ms")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft_ms", Measure("ttft_ms", "p50")),
        ("ttft_ms.p95", Measure("ttft_ms", "p95")),
        ("complete.e2e_ms", Measure("e2e_ms", "p50", "complete")),
        (" stream.tpot_ms.p95 ", Measure("tpot_ms", "p95", "stream")),
    ],
)
def test_a_measure_is_parsed(text: str, expected: Measure) -> None:
    assert parse_measure(text) == expected
    assert parse_measure(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tftf_ms", "metric tftf_ms does not exist; did you mean ttft_ms?"),
        ("ttfb_ms.p95", "metric ttfb_ms does not exist; did you mean headers_ms?"),
        ("p50", "metric without a name does not exist; metrics: headers_ms"),
        ("", "metric without a name does not exist"),
        ("ttft_ms.p99", "expected [stream. or complete.]METRIC[.p50 or .p95]"),
        ("paired.ttft_ms", "expected [stream. or complete.]METRIC[.p50 or .p95]"),
        ("a.stream.ttft_ms", "expected [stream. or complete.]METRIC[.p50 or .p95]"),
    ],
)
def test_a_measure_that_cannot_be_parsed_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_measure(text)
    assert error.value.problems[0].startswith(f"METRIC {text}: {why}")


def test_labels_are_parsed() -> None:
    assert labels_of(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    with pytest.raises(ConfigError) as error:
        labels_of(["a", "=b"])
    assert error.value.problems == ("--label a: expected NAME=VALUE", "--label =b: expected NAME=VALUE")


def test_a_condition_is_on_what_is_shown() -> None:
    measure = parse_measure("stream.ttft_ms.p95")
    short, whole = conditions_on(measure, ["> +5%", "ttft_ms.p95<-2"])
    assert (short.mode, short.metric, short.quantile, short.above, short.limit) == ("stream", "ttft_ms", "p95", True, 5)
    assert (whole.mode, whole.above) == (None, False)
    for other in ("ttft_ms.p50>+5%", "e2e_ms.p95>+5%", "complete.ttft_ms.p95>+5%"):
        with pytest.raises(
            ConfigError, match=f"--fail-if {other}: expected a condition on stream.ttft_ms.p95".replace("+", r"\+")
        ):
            conditions_on(measure, [other])
    with pytest.raises(ConfigError, match=r"--fail-if stream.ttft_ms.p95>5%: expected"):
        conditions_on(measure, [">5%"])


@pytest.mark.parametrize(
    ("text", "newest", "holds"),
    [(">+5%", 20, [True]), (">+5%", 12, []), (">+20%", 20, [False]), ("<-5%", 20, [False]), ("stream.ttft_ms.p50>+0", 20, [True])],
)  # fmt: skip
def test_only_new_changes_beyond_the_limit_hold(nights: Path, text: str, newest: int, holds: list[bool]) -> None:
    outcomes = judged(conditions_on(parse_measure("ttft_ms"), [text]), trend_of(nights), newest)
    assert [outcome.holds for outcome, _ in outcomes] == holds
    assert all(isinstance(outcome.difference, Difference) for outcome, _ in outcomes)


def arguments(folder: Path, *words: str) -> list[str]:
    return ["trend", *(f"--set={name}.table={folder / name}" for name in ("captures", "runs")), *words]


def command(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, arguments(folder, *words), env={"COLUMNS": "80", "TERM": "dumb"})
    return result.exit_code, result.stdout


def test_the_command_shows_marks_and_says_what_changed_without_pyspark(nights: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments(nights, "--fail-if", ">+5%", "--newest", "20")],
        capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    assert found.returncode == 3, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "TTFT p50, ms: m at e, stream"
    table = [line for line in lines if line[2:6] == "2026" and "%" not in line and "→" not in line]
    assert len(table) == NIGHTS + 1
    assert max(map(len, table)) <= 80
    assert sum(line.startswith("* ") for line in lines) == 2, "in the table, and below it"
    assert "    also changed: system_fingerprint fp_1 → fp_2" in lines
    assert any(line.startswith("~ 2026-12-01") and "request.temperature none → 1" in line for line in lines)
    assert "~ 2026-11-04 02:00 night=3: region East US → West US" in lines
    assert any("too few" in line for line in lines)
    assert lines[-1].startswith("✗ --fail-if ttft_ms.p50>+5%: stream ttft_ms p50 went from ")


def test_the_command_prints_json(nights: Path) -> None:
    code, output = command(nights, "ttft_ms", "--json", "--fail-if", ">+50%", "--newest", "20")
    assert code == 0
    (series,) = json.loads(output)["series"]
    assert {name: series[name] for name in ("metric", "quantile", "unit", "mode")} == {
        "metric": "ttft_ms", "quantile": "p50", "unit": "ms", "mode": "stream",
    }  # fmt: skip
    assert len(series["runs"]) == NIGHTS + 1
    assert series["runs"][-1]["tested"] is False
    assert series["runs"][-1]["labels"] == {"night": "30", "suite": "nightly"}
    (change,) = series["changes"]
    assert change["changed"] == [{"what": "system_fingerprint", "before": "fp_1", "after": "fp_2"}]
    assert change["p"] <= 0.004
    (condition,) = json.loads(output)["conditions"]
    assert (condition["condition"], condition["holds"]) == ("ttft_ms.p50>+50%", False)


def test_with_few_runs_the_command_says_how_many_are_needed(nights: Path) -> None:
    code, output = command(nights, "--limit", "8")
    assert code == 0
    assert (
        "no change points yet: 7 of 8 runs have enough values (20 or more), and at least 12 such runs are needed"
        in output
    )


def test_a_condition_that_tested_nothing_has_no_tick(nights: Path) -> None:
    code, output = command(nights, "--limit", "8", "--fail-if", ">+5%")
    assert code == 0
    *_, last = output.splitlines()
    assert last == "! --fail-if tested nothing: a series needs at least 12 runs with enough values"
    assert "✓" not in output
    code, output = command(nights, "--fail-if", ">+5%", "--newest", "2")
    assert (code, output.splitlines()[-1][:25]) == (0, "✓ --fail-if: no change of")


def test_without_tables_one_line_says_so(tmp_path: Path) -> None:
    code, output = command(tmp_path)
    assert code == 2
    assert output.startswith(f"✗ runs.table: {tmp_path / 'runs'}: this Delta table does not exist")


def test_trend_and_runs_say_which_runs_a_busy_machine_captured(tmp_path: Path) -> None:
    """Rows with the kernel's clock count, although the event loop ran late."""
    busy = {"clock": "kernel", "loop_lag_ms": 500.0}
    rows = [capture_row(night, prompt, 300.0, **busy if night else {}) for night in range(2) for prompt in range(20)]
    write_table(tmp_path / "captures", columns.CAPTURES, rows)
    write_table(tmp_path / "runs", columns.RUNS, [run_row(night, str(tmp_path / "captures")) for night in range(2)])
    why = "the machine that captured was busy during more than 5% of the rows, so a difference can come from this"
    code, output = command(tmp_path)
    assert code == 0
    assert f"! night=1: {why} machine instead of the server" in output.splitlines()
    words = ["runs", *arguments(tmp_path)[1:]]
    assert "busy" not in CliRunner().invoke(cli.app, words).stdout, "without bounds, runs reads no captures"
    found = CliRunner().invoke(cli.app, [*words, "--set=analysis.slo.ttft_ms=500"]).stdout
    assert f"! run-01: {why} machine instead of the server" in found.splitlines()


def test_runs_prints_json(nights: Path) -> None:
    words = ["runs", *arguments(nights)[1:], "--json", "--limit=2", "--set=analysis.slo.ttft_ms=500"]
    found = CliRunner().invoke(cli.app, words)
    listed = json.loads(found.stdout)
    assert (listed["slo"], listed["price_changes"]) == ({"ttft_ms": 500.0}, [])
    _, active = listed["runs"]
    assert active == {
        "run_id": "run-31", "status": "running", "reason": None, "owed": PROMPTS, "completed": PROMPTS, "interrupted": 0,
        "failed": 0, "requests": None, "input_tokens": None, "output_tokens": None, "cost_usd": None,
        "started_at": "2026-12-02T02:00:00+00:00", "finished_at": None, "labels": {"night": "31", "suite": "nightly"},
        "good": 0, "sent": 1,
    }  # fmt: skip


def test_runs_prints_only_json_on_standard_output_if_there_are_no_runs(tmp_path: Path) -> None:
    write_table(tmp_path / "runs", columns.RUNS, [])
    found = CliRunner().invoke(cli.app, ["runs", *arguments(tmp_path)[1:], "--json"])
    assert json.loads(found.stdout) == {"runs": [], "slo": {}, "price_changes": []}
    assert found.stderr.startswith("! there are no runs on captures table")
