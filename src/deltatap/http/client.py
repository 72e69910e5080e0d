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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import httpx2
from openai import AsyncOpenAI, AsyncStream, Omit

from deltatap.api.body import AnswerBody
from deltatap.api.registry import specification
from deltatap.api.values import clean, decode
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.credentials import credential_of
from deltatap.http.faults import internal_error, is_fault
from deltatap.http.outcomes import FAILURES, cancelled, conclude, error_of, used_up_for_s
from deltatap.http.parser import RefusedError
from deltatap.http.redact import without_secrets
from deltatap.http.route import route_of
from deltatap.http.transport import RESPONSE, Http1Transport
from deltatap.http.watchdog import Watchdog, current
from deltatap.model import INTERNAL_COMPLETE, INTERNAL_CUT, INTERNAL_REQUEST, Call, CaptureError, Chunks, Received
from deltatap.prompts import without_stream_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from deltatap.api.accumulate import Accumulator
    from deltatap.api.base import Api
    from deltatap.config import Endpoint, Timeouts
    from deltatap.http.connection import Response
    from deltatap.http.credentials import Credential
    from deltatap.http.route import Route
    from deltatap.model import Mode, Status, Wire

_END_S = 0.5
# What is kept of an answer that deltatap cannot handle.
_MAX_REST_BYTES = 16 * 2**20
# A server that does not know stream options refuses with one of these, and names one of them.
_REFUSED_OPTIONS = (200, 400, 422, 501)
_STREAM_OPTIONS = ("stream_options", "include_usage", "include_obfuscation", "continuous_usage_stats")

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
        self._route = route = route or route_of(endpoint)
        self._endpoint, self._timeouts, self._keep_raw, self._wall = endpoint, timeouts, keep_raw, wall
        self._api = specification(endpoint.api)
        self._credential = credential or credential_of(endpoint)
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

    async def call(self, wire: Wire, request_id: str = "unknown") -> Call:
        """Make one call. Never raises for what the API or the network does; cancelling the task is an outcome, too.

        Args:
            wire: the body, and whether the answer is streamed.
            request_id: of the row, for the log.

        Returns:
            What arrived and how the call ended.
        """
        started_at, started = self._wall(), time.perf_counter()
        with_options = wire.usage and wire.model not in self._refuse_stream_options
        body = without_stream_options(wire.body) if wire.usage and not with_options else wire.body
        reading = _Reading(self._api, self._api.accumulator(wire.choices, keep_raw=self._keep_raw), request_id)
        watchdog = Watchdog(self._timeouts, started, wire.mode)
        failure = await self._watched(self._read(wire, body, reading, watchdog), reading, watchdog)
        ended = reading.ended or time.perf_counter()
        received, status, error = _concluded(reading, failure, wire.mode)
        resend = False
        if error is not None and not received.output:
            resend = await self._adapt(error, reading, wire.model if with_options else None)
        call = Call(
            started_at=started_at,
            ended_at=started_at + ended - started,
            started=started,
            dispatch_ms=_ms(started, watchdog.written),
            headers_ms=_ms(watchdog.written, None if reading.incoming is None else reading.incoming.began),
            e2e_ms=_ms(watchdog.written, ended),
            server_request_id=reading.server_request_id,
            received=received,
            status=status,
            error=error,
            http_status=reading.http_status,
            body=body,
            resend=resend,
            used_up_for_s=_used_up_for_s(reading, self._wall()),
        )
        return without_secrets(call, self._secrets)

    @property
    def _secrets(self) -> frozenset[str]:
        """What no row and no message may contain."""
        return self._route.secrets | (self._credential.known if self._credential else frozenset())

    async def models(self) -> list[str] | CaptureError:
        """List the model ids under ``/models``, or say why that fails. The request is free of charge.

        Raises:
            CredentialError: there is no token.
        """
        reading = _Reading(self._api, self._api.accumulator(), "of the models")
        headers = await self._signed(reading)
        watchdog = Watchdog(self._timeouts, time.perf_counter(), "complete")

        async def listed() -> list[str]:
            response = await self._client.get(
                self._api.models_path, cast_to=httpx2.Response, options={"headers": headers}
            )
            try:
                return [str(model["id"]) for model in decode(response.content)["data"]]
            except (ValueError, TypeError, KeyError) as error:
                raise ProtocolError("the response is not a list of models") from error

        found = await self._watched(listed(), reading, watchdog)
        return without_secrets(found, self._secrets) if isinstance(found, CaptureError) else found

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
            # The openai client wraps what its transport raises.
            refused = failure if isinstance(failure, RefusedError) else failure.__cause__
            reading.refused = refused if isinstance(refused, RefusedError) else None
            return error_of(failure, reading.http_status, self._wall(), self._api)
        except BaseException as fault:  # noqa: BLE001 - logged, or else raised again
            code = INTERNAL_REQUEST if watchdog.written is None else INTERNAL_CUT
            return internal_error(fault, reading.request_id, code, "make the call")
        finally:
            current.reset(token)

    async def _read(self, wire: Wire, body: str, reading: _Reading, watchdog: Watchdog) -> None:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **await self._signed(reading)}
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
        incoming: Response = response.extensions[RESPONSE]
        reading.incoming = incoming
        try:
            await _read_answer(incoming, response.headers.get("content-type", ""), reading, watchdog)
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
        if asked_usage_of and error.http_status in _REFUSED_OPTIONS and _names_stream_options(error, reading):
            self._refuse_stream_options.add(asked_usage_of)
            return True
        if error.type == "authentication" and self._credential is not None and reading.token is not None:
            # A cancellation here changes nothing, because the call has already failed.
            with suppress(CredentialError, asyncio.CancelledError):
                return await asyncio.to_thread(self._credential.refused, reading.token)
        return False


