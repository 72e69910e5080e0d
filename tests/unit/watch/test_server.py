"""The page and its events, served by a real process, while a folder changes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.messages import Control, Heartbeat, OpenStream
from deltatap.state import RunState
from tests.watching import watching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def boards(url: str) -> Iterator[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}events", timeout=30) as response:  # noqa: S310 - loopback
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def begun(folder: Path) -> RunState:
    state = RunState.of(folder, "run")
    state.prepare()
    state.publish(Control(1, 1))
    stream = OpenStream("r1", "m", "stream", 1.0, 5, "Hello")
    state.beat(Heartbeat(1, "00000-000001-a", 1, open=1, requests=3, rows={"completed": 2}, streams=(stream,)))
    return state


def test_it_waits_shows_the_run_to_several_watchers_and_ends_with_it(tmp_path: Path) -> None:
    with watching(tmp_path) as (url, process):
        first = boards(url)
        assert next(first)["state"] == "waiting"
        state = begun(tmp_path)
        running = next(board for board in first if board["run"])
        assert (running["state"], running["open"], running["streams"][0]["text"]) == ("running", 1, "Hello")
        second = boards(url)
        assert next(second)["run"] == "run"
        state.remove()
        for watcher in (first, second):
            assert [board["state"] for board in watcher][-1] == "ended"
        assert process.wait(30) == 0
        assert process.stdout is not None
        said = process.stdout.read()
        assert "run run has ended" in said
        assert (
            "writes a report; if the run used other tables, add --set captures.table=… and --set runs.table=… to this command\n"
            in said
        )
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_for_this_machine_only(tmp_path: Path) -> None:
    begun(tmp_path)
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    with watching(tmp_path, "run") as (url, _):
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - loopback
            page = response.read().decode()
        assert "EventSource" in page
        of_finished = ("output tokens/s", "TTFT p50", "TTFT p95", "cost", "tokens in / out")
        assert all(f'"{name}, finished rows"' in page for name in of_finished), "they stand still while streams run"
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
        other = urllib.request.Request(f"{url}events", headers={"Host": "evil.example"})  # noqa: S310 - loopback
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(other, timeout=30)  # noqa: S310 - loopback
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_run_that_is_not_active_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deltatap", "watch", "nope", "--port", "0", "--set", f"state.dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert "run nope is not active here; active runs: none" in ended.stdout
