"""A case: the answers of a server, and the row, the calls and the debt that must come of them; and building blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.raw_server import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.raw_server import Then

KEY = "sk-test-0123456789abcdef"
# The tests' configuration: every wait is short, and a call is repeated once.
CAPTURE = {"max_attempts": 2, "max_broken": 2, "retry_for_s": 0.3, "concurrency": 256, "max_runs": 3}
TIMEOUTS = {"connect_s": 5, "first_byte_s": 5, "idle_s": 1, "total_s": 20}
TWICE = 2


@dataclass(frozen=True)
class Case:
    """Answers of a server, and what must come of them.

    Attributes:
        name: of the case; also its prompt.
        answers: to the first call, the second, …; the last one repeats.
        status: of the row; None where any status is right, as long as there is one row.
        text: of the row; None for no text, ANY where it does not matter.
        error: the type of the error; None for no error.
        says: what the error's message contains.
        calls: how many calls are made; None where it depends on the time.
        owed: whether the next run owes the request; None where both are right.
        tools: (id, name, arguments) of each call of a tool.
        usage: counts of usage_reported.
        columns: other columns.
        api: the API that is called.
        mode: of the request.
        alone: whether the case affects other requests: it stops the run or delays it.
    """

    name: str
    answers: tuple[Answer, ...]
    status: str | None = "completed"
    text: str | None = "Hello world"
    error: str | None = None
    says: str = ""
    calls: int | None = 1
    owed: bool | None = False
    tools: tuple[tuple[str | None, str, str], ...] | None = None
    usage: Mapping[str, int | None] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    api: str = "chat"
    mode: str = "stream"
    alone: bool = False

    def __str__(self) -> str:
        return self.name


ANY = "\0any"
DIGITS = b"9" * 5_000
HALF = b"\\ud83d"  # half of a surrogate pair

# Building blocks


def data(event: object) -> bytes:
    """A record of an event stream."""
    return b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"


def delta(finish: str | None = None, /, **fields: Any) -> bytes:
    """A chunk of chat completions."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return data({"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]})


def usage(given: int, output: int, total: int | None = None, **more: Any) -> bytes:
    """The last chunk of chat completions."""
    counts = {"prompt_tokens": given, "completion_tokens": output, "total_tokens": total or given + output, **more}
    return data({"id": "c-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [], "usage": counts})


def typed(kind: str, /, **fields: Any) -> bytes:
    """An event of Responses or Messages."""
    return b"event: %b\n" % kind.encode() + data({"type": kind, **fields})


ROLE, HELLO, WORLD = delta(role="assistant", content=""), delta(content="Hello"), delta(content=" world")
STOP, USAGE, DONE = delta("stop"), usage(9, 2), b"data: [DONE]\n\n"
GOOD = (ROLE, HELLO, WORLD, STOP, USAGE, DONE)
BEGUN = (ROLE, HELLO, WORLD)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
WHOLE: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello world"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


def chunked(*pieces: bytes, head: bytes = HEAD, then: Then = "keep", end: bool = True) -> Answer:
    """A chunked response; each piece is a chunk. Without `end`, the last chunk is missing and the connection closes."""
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return Answer(
        (head + b"Transfer-Encoding: chunked\r\n\r\n", *framed, *([b"0\r\n\r\n"] if end else [])),
        _ended_by(then, end=end),
    )


def sized(
    status: str, body: object, *headers: str, kind: str = "application/json", then: Then = "keep", length: int = -1
) -> Answer:
    """A response with a length. With another `length` than the body's, the connection closes after the body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content) if length < 0 else length}",
        *headers,
    ]
    return Answer(("\r\n".join(lines).encode("latin1") + b"\r\n\r\n", content), _ended_by(then, end=length < 0))


def _ended_by(then: Then, *, end: bool) -> Then:
    return "close" if then == "keep" and not end else then


def headed(*lines: str) -> bytes:
    """The head of a response with status 200, without its transfer-encoding."""
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines)).encode("latin1")


def error_body(message: str = "Oh no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def good(name: str, answer: Answer, **more: Any) -> Case:
    return Case(name, (answer,), **more)


def failed(name: str, answer: Answer, error: str, says: str = "", **more: Any) -> Case:
    return Case(
        name, (answer,), **{"status": "failed", "text": None, "error": error, "says": says, "owed": True, **more}
    )


def broken(name: str, answer: Answer, error: str = "stream_error", says: str = "", **more: Any) -> Case:
    known = {"status": "interrupted", "error": error, "says": says, "owed": True, "calls": TWICE}
    return Case(name, (answer,), **{**known, **more})


def replaced(record: bytes, old: bytes, new: bytes) -> bytes:
    assert old in record
    return record.replace(old, new)


def answer_of(case: Case, before: int) -> Answer:
    """The answer to a call, after as many earlier ones."""
    return case.answers[min(before, len(case.answers) - 1)]
