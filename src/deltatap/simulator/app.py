"""The simulator's endpoints: every API at the URLs of OpenAI, Azure and Databricks, and a record of calls at `/sim`.

This module knows URLs, ASGI and the clock. `answers.py` makes up the answer, each API's module turns it into JSON,
`stream.py` writes it, `refusals.py` refuses calls, `faults.py` defines the faults, and `record.py` records each call.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deltatap.api import registry
from deltatap.api.frames import Facts, usage
from deltatap.api.framing import BackgroundFrames
from deltatap.prompts import request_hash_of
from deltatap.simulator.answers import ENCODING, Pace, answers, planted
from deltatap.simulator.background import Kept, Store
from deltatap.simulator.faults import TRAITS, BadFaultError, Fault, by_rate, in_sequence, of_model, parse
from deltatap.simulator.moderations import FLAGGED, Moderations
from deltatap.simulator.record import Call, Record, start_of
from deltatap.simulator.refusals import limit_headers, not_found, of_call, of_fault, refusal
from deltatap.simulator.server import Endpoint, body_of, cors, disconnected
from deltatap.simulator.stream import BrokenOff, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from deltatap.api.base import Api
    from deltatap.api.frames import Answer, ParsedRequest

# OpenAI's base and Azure's newer one, Azure's older one, Databricks' serving endpoints.
_BASES = ("/v1", "/openai/v1", "/openai/deployments/{deployment}", "/openai", "/serving-endpoints")


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """How the simulator behaves.

    Attributes:
        seed: the same seed gives the same answers, waits and faults.
        pace: how long answers are and how fast they arrive.
        faults: the rate of each fault, 0 to 1, by its text.
        in_a_row: maximum number of consecutive random faults for one prompt.
        models: the models that `/v1/models` lists.
        api_key_env: name of the environment variable with the key that clients must send; None for no key.
        keep_calls: number of calls to keep, with their texts and times.
        requests_per_minute, tokens_per_minute: limits for any sixty seconds. A call above them gets a 429.
        slots: maximum number of answers that are generated at once; further calls wait in order. None: no maximum.
        flagged: the words that `/moderations` flags.
        moderation_ms: how long `/moderations` takes.
        keep_s: how long a response in the background is kept. Later, it is not found (404).
        stream_s: how long a response in the background can be streamed. Later, a stream is refused (400).
    """

    seed: int = 0
    pace: Pace = field(default_factory=Pace)
    faults: Mapping[str, float] = field(default_factory=dict)
    in_a_row: int = 2
    models: tuple[str, ...] = ("gpt-4o-mini", "gpt-4o", "gpt-3.5-turbo")
    api_key_env: str | None = None
    keep_calls: int = 50_000
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    slots: int | None = None
    flagged: Sequence[str] = FLAGGED
    moderation_ms: float = 0.0
    keep_s: float = 600.0
    stream_s: float = 300.0


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A parsed request."""

    api: Api
    body: dict[str, Any]
    parsed: ParsedRequest
    model: str
    input_tokens: int


