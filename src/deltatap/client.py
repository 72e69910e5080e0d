"""One streamed call: the openai client sends it over aiohttp, the body's bytes are read as they come.

Knows sockets, headers, time-outs and which exceptions they raise; they become the outcomes' errors here, once. Leaves
decoding to ``sse.py``, what the events mean to ``accumulate.py``, and what happens next to ``outcomes.py``.

The client's typed chunk objects would cost several times what the rest of the worker does for a chunk, so the request
goes through ``client.post``, its public way for what it has no method for: credentials, base URL, headers and errors
stay its own.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, Omit

from deltatap.accumulate import ChatAccumulator
from deltatap.credentials import api_key
from deltatap.errors import ProtocolError
from deltatap.outcomes import CaptureError, Status, conclude, http_error
from deltatap.sse import SSEDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import SimpleNamespace

    from deltatap.config import Endpoint, Timeouts
    from deltatap.received import Received

PATH = "/chat/completions"
_RESPONSE = "aiohttp_response"
_SPENT_S = 0.5


@dataclass(frozen=True, slots=True)
class Call:
    """What one call brought. Times are in ms since the request was written, unless they say otherwise.

    Attributes:
        started_at: seconds since the epoch.
        ended_at: the same, by the monotonic clock's account of the call.
        started: monotonic seconds.
        dispatch_ms: from started to written; None when it was never written.
        headers_ms: the response's headers; None when none came.
        e2e_ms: the end of the stream or of the wait; None when the request was never written.
        server_request_id: the header x-request-id.
        received: what had arrived.
        status: of the call.
        error: None when it completed.
        http_status: of the response; None when none came.
    """

    started_at: float
    ended_at: float
    started: float
    dispatch_ms: float | None
    headers_ms: float | None
    e2e_ms: float | None
    server_request_id: str | None
    received: Received
    status: Status
    error: CaptureError | None
    http_status: int | None


_current: ContextVar[_Watchdog] = ContextVar("current")


async def _on_written(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
    _current.get().wrote(time.perf_counter())


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
        extensions = {_RESPONSE: response}
        return httpx2.Response(
            response.status, headers=headers, stream=_Body(response), extensions=extensions, request=request
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


class _Watchdog:
    """Knows when a call's request was written and when it last brought something; ends a call that waits too long.

    Re-arms when what is waited for changes, and when its timer fires: so a read costs one assignment.
    """

    def __init__(self, timeouts: Timeouts, started: float) -> None:
        self.written: float | None = None
        self.last_read: float | None = None
        self.fired: str | None = None
        self._timeouts, self._started = timeouts, started
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
            stage = (self.written + timeouts.first_byte_s, "first_byte")
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


class StreamingClient:
    """Streamed chat completions from one endpoint. Make it, use it and close it on one event loop."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, *, wall: Callable[[], float] = time.time) -> None:
        """Read the key, once, from the variable that the configuration names.

        Raises:
            ConfigError: when the variable is not set.
        """
        self._timeouts, self._wall = timeouts, wall
        self._key = api_key(endpoint)
        # No environment variable but the key's is read: OPENAI_ORG_ID and the like would be sent along.
        unsaid: dict[str, Any] = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        self._headers: dict[str, Any] = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key is None:
            self._headers["Authorization"] = Omit()
        self._client = AsyncOpenAI(
            api_key=self._key or "",
            admin_api_key="",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=None,
            default_headers=unsaid,
            http_client=httpx2.AsyncClient(transport=AiohttpTransport(), timeout=None, trust_env=False),
        )

    async def stream(self, body: str, choices: int = 1) -> Call:
        """One call with ``stream=True``; never raises for what the API or the network does.

        Args:
            body: the JSON body; it holds ``"stream": true``.
            choices: how many choices the body asks for.

        Returns:
            What arrived, however it ended. A cancelled task is an outcome like any other: `cancelled`.
        """
        started_at, started = self._wall(), time.perf_counter()
        reading = _Reading(ChatAccumulator(choices))
        failure: CaptureError | None = None
        watchdog = _Watchdog(self._timeouts, started)
        token = _current.set(watchdog)
        try:
            with watchdog:
                await self._read(body, reading, watchdog)
        except asyncio.CancelledError:
            failure = _cancelled(watchdog.fired, self._timeouts)
        except openai.APIStatusError as refused:
            response = refused.response
            reading.responded(response.status_code, response.headers.get("x-request-id"))
            failure = http_error(response.status_code, refused.body, response.headers, self._wall())
        except ProtocolError as strange:
            failure = CaptureError("protocol", None, str(strange), reading.http_status)
        except (aiohttp.ClientError, openai.APIConnectionError, httpx2.HTTPError, OSError) as lost:
            failure = CaptureError("connection", type(lost).__name__, str(lost) or type(lost).__name__)
        finally:
            ended = reading.ended or time.perf_counter()
            if reading.response is not None:
                reading.response.close()
            _current.reset(token)
        received = reading.accumulator.finish()
        status, error = conclude(received, failure)
        written = watchdog.written
        return Call(
            started_at=started_at,
            ended_at=started_at + ended - started,
            started=started,
            dispatch_ms=None if written is None else (written - started) * 1e3,
            headers_ms=None if written is None or reading.headers is None else (reading.headers - written) * 1e3,
            e2e_ms=None if written is None else (ended - written) * 1e3,
            server_request_id=reading.server_request_id,
            received=received,
            status=status,
            error=None if error is None else self._without_key(error),
            http_status=reading.http_status,
        )

    async def _read(self, body: str, reading: _Reading, watchdog: _Watchdog) -> None:
        # Asked for an httpx2.Response, the client hands out just that, whatever `stream_cls` promises to type checkers.
        response = cast(
            "httpx2.Response",
            await self._client.post(
                PATH,
                cast_to=httpx2.Response,
                content=body.encode(),
                options={"headers": self._headers},
                stream=True,
                stream_cls=AsyncStream[Any],
            ),
        )
        reading.headers = time.perf_counter()
        reading.responded(response.status_code, response.headers.get("x-request-id"))
        incoming: aiohttp.ClientResponse = response.extensions[_RESPONSE]
        reading.response = incoming
        written = watchdog.written or reading.headers
        content_type = response.headers.get("content-type", "")
        if not content_type.startswith("text/event-stream"):
            start = " ".join((await incoming.content.read(400)).decode("utf-8", "replace").split())
            raise ProtocolError(f"expected text/event-stream, found {content_type or 'no content-type'}: {start[:80]}")
        readany, accumulator, decoder = incoming.content.readany, reading.accumulator, SSEDecoder()
        read = 0
        while data := await readany():
            now = watchdog.last_read = time.perf_counter()
            if read == 0:
                watchdog.first_read(now)
            ms = (now - written) * 1e3
            for event in decoder.feed(data):
                accumulator.add(event.data, ms, read, event.event)
            read += 1
            if accumulator.done:
                reading.ended = now
                await _let_it_end(incoming)
                return
        reading.ended = time.perf_counter()

    def _without_key(self, error: CaptureError) -> CaptureError:
        """The error, with our key struck out: some servers repeat it."""
        if self._key is None or self._key not in f"{error.message}{error.code}":
            return error
        return CaptureError(
            error.type,
            error.code and error.code.replace(self._key, "***"),
            error.message.replace(self._key, "***"),
            error.http_status,
            error.retry_after_s,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


class _Reading:
    """How far a call got: what must be known when it breaks off anywhere."""

    __slots__ = ("accumulator", "ended", "headers", "http_status", "response", "server_request_id")

    def __init__(self, accumulator: ChatAccumulator) -> None:
        self.accumulator = accumulator
        self.response: aiohttp.ClientResponse | None = None
        self.ended: float | None = None
        self.headers: float | None = None
        self.http_status: int | None = None
        self.server_request_id: str | None = None

    def responded(self, status: int, request_id: str | None) -> None:
        self.http_status, self.server_request_id = status, request_id


async def _let_it_end(response: aiohttp.ClientResponse) -> None:
    """After [DONE] only the body's end is missing; with it the connection can be used again."""
    try:
        async with asyncio.timeout(_SPENT_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()


def _cancelled(fired: str | None, timeouts: Timeouts) -> CaptureError:
    if fired is None:
        return CaptureError("cancelled", None, "cut at the end of the grace period, when the run was stopped")
    seconds = getattr(timeouts, f"{fired}_s")
    waited = {
        "connect": "not connected",
        "first_byte": "no first byte of the answer",
        "idle": "nothing more of the answer",
        "total": "the answer was not complete",
    }
    return CaptureError("timeout", fired, f"{waited[fired]} after {seconds:g} s (timeouts.{fired}_s)")
