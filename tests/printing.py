"""What the functions of `deltatap.terminal` print, and a run and a capture for them."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
RUN: dict[str, Any] = {
    "run_id": "r1", "status": "stopped", "started_at": datetime(2026, 11, 21, 6, 30, tzinfo=UTC), "completed": 1234,
    "owed": 2000, "interrupted": 5, "failed": None, "cost_usd": 1.5, "reason": "stopped by [you]", "requests": 1250,
    "input_tokens": 10_000, "output_tokens": 20_000, "labels": {},
    "config": '{"capture": {"concurrency": 64}}',
}  # fmt: skip
CAPTURE: dict[str, Any] = {
    "started_at": datetime(2026, 11, 21, 6, 30, tzinfo=UTC),
    "request_id": "q[1]", "run_id": "r1", "mode": "stream", "status": "interrupted", "finish_reason": None,
    "error": {"type": "connection", "code": None, "message": "reset [by peer]", "http_status": 502}, "response_model": None,
    "request_model": "m", "retries": [{"error_type": "rate_limit", "text": None}],
    "chunks": [{"ms": 1.0, "kind": "role"}, {"ms": 500.0, "kind": "content"}, {"ms": 1000.0, "kind": "reasoning"}],
    "ttft_ms": 500.0, "tpot_ms": None, "e2e_ms": 1200.0, "loop_lag_ms": 0.5, "usage_reported": None,
    "usage_tiktoken": {"input_tokens": 3, "output_tokens": 2}, "cost_usd": 0.25,
    "api": "chat", "request": json.dumps({"messages": [{"content": "Say\n[bold]", "role": "user"}], "model": "m"}),
    "choices": [{"index": 0, "text": "[bold]Hi", "reasoning": "Hm", "refusal": None, "tool_calls": None}],
}  # fmt: skip


def printed(show: Callable[..., None], *arguments: Any, width: int = 200) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width), *arguments)
    return out.getvalue()
