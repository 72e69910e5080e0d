"""Nightly runs for tests of trends: latencies with the noise of real ones, and a shift where a test wants it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from deltatap.delta import columns

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.analysis.bootstrap import Values

AT = datetime(2026, 11, 1, 2, 0, tzinfo=UTC)
NIGHTS, PROMPTS = 30, 200
MEDIAN_MS = 300.0
# TTFT is skewed: its 95th percentile is about 1.6 times its median. Besides, a whole night is some per cent off.
_WITHIN, _BETWEEN = 0.3, 0.025


def times_of_nights(seed: int, shift: float = 0.0, *, since: int = NIGHTS // 2, nights: int = NIGHTS) -> Values:
    """TTFT in ms of each night (rows) and prompt; from one night on, times are longer by a share."""
    random = np.random.default_rng(seed)
    level = MEDIAN_MS * np.where(np.arange(nights) >= since, 1 + shift, 1.0)
    night = np.exp(_BETWEEN * random.normal(size=nights))
    times: Values = (level * night)[:, None] * np.exp(_WITHIN * random.normal(size=(nights, PROMPTS)))
    return times


def run_row(night: int, table: str, config: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """A row of ``runs``."""
    fields = {
        "run_id": f"run-{night:02d}", "status": "completed", "started_at": AT + timedelta(days=night), "owed": PROMPTS,
        "completed": PROMPTS, "interrupted": 0, "failed": 0, "labels": [("night", str(night)), ("suite", "nightly")],
        "versions": [("deltatap", "0.3.0")], "captures": table,
        "config": json.dumps({"endpoint": {"model": "m"}, "run": {"labels": {"night": str(night)}}} | (config or {})),
    }  # fmt: skip
    return fields | values


def capture_row(night: int, prompt: int, ttft_ms: float, **values: Any) -> dict[str, Any]:
    """A row of ``captures``."""
    fields = {
        "run_id": f"run-{night:02d}", "request_id": f"r-{prompt}", "mode": "stream", "status": "completed",
        "endpoint": "e", "request_model": "m", "response_model": "m-2026", "system_fingerprint": "fp_1",
        "ttft_ms": ttft_ms, "e2e_ms": 4 * ttft_ms, "started_at": AT + timedelta(days=night, seconds=prompt),
        "finished_at": AT + timedelta(days=night, seconds=prompt + 1), "chunks": [], "retries": [], "loop_lag_ms": 1.0,
        "server_timing": [("x-ms-region", "East US")],
    }  # fmt: skip
    return fields | values


def write_table(table: Path, declared: tuple[columns.Column, ...], rows: list[dict[str, Any]]) -> None:
    """Write a Delta table without a JVM."""
    from deltalake import write_deltalake  # noqa: PLC0415 - in the extra local

    write_deltalake(table, pa.Table.from_pylist(rows, columns.arrow_schema(declared)), mode="append")


def write_nights(folder: Path, times: Values, *, fingerprint_since: int | None = None) -> None:
    """Write the tables captures and runs of nightly runs. From one night on, answers can have another fingerprint.

    The fourth night has another region.
    """
    since = len(times) if fingerprint_since is None else fingerprint_since
    captures = [
        capture_row(
            night,
            prompt,
            float(ms),
            system_fingerprint="fp_2" if night >= since else "fp_1",
            server_timing=[("x-ms-region", "West US" if night == 3 else "East US")],
        )
        for night, its_times in enumerate(times)
        for prompt, ms in enumerate(its_times)
    ]
    write_table(folder / "captures", columns.CAPTURES, captures)
    runs = [run_row(night, str(folder / "captures")) for night in range(len(times))]
    write_table(folder / "runs", columns.RUNS, runs)
