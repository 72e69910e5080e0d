"""The entry points of `jobs/`: their arguments and how they exit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from deltatap import cli

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from deltatap.config import Settings


def test_a_job_script_exits_only_with_an_error(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    codes = iter([cli.OK, cli.TOO_MANY_ERRORS])
    received: list[object] = []

    def work(settings: Settings, _console: Console, *, dry_run: bool = False) -> int:
        received.append((settings.capture.limit, dry_run))
        return next(codes)

    monkeypatch.setattr(sys, "argv", ["job.py", "--config", str(config), "--set", "capture.limit=3", "--dry-run"])
    cli.run_job(work)
    with pytest.raises(SystemExit) as ended:
        cli.run_job(work)
    assert ended.value.code == cli.TOO_MANY_ERRORS
    assert received == [(3, True)] * 2


def test_a_job_script_takes_several_settings_in_one_argument(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    received: list[object] = []

    def work(settings: Settings, _console: Console, *, dry_run: bool = False) -> int:
        received.append((settings.capture.limit, settings.prompts.sql, settings.run.labels, dry_run))
        return cli.OK

    given = "capture.limit=4 prompts.table=  prompts.sql='SELECT a, b FROM t' run.labels.team=x"
    words = ["job.py", "--config", str(config), "--set", "capture.limit=3", "--settings"]
    monkeypatch.setattr(sys, "argv", [*words, given])
    cli.run_job(work, "--dry-run")
    monkeypatch.setattr(sys, "argv", [*words, ""])
    cli.run_job(work)
    assert received == [(4, "SELECT a, b FROM t", {"team": "x"}, True), (3, None, {}, False)]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("prompts.sql='SELECT 1", "No closing quotation"),
        (
            "capture.limit=1 ' endpoint.base_url=http://a' endpoint={}",
            "endpoint.base_url, endpoint: cannot be set for one run, because the key could then be sent to another server",
        ),
    ],
)
def test_a_job_script_refuses_these_settings_of_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, problem: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--settings", given])
    with pytest.raises(SystemExit) as ended:
        cli.run_job(cli.check)
    assert (ended.value.code, capsys.readouterr().out) == (2, f"✗ --settings: {problem}\n")


def test_a_job_script_refuses_an_unknown_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--nope"])
    with pytest.raises(SystemExit) as ended:
        cli.run_job(cli.check)
    assert ended.value.code == cli.CONFIGURATION
    assert "No such option: --nope" in capsys.readouterr().err
