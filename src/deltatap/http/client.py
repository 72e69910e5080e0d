"""One call, streamed or whole: the openai client sends the request, this module reads the response.

Knows URLs, headers and how to read a body. ``outcomes.py`` translates every failure into an error.
``transport.py`` owns the sockets, ``watchdog.py`` the timeouts, ``api/`` decodes events, ``credentials.py`` holds
tokens.

Decoding a chunk into the openai client's typed objects costs several times as much as the rest of the worker's work on
a chunk. So the request uses ``client.post``, the client's public method for arbitrary endpoints. The client
still supplies base URL, headers and errors.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, Omit

from deltatap.api.registry import specification
from deltatap.api.sse import SSEDecoder
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.credentials import credential_of
from deltatap.http.outcomes import FAILURES, cancelled, conclude, error_of, used_up_for_s
from deltatap.http.route import route_of
from deltatap.http.transport import RESPONSE, Http1Transport
from deltatap.http.watchdog import Watchdog, current
from deltatap.model import Call, CaptureError, Chunks
from deltatap.prompts import without_stream_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deltatap.api.accumulate import Accumulator
    from deltatap.api.base import Api
    from deltatap.config import Endpoint, Timeouts
    from deltatap.http.connection import Response
    from deltatap.http.credentials import Credential
    from deltatap.http.route import Route
    from deltatap.model import Wire

_END_S = 0.5
_STREAM_OPTIONS = ("stream_options", "include_usage")
_MAX_WHOLE_BYTES = 64 * 2**20

_T = TypeVar("_T")


class EndpointClient:
    """Calls one endpoint. Create, use and close it on one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        timeouts: Timeouts,
        *,
        keep_raw: bool = False,
        credential: Credential | None = None,
        route: Route | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Open no connection yet.

        Args:
            endpoint: where to call, and which API it has.
            timeouts: how long each wait may take.
            keep_raw: whether to keep the bytes of every event.
            credential: replaces the one that the endpoint's configuration names.
            route: replaces headers, proxy and certificates that the endpoint's configuration names.
            wall: seconds since the epoch.

        Raises:
            ConfigError: a variable, a secret or a file that the configuration names is missing.
        """
        route = route or route_of(endpoint)
        self._endpoint, self._timeouts, self._keep_raw, self._wall = endpoint, timeouts, keep_raw, wall
        self._api = specification(endpoint.api)
        self._credential = credential or credential_of(endpoint)
        self._secrets = sorted(route.secrets, key=len, reverse=True)
        # By model, since a router may send each model to a different server.
        self._refuse_stream_options: set[str] = set()
        # Otherwise the client sends OPENAI_ORG_ID and OPENAI_PROJECT_ID. Only the key comes from the environment.
        unset: dict[str, Any] = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        transport = Http1Transport(proxy=route.proxy, tls=route.tls)
        self._client = AsyncOpenAI(
            api_key="",
            admin_api_key="",
            base_url=_base_url(endpoint),
            max_retries=0,
            timeout=None,
            default_headers=unset,
            default_query={"api-version": endpoint.api_version} if endpoint.api_version else None,
            http_client=httpx2.AsyncClient(transport=transport, timeout=None, trust_env=False),
        )
        # The client merges headers by their exact names; the configuration may write them in any case.
        known = ("Authorization", *self._client.default_headers, *self._api.headers)
        names = {name.lower(): name for name in known}
        given = {names.get(name.lower(), name): value for name, value in route.headers.items()}
        self._headers: dict[str, Any] = {"Authorization": Omit(), **self._api.headers, **given}

    async def call(self, wire: Wire) -> Call:
        """Make one call. Never raises for what the API or the network does; cancelling the task is an outcome, too.

        Args:
            wire: the body, and whether the answer is streamed.

        Returns:
            What arrived and how the call ended.
        """
        started_at, started = self._wall(), time.perf_counter()
        with_options = wire.usage and wire.model not in self._refuse_stream_options
        body = without_stream_options(wire.body) if wire.usage and not with_options else wire.body
        reading = _Reading(self._api, self._api.accumulator(wire.choices, keep_raw=self._keep_raw))
        watchdog = Watchdog(self._timeouts, started, wire.mode)
        failure = await self._watched(self._read(wire, body, reading, watchdog), reading, watchdog)
        ended = reading.ended or time.perf_counter()
        resend = failure is not None and await self._adapt(failure, reading, wire.model if with_options else None)
        received = reading.accumulator.finish()
        if wire.mode == "complete":
            received = replace(received, chunks=Chunks())
        status, error = conclude(received, failure)
        return Call(
            started_at=started_at,
            ended_at=started_at + ended - started,
            started=started,
            dispatch_ms=_ms(started, watchdog.written),
            headers_ms=_ms(watchdog.written, None if reading.incoming is None else reading.incoming.began),
            e2e_ms=_ms(watchdog.written, ended),
            server_request_id=reading.server_request_id,
            received=received,
            status=status,
            error=None if error is None else self._without_key(error),
            http_status=reading.http_status,
            body=body,
            resend=resend,
            used_up_for_s=None if reading.response is None else used_up_for_s(reading.response.headers, self._wall()),
        )

    async def models(self) -> list[str] | CaptureError:
        """List the model ids under ``/models``, or say why that fails. The request is free of charge.

        Raises:
            CredentialError: there is no token.
        """
        reading = _Reading(self._api, self._api.accumulator())
        headers = await self._signed(reading)
        watchdog = Watchdog(self._timeouts, time.perf_counter(), "complete")

        async def listed() -> list[str]:
            response = await self._client.get(
                self._api.models_path, cast_to=httpx2.Response, options={"headers": headers}
            )
            try:
                return [str(model["id"]) for model in response.json()["data"]]
            except (ValueError, TypeError, KeyError) as error:
                raise ProtocolError("the response is not a list of models") from error

        found = await self._watched(listed(), reading, watchdog)
        return self._without_key(found) if isinstance(found, CaptureError) else found

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _watched(self, work: Awaitable[_T], reading: _Reading, watchdog: Watchdog) -> _T | CaptureError:
        """Run `work` within the timeouts. A failure or a cancellation becomes an error."""
        token = current.set(watchdog)
        try:
            with watchdog:
                return await work
        except asyncio.CancelledError:
            return cancelled(watchdog.fired, self._timeouts)
        except FAILURES as failure:
            return error_of(failure, reading.http_status, self._wall(), self._api)
        finally:
            current.reset(token)

    async def _read(self, wire: Wire, body: str, reading: _Reading, watchdog: Watchdog) -> None:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **await self._signed(reading)}
        try:
            # With this `cast_to` the client returns an httpx2.Response, whatever `stream_cls` says to type checkers.
            response = reading.response = cast(
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
        except openai.APIStatusError as refused:
            reading.response = refused.response
            reading.accumulator.add_refusal(refused.body)
            raise
        incoming: Response = response.extensions[RESPONSE]
        reading.incoming = incoming
        content_type = response.headers.get("content-type", "")
        try:
            # The content type decides, not the mode: an answer in the other form is paid for, so it is kept.
            if content_type.startswith("text/event-stream"):
                await _read_stream(incoming, reading, watchdog)
            else:
                await _read_whole(incoming, content_type, reading, watchdog)
        finally:
            incoming.close()

    def _path(self, model: str) -> str:
        endpoint = self._endpoint
        path = self._api.path
        if endpoint.kind == "azure" and not endpoint.azure_v1 and self._api.per_deployment:
            return f"/deployments/{quote(model, safe='')}{path}"
        return path

    async def _signed(self, reading: _Reading) -> dict[str, Any]:
        """The API's and the user's headers, with the key or the token. A token is renewed outside the event loop."""
        credential = self._credential
        if credential is None:
            return self._headers
        reading.token = credential.current or await asyncio.to_thread(credential.token)
        name, prefix = self._endpoint.key_header
        return self._headers | {name: f"{prefix}{reading.token}"}

    async def _adapt(self, error: CaptureError, reading: _Reading, asked_usage_of: str | None) -> bool:
        """Correct what the server refused: drop stream options, or renew the token. Returns whether to resend at once.

        Args:
            error: why the call failed.
            reading: how far the call got.
            asked_usage_of: the model, if the request had stream options.
        """
        refused = error.http_status in (400, 422, 501) and any(name in error.message for name in _STREAM_OPTIONS)
        if asked_usage_of and refused:
            self._refuse_stream_options.add(asked_usage_of)
            return True
        if error.type == "authentication" and self._credential is not None and reading.token is not None:
            # A cancellation here changes nothing, because the call has already failed.
            with suppress(CredentialError, asyncio.CancelledError):
                return await asyncio.to_thread(self._credential.refused, reading.token)
        return False

    def _without_key(self, error: CaptureError) -> CaptureError:
        """Mask our key and the other secrets in an error, since some servers repeat them."""

        def hide(text: str) -> str:
            for secret in self._secrets:
                text = text.replace(secret, "***")
            return text if self._credential is None else self._credential.hide(text)

        return replace(error, code=error.code and hide(error.code), message=hide(error.message))


@dataclass(slots=True)
class _Reading:
    """The progress of a call; it remains available when the call fails.

    Attributes:
        api: the API that was called.
        accumulator: what arrived of the answer.
        token: the token that the request was sent with.
        response: the response's status and headers.
        incoming: the response's body; None unless the status is a success.
        ended: when the last event or byte of the answer arrived, in monotonic seconds.
    """

    api: Api
    accumulator: Accumulator
    token: str | None = None
    response: httpx2.Response | None = None
    incoming: Response | None = None
    ended: float | None = None

    @property
    def http_status(self) -> int | None:
        return None if self.response is None else self.response.status_code

    @property
    def server_request_id(self) -> str | None:
        if self.response is None:
            return None
        found = (self.response.headers.get(name) for name in self.api.request_id_headers)
        return next((str(request_id) for request_id in found if request_id), None)


def _base_url(endpoint: Endpoint) -> str:
    """The URL that paths are appended to; Azure's older URLs have deployments under ``/openai``."""
    url = endpoint.base_url.rstrip("/")
    if endpoint.kind == "azure" and not endpoint.azure_v1:
        return url if url.endswith("/openai") else f"{url}/openai"
    return url


