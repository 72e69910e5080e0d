"""Which row of a request is the newest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from deltatap.analysis.queries import age


def test_a_reused_answer_is_newer_than_a_failed_call() -> None:
    reused: dict[str, Any] = {"status": "completed", "finished_at": None}
    called: dict[str, Any] = {"status": "failed", "finished_at": datetime(2026, 11, 26, tzinfo=UTC)}
    refused: dict[str, Any] = {"status": "failed", "finished_at": None}
    assert sorted([reused, called, refused], key=age) == [refused, called, reused]
