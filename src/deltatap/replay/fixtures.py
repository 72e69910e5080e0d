"""Captured streams as files for the tests of a front end. Pure, except for :func:`write`.

A file is valid SSE text. Comments contain the data that SSE has no field for: the first line describes the response,
and a comment before each event contains its time, in ms since the request was written:

    : deltatap {"version": 1, "api": "chat", "status": 200, "headers": {…}, "end": "close", "end_ms": 22.0, …}

    : 10.0
    data: {"choices": […]}

`end` is `close`, `cut` (the connection broke) or `stall` (nothing more arrived). If `status` is not 200, the only event
is the body of the refusal.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from deltatap.api.from_row import CannotSayError
from deltatap.api.registry import specification
from deltatap.api.values import to_json
from deltatap.replay.options import Options
from deltatap.replay.plan import plan_of
from deltatap.replay.recordings import request_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deltatap.replay.recordings import Recording

VERSION = 1
_OK = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARS = 80


def fixture(found: Recording, api: str) -> bytes:
    """The file for an answer.

    Args:
        found: the answer.
        api: name of the API through which it is sent.

    Raises:
        CannotSayError: the API cannot express the answer.
    """
    plan = plan_of(found, specification(api), Options(), streamed=True)
    head = {
        "version": VERSION,
        "request_id": found.request_id,
        "run_id": found.run_id,
        "api": api,
        "model": found.model,
        "status": plan.status,
        "headers": plan.headers,
        "begin_ms": plan.begin_ms,
        "end": plan.end,
        "end_ms": plan.end_ms,
        "request": request_of(found.row) or None if api == found.api else None,
    }
    made = [b": deltatap " + to_json(head).encode() + b"\n\n"]
    for ms, data in plan.writes:
        event = data if plan.status == _OK else b"data: " + data + b"\n\n"
        made.append(f": {ms:.3f}\n".encode() + event)
    return b"".join(made)


def name_of(request_id: str, api: str) -> str:
    """The name of a file. A request id with other characters, or a long one, gets a part of its hash."""
    safe = _UNSAFE.sub("-", request_id)[:_NAME_CHARS].strip(".-")
    if safe != request_id or not safe:
        safe = f"{safe or 'request'}-{hashlib.sha256(request_id.encode()).hexdigest()[:8]}"
    return f"{safe}.{api}.sse"


def write(recordings: Sequence[Recording], folder: Path, api: str | None) -> tuple[list[str], list[str]]:
    """Write a file for each request, with the newest of its streams.

    Args:
        recordings: oldest first.
        folder: where to write; it is created.
        api: name of the API through which answers are sent; None for that of each row.

    Returns:
        The names of the files, and which answers have no file, and why.
    """
    streams = [each for each in recordings if each.streamed]
    newest = {(each.request_id, api or each.api): each for each in streams}
    folder.mkdir(parents=True, exist_ok=True)
    names, reasons = [], []
    if whole := len(recordings) - len(streams):
        reasons.append(f"{whole:,} whole answer{'s' * (whole != 1)}: only streams can be written")
    if earlier := len(streams) - len(newest):
        reasons.append(f"{earlier:,} stream{'s' * (earlier != 1)} of requests that have a newer stream")
    for each in newest.values():
        asked = api or each.api
        try:
            content = fixture(each, asked)
        except CannotSayError as error:
            reasons.append(f"{each.request_id}: {error}")
            continue
        names.append(name_of(each.request_id, asked))
        (folder / names[-1]).write_bytes(content)
    return names, reasons