def _ms(since: float | None, at: float | None) -> float | None:
    return None if since is None or at is None else (at - since) * 1e3


async def _read_stream(incoming: Response, reading: _Reading, watchdog: Watchdog) -> None:
    accumulator, decoder = reading.accumulator, SSEDecoder()
    written = watchdog.written or incoming.began
    reads = 0

    def take(data: bytes, now: float) -> bool:
        nonlocal reads
        watchdog.last_read = now
        if reads == 0:
            watchdog.first_read(now)
        ms = (now - written) * 1e3
        for event in decoder.feed(data):
            accumulator.add(event.data, ms, reads, event.event)
        reads += 1
        if accumulator.done:
            reading.ended = now
        return accumulator.done

    await incoming.read(take)
    reading.ended = reading.ended or time.perf_counter()
    if not incoming.complete:
        await _read_to_end(incoming)


async def _read_to_end(incoming: Response) -> None:
    """After [DONE], wait briefly for the end of the body: then the connection can be reused."""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(_END_S):
            await incoming.read(lambda *_: False)


async def _read_whole(incoming: Response, content_type: str, reading: _Reading, watchdog: Watchdog) -> None:
    pieces: list[bytes] = []
    size = 0

    def take(data: bytes, now: float) -> bool:
        nonlocal size
        watchdog.last_read = now
        if not pieces:
            watchdog.first_read(now)
        pieces.append(data)
        size += len(data)
        if size > _MAX_WHOLE_BYTES:
            raise ProtocolError(f"the answer exceeds {_MAX_WHOLE_BYTES:,} bytes")
        return False

    await incoming.read(take)
    reading.ended = time.perf_counter()
    body = b"".join(pieces)
    if not body.lstrip().startswith(b"{"):
        start = " ".join(body[:400].decode("utf-8", "replace").split())
        raise ProtocolError(
            f"expected an event stream or a JSON object, found {content_type or 'no content-type'}: {start[:80]}"
        )
    reading.accumulator.add_whole(body)
