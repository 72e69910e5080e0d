"""Turns a row of captures into a recording: the bytes to send, and when. Pure.

If the row has the bytes of the events (`capture.keep_raw`), the recording has the same bytes. Otherwise the API's
module builds frames from the chunks, if it can. `app.py` serves recordings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from deltatap.api.registry import NAMES, specification

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OK = 200


@dataclass(frozen=True, slots=True)
class Recording:
    """One captured answer.

    Attributes:
        request_id, request_hash: of the row.
        prompt: the last prompt of the request, as text. A request with another body is matched by its last prompt.
        api: name of the API.
        model: of the request.
        streamed: whether the answer was captured as a stream.
        status: HTTP status; 0 if no response arrived.
        headers_ms: when the response began.
        frames: (ms, bytes) in order; a whole answer has one.
        end_ms: when the response ended.
        broken: whether the connection broke at the end.
    """

    request_id: str
    request_hash: str
    prompt: str
    api: str
    model: str
    streamed: bool
    status: int
    headers_ms: float
    frames: tuple[tuple[float, bytes], ...]
    end_ms: float
    broken: bool


def recording(row: Mapping[str, Any]) -> Recording:
    """The recording of a row of captures, given as a dict.

    Raises:
        ValueError: if this version does not know the API, or if the API's answers can be replayed only from the bytes
            of the events, and the row has none.
    """
    if row["api"] not in NAMES:
        raise ValueError(f"this version of deltatap does not know the API {row['api'] or '(null)'}")
    api = specification(row["api"])
    streamed = row["mode"] == "stream"
    error = row["error"] or {}
    status = _OK if row["status"] != "failed" else error.get("http_status") or 0
    if status != _OK:
        kind, message = error.get("type") or "server_error", error.get("message") or ""
        frames = [(0.0, orjson.dumps(api.error_body(status, kind, error.get("code"), message)))]
    elif not streamed:
        frames = [(0.0, bytes(row["raw"][0]["data"]) if row["raw"] else api.replayed_whole(row))]
    else:
        frames = api.replayed(row) if row["raw"] is None else list(_kept(row))
    return Recording(
        request_id=row["request_id"],
        request_hash=row["request_hash"],
        prompt=prompt_of(json.loads(row["request"] or "{}"), row["api"]),
        api=row["api"],
        model=row["request_model"] or "",
        streamed=streamed,
        status=status,
        headers_ms=row["headers_ms"] or 0.0,
        frames=tuple(frames),
        end_ms=row["e2e_ms"] or (frames[-1][0] if frames else 0.0),
        broken=row["status"] == "interrupted" or not status,
    )


def prompt_of(body: Mapping[str, Any], api: str) -> str:
    """The last prompt of a request, as text; empty if there is none."""
    prompt = specification(api).last_prompt(body)
    return prompt if isinstance(prompt, str) else "" if prompt is None else orjson.dumps(prompt).decode()


def _kept(row: Mapping[str, Any]) -> Iterator[tuple[float, bytes]]:
    """The events of a row, byte by byte."""
    due = {chunk["event"]: chunk["ms"] for chunk in row["chunks"]}
    ms = 0.0
    for number, kept in enumerate(row["raw"]):
        ms = due.get(number) or ms  # a time can be lost
        named = f"event: {kept['event']}\n".encode() if kept["event"] not in (None, "", "message") else b""
        lines = bytes(kept["data"]).split(b"\n")
        yield ms, named + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
