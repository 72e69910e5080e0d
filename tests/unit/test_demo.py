"""The demo's prompts, and what it offers to try next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import typer
from deltalake import DeltaTable

from deltatap import demo
from deltatap.cli import app
from deltatap.prompts import build_request

if TYPE_CHECKING:
    from pathlib import Path


def test_two_of_the_prompts_are_invalid() -> None:
    made = [build_request(row, api="chat", model="m", defaults={}, keep=()) for row in demo.rows()]
    assert len({request.request_id for request in made}) == 200
    assert [request.request_id for request in made if request.error] == ["demo-bad-empty", "demo-bad-params"]


def test_the_prompts_are_written_once(tmp_path: Path) -> None:
    for _ in range(2):
        demo.write_prompts(tmp_path / "data/prompts")
    table = DeltaTable(tmp_path / "data/prompts")
    assert table.version() == 0
    rows = {row["request_id"]: row for row in table.to_pyarrow_table().to_pylist()}
    assert rows["demo-003"]["messages"][0] == {"role": "user", "content": "I keep hearing about this."}
    assert (rows["demo-000"]["system"], rows["demo-003"]["prompt"]) == ("You answer like a pirate.", None)
    assert set(rows) == {row["request_id"] for row in demo.rows()}


def test_what_to_try_next_are_commands_and_a_prompt_of_the_demo() -> None:
    words = [line.split() for line in demo.next_steps().splitlines() if line.startswith("  ")]
    commands = typer.main.get_group(app).commands
    assert [program for program, *_ in words] == ["deltatap"] * 3
    assert {command for _, command, *_ in words} <= set(commands)
    shown = next(arguments[0] for _, command, *arguments in words if command == "show")
    assert shown in {row["request_id"] for row in demo.rows()}


def test_a_simulator_that_does_not_start_ends_the_demo() -> None:
    with (
        demo.simulator("--fault", "nope=1") as base_url,
        pytest.raises(SystemExit, match=re.escape("the simulator did not start; see its output above")),
    ):
        base_url()


def test_a_page_waits_for_the_demo_s_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_has_display", lambda: False)
    with demo.watched(on=True):
        said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("waiting for one")
    assert re.fullmatch(r"watch: http://127\.0\.0\.1:\d+/", said[1])
    with demo.watched(on=False):
        assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("platform", "env", "has_display"),
    [("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "w"}, True), ("darwin", {}, True)],
)  # fmt: skip
def test_the_report_opens_if_there_is_a_display(
    monkeypatch: pytest.MonkeyPatch, platform: str, env: dict[str, str], *, has_display: bool
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert demo._has_display() is has_display
