"""``deltatap record`` as a process: after a SIGKILL and a new start, each finished call is in the table once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import yaml
from deltalake import DeltaTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.simulation import Simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACE = {"speed": 1, "ttft_ms": 20.0, "itl_ms": 5.0, "tokens": 40}
KEY = "sk-recorded-0123456789"


@contextmanager
def started(folder: Path, simulator: Simulation) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    config = folder / "record.yml"
    sections = {
        "endpoint": {"base_url": simulator.base_url, "name": "recorded"},
        "record": {"table": str(folder / "recorded")},
        "runs": {"table": str(folder / "runs")},
        "state": {"dir": str(folder / "state"), "flush_s": 0.5},
        "prices": None,
    }
    config.write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "deltatap", "record", "--port", "0", "--config", str(config)]
    env = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env) as process:
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("record: "):
                    break
            assert lines, "it did not start"
            assert lines[-1].startswith("record: "), lines
            yield lines[-1].removeprefix("record: ").strip(), process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ask(base_url: str, number: int) -> None:
    body = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": f"Question {number}"}]}
    headers = {"authorization": f"Bearer {KEY}"}
    assert "[DONE]" in httpx2.post(f"{base_url}/chat/completions", json=body, headers=headers, timeout=30).text


def rows(table: Path) -> list[dict[str, Any]]:
    return DeltaTable(table).to_pyarrow_table().to_pylist() if DeltaTable.is_deltatable(str(table)) else []


def test_a_killed_recording_loses_at_most_one_flush_interval(simulator: Simulation, tmp_path: Path) -> None:
    with started(tmp_path, simulator) as (base_url, process):
        for number in range(8):
            ask(base_url, number)
        (state,) = (tmp_path / "state").iterdir()
        time.sleep(0.5 + 0.5)  # one flush interval, and the time of the write
        journaled = len(list((state / "journal").glob("*.parquet")))
        ask(base_url, 8)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert journaled
    with started(tmp_path, simulator) as (base_url, process):
        ask(base_url, 9)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(60) == 0
    assert (last["status"], last["completed"]) == ("completed", 1)
    asked = sorted(json.loads(row["request"])["messages"][0]["content"] for row in rows(tmp_path / "recorded"))
    assert [text for text in asked if text != "Question 8"] == [f"Question {number}" for number in (*range(8), 9)]
    runs = {row["status"]: row for row in rows(tmp_path / "runs")}
    assert set(runs) == {"died", "completed"}
    assert runs["died"]["completed"] == len(asked) - 1
    assert list((tmp_path / "state").iterdir()) == []
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept
