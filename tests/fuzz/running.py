"""Runs arbitrary answers through client, accumulator, rows and Arrow, and says what is wrong with each.

Everything from the socket's callbacks up is the real code; the socket itself is in memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from deltatap.api.registry import NAMES
from deltatap.http.client import EndpointClient
from deltatap.http.connection import Connection
from deltatap.http.credentials import Credential, Token
from deltatap.http.transport import Http1Transport
from deltatap.model import ERRORS, OUTPUT_KINDS, Capture, ConnectionTimes
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.worker.bootstrap import context_of
from deltatap.worker.counting import counted
from deltatap.worker.jobs import job_of
from deltatap.worker.journal import warm_up
from deltatap.worker.rows import JOURNAL_SCHEMA, journal_batch
from tests.answers.case import GOOD, KEY, chunked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deltatap.model import Mode

BESIDE = 50
# An answer takes about a millisecond.
SLOW_S = 2.0
STUCK_S = 60.0


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
    await asyncio.wait(tasks, timeout=STUCK_S)
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
