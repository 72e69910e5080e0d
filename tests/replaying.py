"""Rows as captures have them, and what the replay plans to send for one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from deltatap.api.registry import specification
from deltatap.prompts import request_hash_of
from deltatap.replay.options import Options
from deltatap.replay.plan import plan_of
from deltatap.replay.recordings import recording

BODY = {"model": "m", "messages": [{"role": "user", "content": "Say it."}], "stream": True}
# The same last prompt in another request.
OTHER = {"model": "m", "messages": [{"role": "system", "content": "New."}, {"role": "user", "content": "Say it."}]}


def row(**columns: Any) -> dict[str, Any]:
    chunks = [
        {"ms": 10.0, "gap_ms": None, "text": "", "kind": "role", "choice": 0, "event": 0, "read": 0},
        {"ms": 12.0, "gap_ms": None, "text": "So", "kind": "content", "choice": 0, "event": 1, "read": 1},
        {"ms": 12.0, "gap_ms": 0.0, "text": " be it.", "kind": "content", "choice": 0, "event": 2, "read": 1},
        {"ms": 20.0, "gap_ms": None, "text": "stop", "kind": "finish", "choice": 0, "event": 3, "read": 2},
        {"ms": 21.0, "gap_ms": None, "text": "", "kind": "usage", "choice": -1, "event": 4, "read": 2},
    ]
    return {
        "run_id": "run-1", "request_id": "a", "text": "So be it.", "request_hash": request_hash_of(BODY), "request": json.dumps(BODY), "api": "chat",
        "mode": "stream", "status": "completed", "error": None, "chunks": chunks, "raw": None, "headers_ms": 9.0,
        "e2e_ms": 22.0, "response_id": "chatcmpl-1", "response_model": "m-1", "request_model": "m",
        "started_at": datetime(2026, 11, 21, tzinfo=UTC), "choices": [
            {"index": 0, "text": "So be it.", "finish_reason": "stop", "refusal": None, "reasoning": None,
             "tool_calls": None}],
        "usage_reported": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    } | columns  # fmt: skip


def plan(found: Any, asked: str = "chat", *, streamed: bool = True, speed: float = 1.0, **options: Any) -> Any:
    return plan_of(recording(found), specification(asked), Options(**options), streamed=streamed, speed=speed)


def error(type_: str, code: str | None = None, status: int | None = None, **more: Any) -> dict[str, Any]:
    return {"type": type_, "code": code, "message": "No.", "http_status": status, "retry_after_s": None, **more}