class Simulator:
    """The ASGI application with its state."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.record = Record(settings.keep_calls)
        self.moderations = Moderations(settings.keep_calls)
        self._slots = _slots(settings)
        self._store = Store()
        for text in settings.faults:
            parse(text)

    def application(self) -> Starlette:
        """The routes."""
        apis = registry.specifications()
        return Starlette(
            middleware=[cors()],
            routes=[
                *(Route(base + api.path, Endpoint(self.serve, api)) for base in _BASES for api in apis),
                *(Route(f"{base}/moderations", self._moderate, methods=["POST"]) for base in _BASES),
                *(
                    Route(base + api.path + rest, Endpoint(serve, api))
                    for base in _BASES
                    for api in apis
                    if api.resume
                    for rest, serve in (("/{id}", self.read), ("/{id}/cancel", self.cancel))
                ),
                Route("/v1/models", self._models),
                *(Route(f"/sim/{what}", self._recorded) for what in ("calls", "counts", "stats", "moderations")),
                Route("/sim/reset", self._reset, methods=["POST"]),
                Route("/sim/settings", self._change, methods=["POST"]),
            ],
        )

    def _refuses(self, key: str) -> bool:
        variable = self.settings.api_key_env
        return variable is not None and key != os.environ.get(variable, "")

    async def _models(self, request: Request) -> Response:
        if self._refuses(_key(request.headers)):
            return refusal(None, "401")
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in self.settings.models]
        return JSONResponse({"object": "list", "data": data})

    async def _moderate(self, request: Request) -> Response:
        if self._refuses(_key(request.headers)):
            return refusal(None, "401")
        return await self.moderations.answer(request, self.settings.flagged, self.settings.moderation_ms / 1e3)

    async def _recorded(self, request: Request) -> Response:
        """Read the record on the event loop, which also writes it. In a thread, the record could change meanwhile."""
        record = self.record
        readers: dict[str, Callable[[], Any]] = {
            "calls": record.all_calls,
            "counts": record.counts,
            "stats": record.stats,
            "moderations": lambda: {"most_open": self.moderations.most_open, "calls": list(self.moderations.calls)},
        }
        content = readers[request.url.path.rpartition("/")[2]]()
        return Response(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")

    async def _reset(self, _request: Request) -> Response:
        self.record.reset()
        self.moderations.reset()
        return JSONResponse({})

    async def _change(self, request: Request) -> Response:
        """Change faults, in_a_row, the pace or other settings of the running simulator."""
        body = await request.json()
        try:
            for text in body.get("faults", {}):
                parse(text)
            pace = replace(self.settings.pace, **body.pop("pace", {}))
            self.settings = replace(self.settings, pace=pace, **body)
            self._slots = _slots(self.settings)
        except (BadFaultError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({})

    async def serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        path = scope["path"]
        if scope["method"] != "POST":
            await PlainTextResponse("Method Not Allowed", 405)(scope, receive, send)
            return
        if path.startswith("/openai/") and "/v1/" not in path and b"api-version=" not in scope["query_string"]:
            await refusal(api, "404", "Resource not found")(scope, receive, send)
            return
        content = await body_of(receive)
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        started = time.monotonic()
        try:
            body = orjson.loads(content)
            request_hash = request_hash_of(_without_resume(api, body))
            parsed = api.parse_request(body)
            input_tokens = api.count_input(body, str(body.get("model")), ENCODING).tokens
            model, faults = of_model(str(body["model"]))
            faults = (*faults, *parse(headers.get("x-simulate", "")))
        except BadFaultError as error:
            await refusal(api, "400", str(error))(scope, receive, send)
            return
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            message = f"expected a JSON body with model and {api.prompt_field}."
            await refusal(api, "400", message)(scope, receive, send)
            return
        key = _key(headers)
        call = self.record.begin(
            key=request_hash,
            prompt=start_of(api.last_prompt(body)),
            path=path,
            model=str(body["model"]),
            started=started,
            port=scope["client"][1],
            streamed=body.get("stream") is True,
            bearer_sha256=_sha256(key),
        )
        fault = Fault(("401",)) if self._refuses(key) else self._fault(faults, call)
        call.fault = None if fault is None else fault.text
        incoming = _Incoming(api, body, parsed, model, input_tokens)
        await self._finish(call, self._answer(incoming, call, fault or Fault(()), scope, receive, send))

    async def read(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a response in the background: its events after a number, or all of it."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        kept = self._store.find(scope["path_params"]["id"], self.settings.keep_s)
        if scope["method"] != "GET" or kept is None:
            await not_found(api, scope["path_params"]["id"])(scope, receive, send)
            return
        streamed, after = query.get("stream") == ["true"], query.get("starting_after", [""])[0]
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        key = _key(headers)
        first = kept.call
        call = self.record.begin(
            key=first.key, prompt=first.prompt, path=scope["path"], model=first.model, started=time.monotonic(),
            streamed=streamed, bearer_sha256=_sha256(key), method="GET", response_id=kept.id,
            after=int(after) if after.isdecimal() else None,
        )  # fmt: skip
        fault = Fault(("401",)) if self._refuses(key) else self._fault(of_model(first.model)[1], call)
        call.fault = None if fault is None else fault.text
        await self._finish(call, self._read(api, kept, call, fault or Fault(()), scope, receive, send))

    async def _finish(self, call: Call, answering: Awaitable[str]) -> None:
        """Answer a call, and record how it ended."""
        ended = "broken"
        try:
            ended = await answering
        except BrokenOff:
            pass
        except ConnectionResetError:
            ended = "client_gone"
        finally:
            self.record.end(call, ended)

    async def _read(
        self, api: Api, kept: Kept, call: Call, fault: Fault, scope: Scope, receive: Receive, send: Send
    ) -> str:
        """Answer a call that reads a response; returns how it ended."""
        transport = scope["extensions"]["transport"]
        if "cut_first" in fault:
            transport.close()
            raise BrokenOff
        refused = of_fault(api, fault)
        if refused is None and call.streamed and time.monotonic() - kept.created > self.settings.stream_s:
            why = f"This response can no longer be streamed because it is more than {self.settings.stream_s:g} s old."
            refused = refusal(api, "400", why)
        if refused is not None:
            call.http_status = refused.status_code
            await refused(scope, receive, send)
            return "refused"
        call.http_status = 200
        if not call.streamed:
            await JSONResponse(kept.whole())(scope, receive, send)
            return "done" if kept.over else "unfinished"
        return await _followed(kept, call, fault, {}, scope, receive, send)

    async def cancel(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Cancel a response in the background."""
        kept = self._store.find(scope["path_params"]["id"], self.settings.keep_s)
        if scope["method"] != "POST" or kept is None:
            await not_found(api, scope["path_params"]["id"])(scope, receive, send)
            return
        kept.cancel()
        await JSONResponse(kept.whole())(scope, receive, send)

    def _fault(self, requested: Sequence[Fault], call: Call) -> Fault | None:
        """The fault that the request asks for, or a random fault if the request asks for none."""
        if requested:
            return in_sequence(requested, call.attempt)
        settings = self.settings
        return by_rate(settings.faults, call.key, call.attempt, settings.seed, settings.in_a_row)

    async def _answer(
        self, incoming: _Incoming, call: Call, fault: Fault, scope: Scope, receive: Receive, send: Send
    ) -> str:
        """Answer the call; returns how it ended."""
        if "slow_headers" in fault:
            await asyncio.sleep(fault.seconds(5))
        transport = scope["extensions"]["transport"]
        if "cut_first" in fault:
            transport.close()
            raise BrokenOff
        found = answers(incoming.parsed, call.key, self.settings.seed, self.settings.pace, fault.names)
        if "planted" in fault:
            word, at = fault.argument or self.settings.flagged[0], fault.piece
            found = [planted(answer, word, len(answer.pieces) // 2 if at is None else at) for answer in found]
        limits = limit_headers(
            self.record,
            call.started,
            incoming.input_tokens + sum(answer.tokens for answer in found),
            requests_per_minute=self.settings.requests_per_minute,
            tokens_per_minute=self.settings.tokens_per_minute,
        )
        if refused := of_call(incoming.api, incoming.body, fault, limits):
            call.http_status = refused.status_code
            await refused(scope, receive, send)
            return "refused"
        call.http_status = 200
        if "html" in fault:
            await PlainTextResponse("<html><body>Welcome</body></html>", media_type="text/html")(scope, receive, send)
            return "broken"
        if reason := next((name for name in ("content_filter", "length") if name in fault), None):
            found = [replace(answer, finish_reason=reason) for answer in found]
        async with self._slots:
            call.began = time.monotonic()
            return await self._generate(incoming, call, fault, found, limits, receive, send, scope)

    async def _generate(
        self,
        incoming: _Incoming,
        call: Call,
        fault: Fault,
        found: list[Answer],
        limits: Mapping[str, str],
        receive: Receive,
        send: Send,
        scope: Scope,
    ) -> str:
        """Write the answer; returns how the call ended."""
        api, transport = incoming.api, scope["extensions"]["transport"]
        facts = _facts(incoming, call, fault, found)
        frames = api.frames(facts)
        headers = {api.request_id_headers[0]: f"req_sim{call.number:08d}", "openai-processing-ms": "1", **limits}
        if "background" in facts.traits and isinstance(frames, BackgroundFrames):
            kept = Kept(frames.unfinished("queued")["id"], call, frames, found, time.monotonic())
            call.response_id = kept.id
            self._store.add(kept)
            kept.start(self.record, fault)
            if call.streamed:
                return await _followed(kept, call, fault, headers, scope, receive, send)
            await JSONResponse(kept.whole(), headers=headers)(scope, receive, send)
            return "unfinished"
        if not call.streamed:
            await asyncio.sleep(max(sum(answer.waits_s) for answer in found))
            for index, answer in enumerate(found):
                for piece in answer.pieces:
                    call.write(time.monotonic(), index, piece)
                call.finish_reasons[index] = answer.finish_reason
            call.chunks.clear()
            call.usage = facts.usage
            await JSONResponse(frames.whole(found), headers=headers)(scope, receive, send)
            return "done"
        await _start_stream(send, headers)
        async with disconnected(receive) as gone:
            stream = Stream(call, self.record, fault, frames, send, transport, gone)
            return await stream.run(found, api.end_mark)


def _slots(settings: SimulatorSettings) -> AbstractAsyncContextManager[None]:
    return nullcontext() if settings.slots is None else asyncio.Semaphore(settings.slots)


def _facts(incoming: _Incoming, call: Call, fault: Fault, found: Sequence[Answer]) -> Facts:
    output, reasoning = sum(answer.tokens for answer in found), sum(answer.reasoning_tokens for answer in found)
    traits = tuple(name for name in fault.names if name in TRAITS)
    if incoming.api.resume and incoming.body.get("background"):
        traits = (*traits, "background")
    reports = incoming.parsed.usage
    return Facts(
        f"sim{call.number:08d}",
        int(time.time()),
        incoming.model,
        usage(incoming.input_tokens, output, reasoning, traits),
        # An API without stream options always reports usage.
        with_usage=reports and not (incoming.api.takes_stream_options and "no_usage" in fault),
        logprobs=incoming.parsed.logprobs,
        traits=traits,
    )


async def _followed(
    kept: Kept, call: Call, fault: Fault, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
) -> str:
    """Stream a response in the background; returns how the call ended."""
    await _start_stream(send, headers)
    async with disconnected(receive) as gone:
        after = -1 if call.after is None else call.after
        return await kept.follow(after, send, fault, scope["extensions"]["transport"], gone)


async def _start_stream(send: Send, headers: Mapping[str, str]) -> None:
    headers = {**headers, "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": encoded})


def _without_resume(api: Api, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body without the fields that ``capture.resume`` adds, which no hash contains."""
    resumes = bool(api.resume) and all(body.get(name) == value for name, value in api.resume.items())
    return {name: value for name, value in body.items() if not resumes or name not in api.resume}


def _sha256(key: str) -> str | None:
    return hashlib.sha256(key.encode()).hexdigest() if key else None


def _key(headers: Mapping[str, str]) -> str:
    """The API key of a request, from the header of any API, or from Azure's header."""
    for api in registry.specifications():
        if key := headers.get(api.key_header.lower(), "").removeprefix(api.key_prefix).strip():
            return key
    return headers.get("api-key", "")