@dataclass(slots=True)
class _Reading:
    """The progress of a call; it remains available when the call fails.

    Attributes:
        api: the API that was called.
        accumulator: what arrived of the answer.
        request_id: of the row.
        token: the token that the request was sent with.
        response: the response's status and headers, if the status is a success.
        refused: the response, if the status is an error.
        incoming: the response's body; None unless the status is a success.
        ended: when the last event or byte of the answer arrived, in monotonic seconds.
        fault: what deltatap raised because of the answer.
        rest: the answer from there on.
    """

    api: Api
    accumulator: Accumulator
    request_id: str
    token: str | None = None
    response: httpx2.Response | None = None
    refused: RefusedError | None = None
    incoming: Response | None = None
    ended: float | None = None
    fault: BaseException | None = None
    rest: bytearray = field(default_factory=bytearray)

    @property
    def http_status(self) -> int | None:
        if self.refused is not None:
            return self.refused.status
        return None if self.response is None else self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        answered = self.refused or self.response
        return {} if answered is None else answered.headers

    @property
    def server_request_id(self) -> str | None:
        found = (self.headers.get(name) for name in self.api.request_id_headers)
        return next((clean(request_id) for request_id in found if request_id), None)


def _base_url(endpoint: Endpoint) -> str:
    """The URL that paths are appended to; Azure's older URLs have deployments under ``/openai``."""
    url = endpoint.base_url.rstrip("/")
    if endpoint.kind == "azure" and not endpoint.azure_v1:
        return url if url.endswith("/openai") else f"{url}/openai"
    return url


def _ms(since: float | None, at: float | None) -> float | None:
    return None if since is None or at is None else (at - since) * 1e3


def _concluded(
    reading: _Reading, failure: CaptureError | None, mode: Mode
) -> tuple[Received, Status, CaptureError | None]:
    """What was received, and what it means. A fault of deltatap itself is an error of this call."""
    received = Received(Chunks())
    try:
        if reading.refused is not None:
            reading.accumulator.add_refusal(reading.refused.body)
        received = reading.accumulator.finish()
        status, error = conclude(received, failure)
    except BaseException as fault:  # noqa: BLE001 - logged, or else raised again
        status, error = "interrupted", _fault(reading, fault, failure)
    else:
        if reading.fault is not None:
            status, error = "interrupted", _fault(reading, reading.fault, failure)
            received = replace(received, raw=(*(received.raw or ()), ("", bytes(reading.rest))))
    if mode == "complete":
        received = replace(received, chunks=Chunks())
    return received, status, error


def _fault(reading: _Reading, fault: BaseException, failure: CaptureError | None) -> CaptureError:
    code = INTERNAL_COMPLETE if failure is None else INTERNAL_CUT
    return internal_error(fault, reading.request_id, code, "handle the answer")


def _names_stream_options(error: CaptureError, reading: _Reading) -> bool:
    body = "" if reading.refused is None else reading.refused.body.decode("utf-8", "replace")
    return any(name in error.message or name in body for name in _STREAM_OPTIONS)


def _used_up_for_s(reading: _Reading, now: float) -> float | None:
    return used_up_for_s(reading.headers, now) if reading.headers else None


async def _read_answer(incoming: Response, content_type: str, reading: _Reading, watchdog: Watchdog) -> None:
    accumulator = reading.accumulator
    body = AnswerBody(accumulator, content_type)
    written = watchdog.written or incoming.began
    reads = 0

    def take(data: bytes, now: float) -> bool:
        nonlocal reads
        watchdog.last_read = now
        if reads == 0:
            watchdog.first_read(now)
        if reading.fault is not None:
            reading.rest += data[: _MAX_REST_BYTES - len(reading.rest)]
            return False
        try:
            body.feed(data, (now - written) * 1e3, reads)
        except ProtocolError:
            raise
        except BaseException as fault:
            if not is_fault(fault):
                raise
            reading.fault = fault
            reading.rest += data[:_MAX_REST_BYTES]
            return False
        reads += 1
        if accumulator.done:
            reading.ended = now
        return accumulator.done

    try:
        await incoming.read(take)
    except BaseException:
        # What has arrived counts, and the failure is known already.
        _end(body, reading, complete=False)
        raise
    reading.ended = reading.ended or time.perf_counter()
    _end(body, reading, complete=True)
    if not incoming.complete:
        await _read_to_end(incoming)


def _end(body: AnswerBody, reading: _Reading, *, complete: bool) -> None:
    if reading.fault is not None:
        return
    try:
        body.end(complete=complete)
    except ProtocolError:
        if complete:
            raise
    except BaseException as fault:
        if not is_fault(fault):
            raise
        reading.fault = fault


async def _read_to_end(incoming: Response) -> None:
    """After [DONE], wait briefly for the end of the body: then the connection can be reused."""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(_END_S):
            await incoming.read(lambda *_: False)
