"""How a call reaches the socket and how long it may take: the openai client's transport over aiohttp, and a watchdog.

Knows when a request was written, which only aiohttp's trace tells, and which wait has been too long. Leaves to
``client.py`` what is sent and what comes back.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import aiohttp
import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import SimpleNamespace

    from deltatap.config import Timeouts
    from deltatap.prompts import Mode

# Where a response of the transport has aiohttp's own, which is read directly.
RESPONSE = "aiohttp_response"

# The watchdog of the call that the running task makes.
current: ContextVar[Watchdog] = ContextVar("current")


async def _on_written(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
    current.get().wrote(time.perf_counter())


class _Body(httpx2.AsyncByteStream):
    """A response's body as aiohttp reads it: one item for each time that the socket had something."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.response.content.readany():
            yield data

    async def aclose(self) -> None:
        self.response.close()


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends the openai client's requests through an aiohttp session, which tells when each was written."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; return as soon as the headers are there. aiohttp's own time-outs are off: the caller watches."""
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_on_written)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(),
                trace_configs=[trace],
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        response = await self._session.request(
            request.method,
            str(request.url),
            headers=request.headers,
            data=request.content or None,
            allow_redirects=False,
        )
        # aiohttp has undone any content-encoding by the time that the body is read.
        headers = [(k, v) for k, v in response.raw_headers if k.lower() != b"content-encoding"]
        # The stream is for the client, which reads errors; ours is read from the response itself, with nothing between.
        extensions = {RESPONSE: response}
        return httpx2.Response(
            response.status, headers=headers, stream=_Body(response), extensions=extensions, request=request
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


class Watchdog:
    """Knows when a call's request was written and when it last brought something; ends a call that waits too long.

    Re-arms when what is waited for changes, and when its timer fires: so a read costs one assignment.
    """

    def __init__(self, timeouts: Timeouts, started: float, mode: Mode) -> None:
        self.written: float | None = None
        self.last_read: float | None = None
        self.fired: str | None = None
        self._timeouts, self._started = timeouts, started
        # Of a whole answer the first byte comes when all of it has been generated.
        self._first_byte_s = timeouts.first_byte_s if mode == "stream" else timeouts.total_s
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call needs a task to end")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._arm()
        return self

    def __exit__(self, *exc: object) -> None:
        self._disarm()

    def wrote(self, at: float) -> None:
        """The request was written to the socket."""
        self.written = at
        self._arm()

    def first_read(self, at: float) -> None:
        """The answer's first bytes are there; later reads set `last_read`."""
        self.last_read = at
        self._arm()

    def due(self) -> tuple[float, str]:
        """When, in monotonic seconds, the call has waited too long, and for what."""
        timeouts = self._timeouts
        if self.last_read is not None:
            stage = (self.last_read + timeouts.idle_s, "idle")
        elif self.written is not None:
            stage = (self.written + self._first_byte_s, "first_byte")
        else:
            stage = (self._started + timeouts.connect_s, "connect")
        return min(stage, (self._started + timeouts.total_s, "total"))

    def _arm(self) -> None:
        self._disarm()
        when, what = self.due()
        wait = when - time.perf_counter()
        if wait <= 0:
            self.fired = what
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(wait, self._arm)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
