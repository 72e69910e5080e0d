"""One call, streamed or whole: the openai client sends it, the body's bytes are read as they come.

Knows URLs, headers and which exceptions a call may raise; they become the outcomes' errors here, once. Leaves sockets
and waits to ``transport.py``, decoding to ``sse.py``, what the events mean to ``deltatap.api``, tokens to
``credentials.py``, and what happens next to ``outcomes.py``.

The client's typed chunk objects would cost several times what the rest of the worker does for a chunk, so the request
goes through ``client.post``, its public way for what it has no method for: credentials, base URL, headers and errors
stay its own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, Omit

from deltatap.api.registry import specification
from deltatap.api.sse import SSEDecoder
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.credentials import credential_of
from deltatap.http.outcomes import conclude, http_error, used_up_for_s
from deltatap.http.transport import RESPONSE, Http1Transport, Watchdog, current
from deltatap.model import Call, CaptureError, Chunks
from deltatap.prompts import without_stream_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.api.accumulate import Accumulator
    from deltatap.api.base import Api
    from deltatap.config import Endpoint, Timeouts
    from deltatap.http.connection import Response
    from deltatap.http.credentials import Credential
    from deltatap.model import Wire

_SPENT_S = 0.5
_MAX_WHOLE_BYTES = 64 * 2**20


class EndpointClient:
    """Calls to one endpoint. Make it, use it and close it on one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        timeouts: Timeouts,
        *,
        keep_raw: bool = False,
        credential: Credential | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing yet.

        Args:
            endpoint: where to call, and whose form the answers have.
            timeouts: how long to wait for what.
            keep_raw: whether every event's bytes are kept.
            credential: instead of the one that the endpoint's configuration names.
            wall: the time in seconds since the epoch.

        Raises:
            ConfigError: when the variable that holds the key is not set.
        """
        self._endpoint, self._timeouts, self._keep_raw, self._wall = endpoint, timeouts, keep_raw, wall
        self._api = specification(endpoint.api)
        self._credential = credential or credential_of(endpoint)
        # Behind a router each model is another server.
        self._refuse_stream_options: set[str] = set()
        # No environment variable but the key's is read: OPENAI_ORG_ID and the like would be sent along.
        unsaid: dict[str, Any] = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        self._client = AsyncOpenAI(
            api_key="",
            admin_api_key="",
            base_url=_base_url(endpoint),
            max_retries=0,
            timeout=None,
            default_headers=unsaid,
            default_query={"api-version": endpoint.api_version} if endpoint.api_version else None,
            http_client=httpx2.AsyncClient(transport=Http1Transport(), timeout=None, trust_env=False),
        )

    async def call(self, wire: Wire) -> Call:
        """One call; never raises for what the API or the network does.

        Args:
            wire: the body, and whether the answer is streamed.

        Returns:
            What arrived, however it ended. A cancelled task is an outcome like any other: `cancelled`.
        """
        started_at, started = self._wall(), time.perf_counter()
        with_options = wire.usage and wire.model not in self._refuse_stream_options
        body = without_stream_options(wire.body) if wire.usage and not with_options else wire.body
        reading = _Reading(self._api, self._api.accumulator(wire.choices, keep_raw=self._keep_raw))
        failure: CaptureError | None = None
        mended = False
        watchdog = Watchdog(self._timeouts, started, wire.mode)
        token = current.set(watchdog)
        try:
            with watchdog:
                await self._read(wire, body, reading, watchdog)
        except asyncio.CancelledError:
            failure = _cancelled(watchdog.fired, self._timeouts)
        except openai.APIStatusError as refused:
            response = refused.response
            reading.responded(response)
            reading.accumulator.add_refusal(refused.body)
            failure = http_error(response.status_code, refused.body, response.headers, self._wall(), self._api)
            mended = await self._mend(failure, reading, wire.model if with_options else None)
        except CredentialError as absent:
            failure = CaptureError("connection", "credential", str(absent))
        except ProtocolError as strange:
            failure = CaptureError("protocol", None, str(strange), reading.http_status)
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as lost:
            failure = _lost(lost)
        finally:
            ended = reading.ended or time.perf_counter()
            if reading.response is not None:
                reading.response.close()
            current.reset(token)
        received = reading.accumulator.finish()
        if wire.mode == "complete":
            received = replace(received, chunks=Chunks())
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
            body=body,
            mended=mended,
            used_up_for_s=reading.used_up_for_s,
        )

    async def models(self) -> list[str] | CaptureError:
        """The ids that the endpoint lists under ``/models``, or why it lists none; nothing is paid for it."""
        headers = await self._signed(_Reading(self._api, self._api.accumulator()))
        watchdog = Watchdog(self._timeouts, time.perf_counter(), "complete")
        token = current.set(watchdog)
        try:
            with watchdog:
                response = await self._client.get(
                    self._api.models_path, cast_to=httpx2.Response, options={"headers": headers}
                )
            return [str(model["id"]) for model in response.json()["data"]]
        except asyncio.CancelledError:
            error = _cancelled(watchdog.fired, self._timeouts)
        except openai.APIStatusError as refused:
            response = refused.response
            error = http_error(response.status_code, refused.body, response.headers, self._wall(), self._api)
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as lost:
            error = _lost(lost)
        except (ValueError, TypeError, KeyError):
            error = CaptureError("protocol", None, "what it answers is no list of models")
        finally:
            current.reset(token)
        return self._without_key(error)

    async def _read(self, wire: Wire, body: str, reading: _Reading, watchdog: Watchdog) -> None:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **await self._signed(reading)}
        # Asked for an httpx2.Response, the client hands out just that, whatever `stream_cls` promises to type checkers.
        response = cast(
            "httpx2.Response",
            await self._client.post(
                self._path(wire.model),
                cast_to=httpx2.Response,
                content=body.encode(),
                options={"headers": headers},
                stream=True,
                stream_cls=AsyncStream[Any],
            ),
        )
        incoming: Response = response.extensions[RESPONSE]
        reading.response, reading.headers = incoming, incoming.began
        reading.responded(response)
        written = watchdog.written or reading.headers
        content_type = response.headers.get("content-type", "")
        # What is not what was asked for is paid for all the same, so it is kept.
        if content_type.startswith("text/event-stream"):
            await _read_stream(incoming, reading, watchdog, written)
        else:
            await _read_whole(incoming, content_type, reading, watchdog)

    def _path(self, model: str) -> str:
        endpoint = self._endpoint
        path = self._api.path
        if endpoint.kind == "azure" and not endpoint.azure_v1 and self._api.per_deployment:
            return f"/deployments/{quote(model, safe='')}{path}"
        return path

    async def _signed(self, reading: _Reading) -> dict[str, Any]:
        """The API's headers, with the key or the token; a token that must be renewed is fetched off the event loop."""
        headers: dict[str, Any] = {"Authorization": Omit(), **self._api.headers}
        credential = self._credential
        if credential is None:
            return headers
        reading.token = credential.current or await asyncio.to_thread(credential.token)
        key = self._endpoint.api_key
        if self._endpoint.kind == "databricks" or (key is not None and key.identity):
            return headers | {"Authorization": f"Bearer {reading.token}"}
        if self._endpoint.kind == "azure" and key is not None:
            return headers | {"api-key": reading.token}
        return headers | {self._api.key_header: f"{self._api.key_prefix}{reading.token}"}

    async def _mend(self, refusal: CaptureError, reading: _Reading, asked_usage_of: str | None) -> bool:
        """Learn from a refusal what the server does not take; whether the same request may do better now."""
        if asked_usage_of and refusal.http_status in (400, 422) and "stream_options" in refusal.message:
            self._refuse_stream_options.add(asked_usage_of)
            return True
        if refusal.type == "authentication" and self._credential is not None and reading.token is not None:
            try:
                return await asyncio.to_thread(self._credential.refused, reading.token)
            except CredentialError:
                return False
        return False

    def _without_key(self, error: CaptureError) -> CaptureError:
        """The error, with our key struck out: some servers repeat it."""
        if self._credential is None:
            return error
        hide = self._credential.hide
        return replace(error, code=error.code and hide(error.code), message=hide(error.message))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


