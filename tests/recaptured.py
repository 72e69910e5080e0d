"""Captures without Spark: a part of a plan in this process, a local captures table, and `deltatap replay` for it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from deltalake import write_deltalake

from deltatap.delta import columns
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.state import RunState
from deltatap.worker.attempt import CaptureTask, capture_part
from tests import prompts
from tests.unit.worker.test_attempt import driver, journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TOOL = {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}
TOOLS: dict[str, Any] = {
    "chat": {"tools": [{"type": "function", "function": TOOL}]},
    "responses": {"tools": [{"type": "function", **TOOL}]},
    "messages": {"tools": [{"name": "look_up", "input_schema": TOOL["parameters"]}]},
}
PLAIN: list[tuple[str, str, dict[str, Any]]] = [
    ("plain", "gpt-4o-mini", {}),
    ("length", "gpt-4o-mini!length", {}),
    ("cut", "gpt-4o-mini!cut@4", {}),
    ("cut_first", "gpt-4o-mini!cut_first", {}),
    ("error", "gpt-4o-mini!error_event@4", {}),
    ("error_first", "gpt-4o-mini!error_event@0", {}),
    ("no_end", "gpt-4o-mini!no_end@4", {}),
    ("bad_json", "gpt-4o-mini!bad_json@4", {}),
    ("400", "gpt-4o-mini!400", {}),
    ("429", "gpt-4o-mini!429=0.05", {}),
    ("503", "gpt-4o-mini!503", {}),
]


def mixed(api: str) -> list[dict[str, Any]]:
    """Prompts rows that cover every kind of answer of an API."""
    rows: list[tuple[str, str, dict[str, Any]]] = [*PLAIN]
    if api in TOOLS:
        rows += [
            ("tools", "gpt-4o-mini", TOOLS[api]),
            ("reasoning", "gpt-4o-mini!reasoning", {}),
            ("refusal", "gpt-4o-mini!refusal", {}),
        ]
    if api in ("chat", "completions"):
        rows += [("n2", "gpt-4o-mini", {"n": 2})]
    return [
        {"request_id": f"{api}-{name}", "prompt": f"Say {name} to {api}.", "model": model, "params": json.dumps(params)}
        for name, model, params in rows
    ]


def captured_rows(
    folder: Path, base_url: str, api: str, rows: Sequence[dict[str, Any]], modes: Sequence[str]
) -> list[dict[str, Any]]:
    """Capture rows, each in its mode, and return the rows of captures."""
    capture = {"max_broken": 1, "max_attempts": 1, "retry_for_s": 0.2}
    state_settings = {"flush_s": 0.02, "files_per_s": 1000}
    settings = load_settings(
        prompts.config(
            folder, base_url, endpoint={"api": api, "model": "gpt-4o-mini"}, capture=capture, state=state_settings
        )
    )
    state = RunState(folder / "state" / "run-1")
    state.prepare()
    requests = [
        build_request(
            row, api=api, model="gpt-4o-mini", defaults={"max_tokens": 4096} if api == "messages" else {}, keep=()
        )
        for row in rows
    ]
    built: dict[str, Any] = {
        name: [getattr(each, name) for each in requests] for name in columns.arrow_schema(columns.REQUESTS).names
    }
    state.plan(1).prepare()
    parts = state.plan(1).parts
    parts.mkdir()
    schema = columns.arrow_schema(columns.OWED)
    pq.write_table(
        pa.table({**built, "mode": list(modes), "retries": [None] * len(rows)}, schema), parts / "part-00000-x.parquet"
    )
    task = CaptureTask(settings, Prices(), "run-1", state.folder, 1)
    with driver(task.folder, share=3):  # more streams would delay each other in this process
        capture_part(task, 0)
    return [
        {name: value for name, value in row.items() if name not in ("plan", "part", "row")} for row in journal(task)
    ]


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a captures table. Returns the configuration file."""
    write_deltalake(str(folder / "captures"), pa.Table.from_pylist(list(rows), columns.arrow_schema(columns.CAPTURES)))
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(prompts.config(folder, "http://127.0.0.1:1/v1")))
    return config


@contextmanager
def replaying(config: Path, *options: str) -> Iterator[str]:
    """Start `deltatap replay`, and end it afterwards."""
    command = [sys.executable, "-m", "deltatap", "replay", "--config", str(config), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        start = "base_url of a client: "
        try:
            yield next(line for line in process.stdout if line.startswith(start)).removeprefix(start).strip()
        finally:
            process.terminate()
