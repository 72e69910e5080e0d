"""One call, streamed or whole: the openai client builds the request, ``transport.py`` sends it.

Corrects a refused request: drops stream options, or renews a token. ``reading.py`` reads the response, and
``outcomes.py`` translates every failure into an error. ``transport.py`` owns the sockets, ``watchdog.py`` the timeouts,
and ``credentials.py`` the tokens.

The openai client knows URLs, query and headers. It builds each kind of request once (``client.post``, its public method
for arbitrary endpoints, over a transport that sends nothing). Building every request with it would take ten times as
long as the transport, and its typed objects would cost several times as much as everything else that a worker does for
a chunk.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx2
from openai import AsyncOpenAI, Omit

from deltatap.api.registry import specification
from deltatap.api.values import decode, to_json
from deltatap.errors import CredentialError, ProtocolError
from deltatap.http.credentials import credential_of
from deltatap.http.faults import internal_error
from deltatap.http.live import STREAMS, open_stream
from deltatap.http.moderations import verdict_of
from deltatap.http.outcomes import FAILURES, cancelled, error_of, used_up_for_s
from deltatap.http.parser import RefusedError
from deltatap.http.reading import Reading
from deltatap.http.redact import without_secrets
from deltatap.http.route import route_of
from deltatap.http.transport import Http1Transport
from deltatap.http.watchdog import Watchdog, current
from deltatap.model import INTERNAL_CUT, INTERNAL_REQUEST, Call, CaptureError
from deltatap.prompts import without_stream_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from deltatap.config import Timeouts
    from deltatap.endpoint import Endpoint
    from deltatap.http.credentials import Credential
    from deltatap.http.reading import Watch
    from deltatap.http.resumable import Resumable
    from deltatap.http.route import Route
    from deltatap.http.transport import Kind
    from deltatap.messages import OpenStream
    from deltatap.model import Verdict, Wire

# A server that does not know stream options refuses with one of these statuses, and its message names one of these
# words, in any spelling.
_REFUSED_OPTIONS = (200, 400, 422, 500, 501)
_STREAM_OPTIONS = ("streamoptions", "includeusage", "includeobfuscation", "continuoususagestats")
_SPELLING = str.maketrans("", "", "_- ")

# How many kinds of requests are kept: one for each token and, where a URL names the model, for each model.
_KEPT = 256
_MAX_LIST_BYTES = 64 * 2**20
_MODERATIONS = "/moderations"

_T = TypeVar("_T")


class _Unsent(httpx2.AsyncBaseTransport):
    """Sends nothing. The response has the request that the openai client has built."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, request=request)


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
        # By model, since a router may send each model to a different server: the request whose refusal named them.
        self._refuse_stream_options: dict[str, str] = {}
        # Otherwise the client sends OPENAI_ORG_ID and OPENAI_PROJECT_ID. Only the key comes from the environment.
        unset: dict[str, Any] = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        self._transport = Http1Transport(proxy=route.proxy, tls=route.tls)
        # By request_id and mode, in the order of their start.
        self._open: dict[tuple[str, str], tuple[Reading, Wire, float]] = {}
        # By method, path and token.
        self._kinds: dict[tuple[str, str, str | None], Kind] = {}
        self._client = AsyncOpenAI(
            api_key="",
            admin_api_key="",
            base_url=_base_url(endpoint),
            max_retries=0,
            timeout=None,
            default_headers=unset,
            default_query={"api-version": endpoint.api_version} if endpoint.api_version else None,
            http_client=httpx2.AsyncClient(transport=_Unsent(), timeout=None, trust_env=False),
        )
        # The client merges headers by their exact names; the configuration may write them in any case.
        known = ("Authorization", *self._client.default_headers, *self._api.headers)
        names = {name.lower(): name for name in known}
        given = {names.get(name.lower(), name): value for name, value in route.headers.items()}
        self._headers: dict[str, Any] = {"Authorization": Omit(), **self._api.headers, **given}

    async def call(
        self,
        wire: Wire,
        request_id: str = "unknown",
        watch: Watch | None = None,
        answer: Resumable | None = None,
    ) -> Call:
        """Make one call.

        Errors of the API and the network are outcomes, not exceptions. The same applies if the task is cancelled.

        Args:
            wire: the body, and whether the answer is streamed.
            request_id: of the row, for the log.
            watch: checks the answer while it arrives, and may cut it by cancelling the task.
            answer: the state of the answer, if this call may resume it; updated in place.

        Returns:
            What arrived and how the call ended.
        """
        started_at, started = self._wall(), time.perf_counter()
        with_options = wire.usage and wire.model not in self._refuse_stream_options
        body = without_stream_options(wire.body) if wire.usage and not with_options else wire.body
        reading = Reading(self._api, self._api.accumulator(wire.choices, keep_raw=self._keep_raw), request_id, watch)
        reads_on, after, mode = False, None, wire.mode
        if answer is not None:
            answer.secrets = self._secrets
            reads_on = answer.readable
            reading.accumulator = answer.begin(reading.accumulator, started_at)
            reading.identified, after = answer.changed, answer.after
            if reads_on:
                reading.written, reading.kernel = answer.written, answer.kernel
                reading.late_ms = array("d", answer.late_ms)
                mode = "complete" if answer.whole else mode
        self._open[reading.request_id, wire.mode] = reading, wire, started
        watchdog = Watchdog(self._timeouts, started, mode)
        if answer is not None and reads_on:
            work = self._read_on(wire, answer, reading, watchdog)
        else:
            work = self._read(wire, body, reading, watchdog)
        failure = await self._watched(work, reading, watchdog)
        over = time.perf_counter()
        self._open.pop((request_id, wire.mode), None)
        if answer is not None:
            answer.interrupt(reading.late_ms, kernel=reading.settled())
        received, status, error = reading.concluded(failure, wire.mode)
        began = None if reading.incoming is None else reading.seconds(reading.incoming.began)
        ended = reading.seconds(reading.ended) or over
        resend = False
        if error is not None and (reads_on or not received.output):
            resend = await self._adapt(error, reading, wire, with_options=with_options)
        call = Call(
            started_at=started_at,
            ended_at=started_at + ended - started,
            started=started,
            dispatch_ms=_ms(started, watchdog.written),
            headers_ms=_ms(watchdog.written, began),
            e2e_ms=_ms(watchdog.written if reading.written is None else reading.written, ended),
            server_request_id=reading.server_request_id,
            server_timing=reading.server_timing,
            received=received,
            status=status,
            error=error,
            http_status=reading.http_status,
            body=body,
            resend=resend,
            used_up_for_s=used_up_for_s(reading.headers, self._wall()),
            clock=reading.clock,
            connection=watchdog.connection,
        )
        if answer is None:
            return without_secrets(call, self._secrets)
        answer.call = without_secrets(answer.ended(call, after, reading=reads_on), self._secrets)
        return answer.call

    def open_streams(self) -> list[OpenStream]:
        """Some of the open calls, the oldest first."""
        oldest, secrets = islice(self._open.values(), STREAMS), self._secrets
        return [open_stream(reading, wire.model, wire.mode, started, secrets) for reading, wire, started in oldest]

    @property
    def _secrets(self) -> frozenset[str]:
        """The secrets that rows and messages must not contain."""
        return self._route.secrets | (self._credential.known if self._credential else frozenset())

    async def models(self) -> list[str] | CaptureError:
        """List the model ids under ``/models``, or say why that fails. The request is free of charge.

        Raises:
            CredentialError: there is no token.
        """

        def listed(body: bytes) -> list[str]:
            try:
                return [str(model["id"]) for model in decode(body)["data"]]
            except (ValueError, TypeError, KeyError) as error:
                raise ProtocolError("the response is not a list of models") from error

        return await self._free("GET", self._api.models_path, None, listed, self._timeouts)

    async def moderate(self, model: str, text: str, *, within_s: float = math.inf) -> Verdict | CaptureError:
        """Ask ``/moderations`` whether a text is flagged; returns the verdict, or the error.

        Args:
            model: the moderation model.
            text: to check.
            within_s: how long the call may take; ``timeouts.total_s`` if that is shorter.

        Raises:
            CredentialError: there is no token.
        """
        timeouts = self._timeouts.model_copy(update={"total_s": min(within_s, self._timeouts.total_s)})
        content = to_json({"model": model, "input": text}).encode()
        return await self._free("POST", _MODERATIONS, content, verdict_of, timeouts)

    async def _free(
        self, method: str, path: str, content: bytes | None, parse: Callable[[bytes], _T], timeouts: Timeouts
    ) -> _T | CaptureError:
        """Make a call that is not a request of the plan, and return the parsed body of its response, or the error."""
        reading = Reading(self._api, self._api.accumulator(), f"of {path}")
        headers = await self._signed(reading)
        if content is not None:
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **headers}
        watchdog = Watchdog(timeouts, time.perf_counter(), "complete")

        async def made() -> _T:
            kind = await self._kind(method, path, headers, reading.token)
            response = await self._transport.send(kind, content)
            body = bytearray()

            def keep(data: bytes, *_: float) -> bool:
                body.extend(data)
                return len(body) > _MAX_LIST_BYTES

            try:
                await response.read(keep)
            finally:
                response.close()
            return parse(bytes(body))

        found = await self._watched(made(), reading, watchdog)
        return without_secrets(found, self._secrets)

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _watched(self, work: Awaitable[_T], reading: Reading, watchdog: Watchdog) -> _T | CaptureError:
        """Run `work` within the timeouts. A failure or a cancellation becomes an error."""
        token = current.set(watchdog)
        try:
            with watchdog:
                return await work
        except asyncio.CancelledError:
            cut = None if reading.watch is None else reading.watch.cut
            return cut or cancelled(watchdog.fired, self._timeouts)
        except FAILURES as failure:
            reading.refused = failure if isinstance(failure, RefusedError) else None
            return error_of(failure, reading.http_status, self._wall())
        except BaseException as fault:  # noqa: BLE001 - logged, or else raised again
            code = INTERNAL_REQUEST if watchdog.written is None else INTERNAL_CUT
            return internal_error(fault, reading.request_id, code, "make the call")
        finally:
            current.reset(token)

    async def _read(self, wire: Wire, body: str, reading: Reading, watchdog: Watchdog) -> None:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **await self._signed(reading)}
        kind = await self._kind("POST", self._path(wire.model), headers, reading.token)
        incoming = await self._transport.send(kind, body.encode())
        try:
            await reading.read(incoming, watchdog)
        finally:
            incoming.close()

    async def _read_on(self, wire: Wire, answer: Resumable, reading: Reading, watchdog: Watchdog) -> None:
        """Resume the answer to an earlier request."""
        headers = {"Accept-Encoding": "identity", **await self._signed(reading)}
        path, query = self._api.read_on(
            self._path(wire.model), answer.response_id or "", answer.after, whole=answer.whole
        )
        options: Any = {"headers": headers, "params": query}
        # Each path is used once, so its kind is not kept.
        response = await self._client.get(path, cast_to=httpx2.Response, options=options)
        incoming = await self._transport.send(self._transport.kind(response.request), None)
        try:
            await reading.read(incoming, watchdog)
        finally:
            incoming.close()

    async def _kind(self, method: str, path: str, headers: Mapping[str, Any], token: str | None) -> Kind:
        """The kind of a request. The openai client builds one request of each kind."""
        kind = self._kinds.get((method, path, token))
        if kind is None:
            send = self._client.get if method == "GET" else self._client.post
            response = await send(path, cast_to=httpx2.Response, options={"headers": headers})
            if len(self._kinds) >= _KEPT:
                self._kinds.clear()
            kind = self._kinds[method, path, token] = self._transport.kind(response.request)
        return kind

    def _path(self, model: str) -> str:
        endpoint = self._endpoint
        path = self._api.path
        if endpoint.kind == "azure" and not endpoint.azure_v1 and self._api.per_deployment:
            return f"/deployments/{quote(model, safe='')}{path}"
        return path

    async def _signed(self, reading: Reading) -> dict[str, Any]:
        """The API's and the user's headers, with the key or the token. A token is renewed outside the event loop."""
        credential = self._credential
        if credential is None:
            return self._headers
        reading.token = credential.current or await asyncio.to_thread(credential.token)
        name, prefix = self._endpoint.key_header
        return self._headers | {name: f"{prefix}{reading.token}"}

    async def _adapt(self, error: CaptureError, reading: Reading, wire: Wire, *, with_options: bool) -> bool:
        """Correct a refused request: drop its stream options, or renew the token.

        Returns whether to resend the request at once.

        Args:
            error: why the call failed.
            reading: how far the call got.
            wire: the request.
            with_options: whether it was sent with stream options.
        """
        refusing = self._refuse_stream_options
        if with_options and error.http_status in _REFUSED_OPTIONS and _names_stream_options(error, reading):
            refusing.setdefault(wire.model, reading.request_id)
            return True
        dropped = wire.usage and not with_options
        if dropped and error.type == "invalid_request" and refusing.get(wire.model) == reading.request_id:
            # The options were not the reason: vLLM and FastAPI can quote the whole request that they refuse.
            del refusing[wire.model]
        if error.type == "authentication" and self._credential is not None and reading.token is not None:
            # A cancellation here changes nothing, because the call has already failed.
            with suppress(CredentialError, asyncio.CancelledError):
                return await asyncio.to_thread(self._credential.refused, reading.token)
        return False


def _base_url(endpoint: Endpoint) -> str:
    """The URL that paths are appended to; Azure's older URLs have deployments under ``/openai``."""
    url = endpoint.base_url.rstrip("/")
    if endpoint.kind == "azure" and not endpoint.azure_v1:
        return url if url.endswith("/openai") else f"{url}/openai"
    return url


def _ms(since: float | None, at: float | None) -> float | None:
    return None if since is None or at is None else (at - since) * 1e3


def _names_stream_options(error: CaptureError, reading: Reading) -> bool:
    body = "" if reading.refused is None else reading.refused.body.decode("utf-8", "replace")
    said = f"{error.message}\n{body}".translate(_SPELLING).lower()
    return any(name in said for name in _STREAM_OPTIONS)