class _Reading:
    """How far a call got: what must be known when it breaks off anywhere."""

    __slots__ = (
        "_api",
        "accumulator",
        "ended",
        "headers",
        "http_status",
        "response",
        "server_request_id",
        "token",
        "used_up_for_s",
    )

    def __init__(self, api: Api, accumulator: Accumulator) -> None:
        self._api = api
        self.accumulator = accumulator
        self.response: Response | None = None
        self.ended: float | None = None
        self.headers: float | None = None
        self.http_status: int | None = None
        self.server_request_id: str | None = None
        self.token: str | None = None
        self.used_up_for_s: float | None = None

    def responded(self, response: httpx2.Response) -> None:
        self.http_status = response.status_code
        found = (response.headers.get(name) for name in self._api.request_id_headers)
        self.server_request_id = next((str(request_id) for request_id in found if request_id), None)
        self.used_up_for_s = used_up_for_s(response.headers)


def _base_url(endpoint: Endpoint) -> str:
    """Azure's older URLs have the deployments under ``/openai``."""
    url = endpoint.base_url.rstrip("/")
    if endpoint.kind == "azure" and not endpoint.azure_v1:
        return url if url.endswith("/openai") else f"{url}/openai"
    return url


async def _read_stream(incoming: Response, reading: _Reading, watchdog: Watchdog, written: float) -> None:
    accumulator, decoder = reading.accumulator, SSEDecoder()
    read = 0

    def got(data: bytes, now: float) -> bool:
        nonlocal read
        watchdog.last_read = now
        if read == 0:
            watchdog.first_read(now)
        ms = (now - written) * 1e3
        for event in decoder.feed(data):
            accumulator.add(event.data, ms, read, event.event)
        read += 1
        if accumulator.done:
            reading.ended = now
        return accumulator.done

    await incoming.read(got)
    reading.ended = reading.ended or time.perf_counter()
    if not incoming.complete:
        await _let_it_end(incoming)


async def _read_whole(incoming: Response, content_type: str, reading: _Reading, watchdog: Watchdog) -> None:
    pieces: list[bytes] = []
    size = 0

    def got(data: bytes, now: float) -> bool:
        nonlocal size
        watchdog.last_read = now
        if not pieces:
            watchdog.first_read(now)
        pieces.append(data)
        size += len(data)
        if size > _MAX_WHOLE_BYTES:
            raise ProtocolError(f"the answer exceeds {_MAX_WHOLE_BYTES:,} bytes")
        return False

    await incoming.read(got)
    reading.ended = time.perf_counter()
    body = b"".join(pieces)
    if not body.lstrip().startswith(b"{"):
        start = " ".join(body[:400].decode("utf-8", "replace").split())
        raise ProtocolError(
            f"expected an event stream or a JSON object, found {content_type or 'no content-type'}: {start[:80]}"
        )
    reading.accumulator.add_whole(body)


async def _let_it_end(response: Response) -> None:
    """After [DONE] only the body's end is missing; with it the connection can be used again."""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(_SPENT_S):
            await response.read(lambda *_: False)


def _lost(error: Exception) -> CaptureError:
    """The client says of any lost connection only that; its cause tells more."""
    cause = error.__cause__ or error
    return CaptureError("connection", type(cause).__name__, str(cause) or type(cause).__name__)


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
