"""Feeds arbitrary answers through client, accumulator, rows and Arrow: ``python -m tests.fuzz --minutes 20 --seed 1``.

An answer is a mutation of a transcript or of a case of tests/answers: of its JSON, its records, its head, its bytes
and the places where it is cut. Everything from the socket's callbacks up is the real code; the socket itself is in
memory. An answer fails if anything raises, if it does not become exactly one correct row, if it is slow, or if
well-behaved streams beside it do not complete. A failing answer is made smaller and written to a file, which
``--replay`` runs again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
import traceback
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from deltatap.api.registry import NAMES
from deltatap.config import load_settings
from deltatap.http.client import EndpointClient
from deltatap.http.connection import Connection
from deltatap.http.credentials import Credential, Token
from deltatap.http.parser import ResponseParser
from deltatap.http.transport import Http1Transport
from deltatap.model import ERRORS, OUTPUT_KINDS, Capture, ConnectionTimes
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.worker.bootstrap import context_of
from deltatap.worker.counting import counted
from deltatap.worker.jobs import job_of
from deltatap.worker.journal import warm_up
from deltatap.worker.rows import JOURNAL_SCHEMA, journal_batch
from tests.answers import CASES
from tests.answers.case import GOOD, HEAD, KEY, chunked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deltatap.model import Mode

TRANSCRIPTS = Path(__file__).parent / "transcripts"
BESIDE = 50
# An answer takes about a millisecond.
SLOW_S = 2.0
_STUCK_S = 60.0


@dataclass(frozen=True)
class Input:
    """A response's bytes, the places where reads cut them, and the call that gets it."""

    api: str
    mode: Mode
    data: bytes
    cuts: tuple[int, ...] = ()
    reset: bool = False

    def pieces(self) -> list[bytes]:
        """The data of each read."""
        ends = sorted({0, len(self.data), *(cut for cut in self.cuts if cut < len(self.data))})
        return [self.data[a:b] for a, b in pairwise(ends)]


# Running answers

_ANSWER: ContextVar[Input] = ContextVar("answer")


