"""Makes answers: transcripts and cases of tests/answers, with mutations of their JSON, records, head, bytes and cuts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.api.registry import NAMES
from deltatap.http.parser import ResponseParser
from tests.answers import CASES
from tests.answers.case import HEAD, KEY
from tests.fuzz.running import Input

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from deltatap.model import Mode

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


@dataclass(frozen=True)
class Seed:
    """A valid answer: its head without framing, and its body in records."""

    api: str
    mode: Mode
    head: bytes
    records: tuple[bytes, ...]


def seeds() -> list[Seed]:
    """The transcripts and the cases."""
    found = []
    for path in sorted(TRANSCRIPTS.glob("*.sse")):
        api, _, stream = path.read_bytes().partition(b"\n")
        found.append(Seed(api.removeprefix(b": api: ").decode(), "stream", HEAD, _records(stream)))
    for case in CASES:
        for answer in case.answers:
            parser = ResponseParser()
            body = b"".join(parser.feed(piece) for piece in answer.pieces[:100])
            head = answer.data.partition(b"\r\n\r\n")[0] + b"\r\n"
            if parser.status and len(body) < 20_000:
                framing = (b"transfer-encoding", b"content-length", b"content-encoding")
                lines = [line for line in head.splitlines(keepends=True) if not line.lower().startswith(framing)]
                found.append(Seed(case.api, case.mode, b"".join(lines), _records(body)))  # type: ignore[arg-type]
    return found


def _records(body: bytes) -> tuple[bytes, ...]:
    return tuple(record + b"\n\n" for record in body.split(b"\n\n") if record)


# Values that JSON can have, and that no field expects.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**70, 1e308, 0.5, float("nan"), float("inf"), "", " ", "null", "stop", "error",
    "0", "-1", "a" * 300, " " * 3_000, "\0", "\ud83d", "\U0001f600", "e\u0301" * 50, KEY, KEY[:9], KEY[9:], "content_filter", "insufficient_quota",
    "function", "[DONE]", "{}", '{"a":1}', [], {}, [[]], [None], [{}], [1, "x", None], ["Hello", " world"], {"a": 1}, {"type": "text", "text": "!"},
    {"message": "Oh", "code": 500}, {"error": {"message": "Oh"}}, [{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}],
)  # fmt: skip
_KEYS = (
    "error", "detail", "choices", "delta", "message", "content", "index", "finish_reason", "native_finish_reason", "usage", "tool_calls",
    "function", "arguments", "id", "type", "model", "logprobs", "reasoning", "reasoning_content", "refusal", "code", "status", "response", "item",
    "output", "output_index", "annotations", "base_resp", "x_groq", "object",
)  # fmt: skip
_BYTES = (
    b"\xff", b"\xed\xa0\xbd", b"\xe2\x82", b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b":", b"data:", b"data: ", b"event: ", b"event: error\n",
    b"error: ", b"[DONE]", b"data: [DONE]\n\n", b"{", b"}", b"[" * 5_000, b'"', b"\\", b"\\ud83d", b"\\u0000", b"9" * 5_000, b"1e999", b"-", b"NaN",
    b"\xef\xbb\xbf", b" " * 500, KEY.encode(), b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"null", b"id: 1\n", b": x\n\n",
)  # fmt: skip
_HEADERS = (
    b"Content-Type: text/event-stream", b"Content-Type: application/json", b"Content-Type: ", b"Content-Type: text/html; charset=utf-16",
    b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br", b"Content-Encoding: none", b"Retry-After: 99999999999",
    b"Retry-After: Wed, 21 Oct 99999999999 07:28:00 GMT", b"Retry-After: nan", b"Retry-After: -1", b"x-ratelimit-remaining-requests: 0",
    b"x-ratelimit-reset-requests: 1e999", b"x-ratelimit-reset-requests: 9999999999d", b"x-request-id: \xff\xfe", b"x-request-id: " + KEY.encode(),
    b"Content-Length: -1", b"Content-Length: 5", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: gzip, chunked", b"Connection: upgrade",
    b"Connection: close", b"Location: /elsewhere", b"x: " + b"y" * 70_000, b": x", b"no colon",
)  # fmt: skip
_STATUSES = (100, 101, 103, 199, 200, 201, 204, 205, 206, 226, 300, 301, 304, 307, 400, 401, 402, 403, 404, 405, 408, 413, 422, 429, 498, 499, 500,
             502, 503, 520, 529, 599, 600, 999)  # fmt: skip


def mutated(chosen: random.Random, known: Sequence[Seed]) -> Input:
    """An answer: a seed, or a cross of two, with a few mutations."""
    seed = chosen.choice(known)
    records, head = list(seed.records), seed.head
    for _ in range(chosen.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        match chosen.randrange(8):
            case 0 | 1 | 2 | 3 if records:
                at = chosen.randrange(len(records))
                records[at] = _mutated_json(records[at], chosen)
            case 4 if records:
                _reorder(records, chosen)
            case 5:
                records.insert(chosen.randint(0, len(records)), chosen.choice(chosen.choice(known).records or (b"",)))
            case 6:
                head += chosen.choice(_HEADERS) + b"\r\n"
            case _:
                start, _, rest = head.partition(b" ")
                head = b"%b %d%b" % (start, chosen.choice(_STATUSES), rest[3:])
    data = _framed(head, records, chosen)
    for _ in range(chosen.choice((0, 0, 0, 1, 1, 2, 4))):
        data = _mutated_bytes(data, chosen)
    cuts: tuple[int, ...] = ()
    if len(data) > 1:
        some = (
            range(1, len(data)) if chosen.random() < 0.1 and len(data) < 5_000 else range(chosen.choice((0, 1, 8, 40)))
        )
        cuts = tuple(sorted({at if len(some) > 40 else chosen.randrange(1, len(data)) for at in some}))
    mode: Mode = seed.mode if chosen.random() < 0.9 else "complete"
    api = seed.api if chosen.random() < 0.95 else chosen.choice(NAMES)
    return Input(api, mode, data, cuts, reset=chosen.random() < 0.2)


def _framed(head: bytes, records: Sequence[bytes], chosen: random.Random) -> bytes:
    match chosen.randrange(4):
        case 0 | 1:
            pieces = b"".join(b"%x\r\n%b\r\n" % (len(record), record) for record in records if record)
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
        case 2:
            body = b"".join(records)
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        case _:
            return head + b"\r\n" + b"".join(records)


def _reorder(records: list[bytes], chosen: random.Random) -> None:
    at, other = chosen.randrange(len(records)), chosen.randrange(len(records))
    match chosen.randrange(4):
        case 0:
            del records[at]
        case 1:
            records.insert(other, records[at])
        case 2:
            records[at], records[other] = records[other], records[at]
        case _:
            del records[at:]


def _mutated_json(record: bytes, chosen: random.Random) -> bytes:
    """The record with one of its JSON values replaced, removed, wrapped or given another name."""
    start = record.find(b"{")
    try:
        value = json.loads(record[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value:
        return _mutated_bytes(record, chosen)
    places = list(_places(value))
    holder, key = chosen.choice(places)
    match chosen.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chosen.choice(_KEYS)] = holder.pop(key)
        case 2 if isinstance(holder, dict):
            holder[chosen.choice(_KEYS)] = chosen.choice(_VALUES)
        case 3:
            holder[key] = [holder[key]]
        case 4:
            other, name = chosen.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case _:
            holder[key] = chosen.choice(_VALUES)
    text = json.dumps(value, ensure_ascii=chosen.random() < 0.7)
    return record[:start] + text.encode("utf-8", "surrogatepass") + b"\n\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a JSON value, with each of its keys."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _mutated_bytes(data: bytes, chosen: random.Random) -> bytes:
    at = chosen.randint(0, len(data))
    length = chosen.choice((1, 1, 2, 8, 64))
    match chosen.randrange(5):
        case 0:
            return data[:at] + chosen.choice(_BYTES) + data[at:]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + bytes([chosen.randrange(256)]) + data[at + 1 :]
        case 3:
            return data[:at]
        case _:
            return data[:at] + data[at : at + length] * 2 + data[at + length :]
