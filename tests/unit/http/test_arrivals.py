"""Real calls on an event loop that is late, against the times at which the server sent each chunk."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING

import pytest
import uvloop

from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint, Tls
from deltatap.http.client import EndpointClient
from deltatap.http.clock import ArrivalClock, wall_offset
from deltatap.model import CONTENT, Call
from tests.calls import DONE, HI, OK, STOP, WIRE, chunk
from tests.unit.http.test_upload import Served, serving

if TYPE_CHECKING:
    from tests.networks import Authority

_CHUNKS, _APART_S, _BLOCKED_S = 12, 0.03, 0.025


def streamed(authority: Authority, scheme: str) -> tuple[Call, list[float]]:
    """A call whose event loop is blocked most of the time, and when the server sent each chunk."""
    sent: list[float] = []

    def serve(served: Served) -> None:
        served.body(served.head())
        served.socket.sendall(OK)
        for _ in range(_CHUNKS):
            time.sleep(_APART_S)
            sent.append(time.perf_counter() * 1e3)
            served.socket.sendall(chunk(HI))
        time.sleep(_APART_S)
        served.socket.sendall(chunk(STOP + DONE) + chunk(b""))
        served.until_closed()

    async def talk(base_url: str) -> Call:
        client = EndpointClient(Endpoint(base_url=base_url, api_key=None, tls=Tls(ca_file=authority.file)), Timeouts())
        calling = asyncio.create_task(client.call(WIRE))
        await asyncio.sleep(_APART_S)
        try:
            while not calling.done():
                time.sleep(_BLOCKED_S)  # noqa: ASYNC251 - the loop is late
                await asyncio.sleep(0)
            return await calling
        finally:
            await client.close()

    with serving(serve, authority.serving("localhost") if scheme == "https" else None) as (port, _):
        return uvloop.run(talk(f"{scheme}://localhost:{port}/v1")), sent


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_late_event_loop_does_not_change_the_times_of_chunks(authority: Authority, scheme: str) -> None:
    made, sent = streamed(authority, scheme)
    assert (made.status, made.clock) == ("completed", "kernel")
    chunks = made.received.chunks
    ours = [ms for ms, kind in zip(chunks.ms, chunks.kind, strict=True) if kind == CONTENT]
    off = [abs((b - a) - (d - c)) for (a, b), (c, d) in zip(pairwise(ours), pairwise(sent), strict=True)]
    # By its own clock, half of the gaps would be off by more than 5 ms.
    assert statistics.median(off) < 3


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("step_ms", [-400, 400])
def test_times_are_those_of_the_reads_if_the_wall_clock_was_set(
    authority: Authority, scheme: str, step_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the wall clock had been set between the request and the first read.
    steps = chain([step_ms * 1_000_000], repeat(0))
    monkeypatch.setattr(
        "deltatap.http.connection.ArrivalClock", lambda: ArrivalClock(lambda: wall_offset() - next(steps))
    )
    made, _ = streamed(authority, scheme)
    assert (made.status, made.clock) == ("completed", "process")
    chunks = made.received.chunks
    assert list(chunks.ms) == sorted(chunks.ms)
    assert min(gap for gap in chunks.gap_ms if gap == gap) >= 0  # noqa: PLR0124 - NaN differs from itself
    assert made.headers_ms is not None
    assert made.e2e_ms is not None
    assert 0 <= made.headers_ms <= chunks.ms[0] <= chunks.ms[-1] <= made.e2e_ms
    assert made.e2e_ms > 1e3 * _APART_S * _CHUNKS