class _Memory:
    """The server's end of a connection: answers a request with the pieces of the task's input, then ends."""

    sending = False

    def __init__(self, connection: Connection) -> None:
        self._connection, self.closed = connection, False

    def write(self, data: bytes, taken: Callable[[float], None]) -> None:
        assert data
        taken(time.perf_counter())
        answer = _ANSWER.get()
        self._next(iter(answer.pieces()), ConnectionResetError("reset") if answer.reset else None)

    def _next(self, pieces: Iterator[bytes], end: Exception | None) -> None:
        if self.closed:
            return
        if (piece := next(pieces, None)) is None:
            self._end(end)
        else:
            self._connection.received(piece, 0, time.perf_counter())
            asyncio.get_running_loop().call_soon(self._next, pieces, end)

    def _end(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._connection.lost(error)

    def abort(self) -> None:
        self.closed = True


async def _in_memory(*_: object) -> tuple[Connection, ConnectionTimes]:
    connection = Connection(lambda used: used.abort())
    connection.attach(_Memory(connection))
    return connection, ConnectionTimes(reused=False)


@contextmanager
def _no_sockets() -> Iterator[None]:
    with patch.object(Http1Transport, "_connect", _in_memory):
        yield


def run(inputs: Sequence[Input], *, beside: int = BESIDE) -> list[str | None]:
    """Run all inputs at once, with well-behaved streams beside them. What is wrong with each; None if nothing is."""
    _load()
    with _no_sockets(), _logged() as faults:
        failures = asyncio.run(_run(inputs, beside))
    return [failure or faults.get(str(at)) for at, failure in enumerate(failures)]


@contextmanager
def _logged() -> Iterator[dict[str, str]]:
    """What is logged about each request: a fault that deltatap survives is a fault, too."""
    found: dict[str, str] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            first, *stack = record.getMessage().splitlines()
            name = record.args[0] if isinstance(record.args, tuple) and record.args else ""
            found[str(name)] = "\n".join([*stack, first])

    handler, logger = Handler(), logging.getLogger("deltatap")
    logger.addHandler(handler)
    try:
        with patch.object(logger, "propagate", new=False):
            yield found
    finally:
        logger.removeHandler(handler)


@cache
def _load() -> None:
    """Load the vocabulary now; the first row would be slow."""
    warm_up(context_of(load_settings({}), Prices(), "fuzz", 0))


async def _run(inputs: Sequence[Input], beside: int) -> list[str | None]:
    settings = {api: load_settings({"endpoint": {"api": api, "api_key": None}}) for api in NAMES}
    credential = Credential(lambda: Token(KEY))
    clients: dict[tuple[str, bool], EndpointClient] = {}

    def client_of(api: str, raw: bool) -> EndpointClient:  # noqa: FBT001
        if (api, raw) not in clients:
            of = settings[api]
            clients[api, raw] = EndpointClient(of.endpoint, of.timeouts, keep_raw=raw, credential=credential)
        return clients[api, raw]

    failed: dict[int, str] = {}

    async def one(at: int, given: Input) -> list[dict[str, Any]]:
        _ANSWER.set(given)
        row = {"request_id": str(at), "prompt": "Hi", "model": f"model-{at}"}
        request = build_request(row, api=given.api, model=None, defaults={}, keep=())
        job = job_of(request, at, [], settings[given.api], given.mode)
        assert job.wire is not None
        job.calls.append(await client_of(given.api, at % 2 == 1).call(job.wire))
        started = time.process_time()
        context = context_of(settings[given.api], Prices(), "fuzz", 0)
        batch = journal_batch([counted(Capture(job, queued_ms=0.0, loop_lag_ms=0.0), context)], context, plan=1, part=0)
        batch.validate(full=True)
        assert batch.schema.equals(JOURNAL_SCHEMA)
        if (took := time.process_time() - started) > SLOW_S:
            failed[at] = f"slow: its row took {took:.1f} s"
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows

    good = Input("chat", "stream", _GOOD.data, tuple(range(50, len(_GOOD.data), 50)))
    tasks = [asyncio.create_task(one(at, given)) for at, given in enumerate([*inputs, *[good] * beside])]
    await asyncio.wait(tasks, timeout=_STUCK_S)
    for at, task in enumerate(tasks):
        if not task.done():
            failed[at] = "stuck"
            task.cancel()
        elif (error := task.exception()) is not None:
            failed[at] = "".join(traceback.format_exception(error)[-3:])
        else:
            wrong = _wrong(task.result()) or (at >= len(inputs) and _not_good(task.result()[0]))
            if wrong:
                failed[at] = wrong
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients.values():
        await client.close()
    others = [reason for at, reason in failed.items() if at >= len(inputs)]
    return [failed.get(at) or (f"a stream beside it: {others[0]}" if others else None) for at in range(len(inputs))]


def _wrong(rows: list[dict[str, Any]]) -> str | None:
    """What is wrong with the rows of an answer."""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    (row,) = rows
    error, output = row["error"], any(chunk["kind"] in OUTPUT_KINDS for chunk in row["chunks"])
    if (row["status"] == "completed") is (error is not None) or (row["status"] == "failed" and output):
        return f"{row['status']} with the error {error}, {output=}"
    if error is not None and (error["type"] not in ERRORS or error["type"] == "internal"):
        return f"the error {error}"
    if KEY in json.dumps(row, default=repr, ensure_ascii=False):
        return "the key is in the row"
    return _not_joined(row)


def _not_joined(row: dict[str, Any]) -> str | None:
    texts: dict[int | None, str] = {}
    for chunk in row["chunks"]:
        if chunk["kind"] == "content":
            texts[chunk["choice"]] = texts.get(chunk["choice"], "") + chunk["text"]
    for choice in row["choices"]:
        if choice["index"] in texts and texts[choice["index"]] != choice["text"]:
            return f"choice {choice['index']}: the chunks do not join to the text"
    return None


def _not_good(row: dict[str, Any]) -> str | None:
    good = (row["status"], row["text"]) == ("completed", "Hello world")
    return None if good else f"{row['status']}, {row['text']!r}, {row['error']}"


_GOOD = chunked(*GOOD)

# Making answers


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


# Searching


def smaller(given: Input) -> Input:
    """A smaller answer that fails, too: without cuts, and without every piece that does not matter."""
    for simpler in (replace(given, cuts=()), replace(given, reset=False)):
        if run([simpler], beside=1)[0]:
            given = simpler
    size = len(given.data) // 2
    give_up = time.monotonic() + _STUCK_S
    while size and time.monotonic() < give_up:
        at = 0
        while at < len(given.data) and time.monotonic() < give_up:
            shorter = replace(given, data=given.data[:at] + given.data[at + size :])
            if run([shorter], beside=1)[0]:
                given = shorter
            else:
                at += size
        size //= 2
    return given


def write(given: Input, folder: Path) -> Path:
    """Write an answer to a file: a line that describes the call, then the bytes."""
    described = {"api": given.api, "mode": given.mode, "cuts": given.cuts, "reset": given.reset}
    path = folder / f"failing-{abs(hash(given.data)) % 10**8:08d}.http"
    path.write_bytes(json.dumps(described).encode() + b"\n" + given.data)
    return path


def read(path: Path) -> Input:
    """Read what :func:`write` wrote."""
    described, _, data = path.read_bytes().partition(b"\n")
    options = json.loads(described)
    return Input(**{**options, "cuts": tuple(options["cuts"]), "data": data})


def search(minutes: float, seed: int, folder: Path, *, batch: int = 200) -> int:
    """Run mutated answers until the time is over. Returns the number of failures."""
    chosen, known = random.Random(seed), seeds()  # noqa: S311
    started, count, shown, reasons = time.monotonic(), 0, 0.0, set[str]()
    while (minutes_so_far := (time.monotonic() - started) / 60) < minutes:
        inputs = [mutated(chosen, known) for _ in range(batch)]
        began = time.process_time()
        failures = run(inputs)
        count += batch
        if time.process_time() - began > SLOW_S * 5:
            failures = [_alone(given) or failure for given, failure in zip(inputs, failures, strict=True)]
        for given, failure in zip(inputs, failures, strict=True):
            reason = (failure or "").strip().splitlines()[-1:]
            # One file for each kind of failure.
            if failure and (kind := "".join(c for c in reason[0] if not c.isdigit())[:80]) not in reasons:
                reasons.add(kind)
                small = smaller(given) if run([given], beside=1)[0] else given
                print(f"{write(small, folder)}: {failure}")
        if minutes_so_far - shown >= 1:
            shown = minutes_so_far
            print(f"{count:,} inputs in {minutes_so_far:.1f} minutes, {len(reasons)} kinds of failures", flush=True)
    print(f"{count:,} inputs, seed {seed}: {len(reasons)} kinds of failures")
    return len(reasons)


def _alone(given: Input) -> str | None:
    """What is wrong with an answer of a slow batch."""
    began = time.process_time()
    failure = run([given], beside=1)[0]
    took = time.process_time() - began
    return failure or (f"slow: {took:.1f} s" if took > SLOW_S else None)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Search for an answer that deltatap cannot handle.")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--folder", type=Path, default=Path(), help="where failing answers are written")
    parser.add_argument("--replay", type=Path, help="run a failing answer again, instead of a search")
    options = parser.parse_args()
    if options.replay:
        failure = _alone(read(options.replay))
        print(failure or "nothing is wrong")
        return int(failure is not None)
    return int(search(options.minutes, options.seed, options.folder) > 0)


if __name__ == "__main__":
    sys.exit(main())
