"""Every type of error over real sockets: the row's status, its retries, and whether the next run owes the request.

``test_outcomes_of_runs.py`` covers the errors that stop a run (authentication, permission, not_found, quota), and
``tests/e2e/test_stopping.py`` covers cancelled.
"""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deltatap.driver.owed import owed_requests
from deltatap.driver.run import run
from deltatap.model import ERRORS
from deltatap.prices import Prices
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.runs import capture, captured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

ATTEMPTS, BROKEN, WAITS = 3, 2, 2
# fault → status, error type, code, calls, whether the next run owes it.
EXPECTED: dict[str, tuple[str, str, str | None, int, bool]] = {
    "400": ("failed", "invalid_request", "invalid_request_error", 1, False),
    "413": ("failed", "invalid_request", "invalid_request_error", 1, False),
    "422": ("failed", "invalid_request", "invalid_request_error", 1, False),
    "content_policy": ("failed", "content_policy", "content_policy_violation", 1, False),
    "429=0.6": ("failed", "rate_limit", "rate_limit_exceeded", WAITS, True),
    "slow_headers=60": ("failed", "timeout", "first_byte", ATTEMPTS, True),
    "stall@0": ("failed", "timeout", "first_byte", ATTEMPTS, True),
    "stall@3": ("interrupted", "timeout", "idle", BROKEN, True),
    "drip@3": ("interrupted", "timeout", "total", 1, True),
    "cut_first": ("failed", "connection", "RemoteProtocolError", ATTEMPTS, True),
    "cut@3": ("interrupted", "stream_interrupted", "RemoteProtocolError", BROKEN, True),
    "no_end@3": ("interrupted", "stream_interrupted", None, BROKEN, True),
    "error_event@3": ("interrupted", "stream_error", "server_error", BROKEN, True),
    "error_event@0": ("failed", "stream_error", "server_error", ATTEMPTS, True),
    "bad_json@3": ("interrupted", "protocol", None, BROKEN, True),
    "html": ("failed", "protocol", None, ATTEMPTS, True),
    "500": ("failed", "server", "server_error", ATTEMPTS, True),
    "503": ("failed", "server", "server_error", ATTEMPTS, True),
    "408": ("failed", "server", "timeout", ATTEMPTS, True),
    "409": ("failed", "server", "conflict", ATTEMPTS, True),
}


@pytest.mark.slow
def test_each_error_has_its_status_and_retries_and_is_owed_or_not(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    prompts.write(spark, tables / "prompts", [(fault, f"Say {fault}.", f"gpt-4o!{fault}") for fault in EXPECTED])
    sections = {
        "capture": {"max_attempts": ATTEMPTS, "max_broken": BROKEN, "retry_for_s": 1},
        "timeouts": {"first_byte_s": 2, "idle_s": 2, "total_s": 5},
    }
    ended, _ = capture(spark, tables, simulator, **sections)
    assert ended.row["status"] == "completed", "an error of the API never fails the run"
    rows = {row["request_id"]: row for row in captured(spark, tables)}
    assert len(rows) == len(EXPECTED)
    calls = simulator.counts()["by_key"]
    for fault, (status, type_, code, count, _) in EXPECTED.items():
        row = rows[fault]
        assert (row["status"], row["error"]["type"], row["error"]["code"]) == (status, type_, code), fault
        assert row["error"]["retryable"] == (ERRORS[type_].retry != "never"), fault
        assert calls[row["request_hash"]]["calls"] == len(row["retries"]) + 1 == count, fault
        assert {retry["error_type"] for retry in row["retries"]} <= {type_}, fault
        assert bool(row["text"]) == (status == "interrupted"), fault
        assert row["finish_reason"] is None, fault
    settings = load_settings(prompts.config(tables, simulator.base_url, **sections))
    with owed_requests(spark, settings, "the-next") as frame:
        owed = {row["request_id"] for row in frame.select("request_id").collect()}
    assert owed == {fault for fault, (*_, expected) in EXPECTED.items() if expected}


@pytest.fixture
def full_backlog() -> Iterator[int]:
    """A port whose backlog is full: connecting to it neither succeeds nor fails."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for connection in waiting:
            connection.close()


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "type_", "code"),
    [("silent", "timeout", "connect"), ("absent", "connection", "ConnectError")],
)
def test_failed_connections(
    spark: SparkSession, tables: Path, full_backlog: int, server: str, type_: str, code: str
) -> None:
    port = closed_port() if server == "absent" else full_backlog
    prompts.write(spark, tables / "prompts", [("a", "x")])
    settings = load_settings(
        prompts.config(
            tables,
            f"http://127.0.0.1:{port}/v1",
            capture={"max_attempts": 2},
            timeouts={"connect_s": 0.3},
        )
    )
    # Without the preflight, which would refuse to start.
    run(settings, spark, Prices(), Console(file=io.StringIO()))
    (row,) = captured(spark, tables)
    assert (row["status"], row["error"]["type"], row["error"]["code"]) == ("failed", type_, code)
    assert (row["dispatch_ms"], row["e2e_ms"], row["headers_ms"]) == (None, None, None), "no request was sent"
    assert [retry["error_type"] for retry in row["retries"]] == [type_]
    with owed_requests(spark, settings, "the-next") as frame:
        assert frame.count() == 1
