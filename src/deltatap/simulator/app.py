"""The simulator's endpoints: three APIs as OpenAI, Azure and Databricks have them, and what was sent, under ``/sim``.

Knows URLs, ASGI and the clock. Leaves what is answered to ``answers.py``, its JSON to ``frames.py``, what goes wrong to
``faults.py`` and what was done to ``record.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from heapq import merge
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deltatap.api.apis import PATHS
from deltatap.prompts import INPUTS, request_hash_of
from deltatap.simulator import frames
from deltatap.simulator.answers import Answer, Pace, Piece, answers, input_tokens
from deltatap.simulator.faults import REFUSALS, TRAITS, BadFaultError, Fault, by_rate, in_sequence, of_model, parse
from deltatap.simulator.frames import ChatFrames, CompletionsFrames, Facts, Frames
from deltatap.simulator.record import Call, Record, shown
from deltatap.simulator.responses import ResponsesFrames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from deltatap.model import Api

# One write of so many frames when a fault wants several in one.
_COALESCED = 4
_FRAMES: Mapping[Api, Callable[[Facts], Frames]] = {
    "chat": ChatFrames,
    "completions": CompletionsFrames,
    "responses": ResponsesFrames,
}
# Where the APIs are: OpenAI's and Azure's newer base, Azure's older one, Databricks' serving endpoints.
_BASES = ("/v1", "/openai/v1", "/openai/deployments/{deployment}", "/openai", "/serving-endpoints")


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """How the simulator behaves.

    Attributes:
        seed: the same seed gives the same answers, waits and faults.
        pace: how long answers are and how fast they come.
        faults: how often each fault happens, 0 to 1, by its text.
        in_a_row: how many calls in a row for one prompt may meet a fault by chance.
        models: what ``/v1/models`` lists.
        api_key_env: a key is asked for, the one in this environment variable; None asks for none.
        keep_calls: of how many calls texts and times are kept.
        requests_per_minute, tokens_per_minute: more within any sixty seconds are refused with 429.
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


class BrokenOff(Exception):  # noqa: N818 - not an error: what a fault asked for
    """The connection is closed on purpose."""


@dataclass(slots=True)
class _Stream:
    """Writes one streamed answer, as its fault wants it."""

    simulator: Simulator
    call: Call
    fault: Fault
    send: Send
    transport: Any
    gone: asyncio.Event
    held: list[bytes] = field(default_factory=list)
    begun: bool = False

    async def write(self, frame: bytes) -> None:
        """A frame, in the shape that the fault gives it."""
        fault = self.fault
        if "crlf" in fault or "cr" in fault:
            frame = frames.reshaped(frame, newline=b"\r\n" if "crlf" in fault else b"\r")
        if "bom" in fault and not self.begun:
            frame = b"\xef\xbb\xbf" + frame
        self.begun = True
        if "coalesce" in fault:
            self.held.append(frame)
            if len(self.held) >= int(fault.seconds(_COALESCED)):
                await self.flush()
        elif "fragment" in fault:
            for piece in frames.fragments(frame):
                await self._out(piece)
                await asyncio.sleep(0.001)
        else:
            await self._out(frame)

    async def data(self, frame: bytes) -> None:
        """A frame that counts as one."""
        self.call.frames += 1
        await self.write(frame)

    async def all(self, made: list[bytes]) -> None:
        """Frames that count as one each."""
        for frame in made:
            await self.data(frame)

    async def flush(self) -> None:
        """What is held to be written together."""
        if self.held:
            await self._out(b"".join(self.held))
            self.held.clear()

    async def _out(self, piece: bytes) -> None:
        if self.gone.is_set():
            raise ConnectionResetError
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def break_off(self) -> None:
        """What was written arrives, then the connection is gone."""
        await self.flush()
        self.transport.close()
        raise BrokenOff


class Simulator:
    """The ASGI application with its state."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.record = Record(settings.keep_calls)
        for text in settings.faults:
            parse(text)

    def application(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                *(Route(base + path, _Endpoint(self, api)) for base in _BASES for api, path in PATHS.items()),
                Route("/v1/models", self._models),
                *(Route(f"/sim/{what}", self._told) for what in ("calls", "counts", "stats")),
                Route("/sim/reset", self._reset, methods=["POST"]),
                Route("/sim/settings", self._change, methods=["POST"]),
            ]
        )

    def _refuses(self, bearer: str) -> bool:
        variable = self.settings.api_key_env
        return variable is not None and bearer != os.environ.get(variable, "")

    async def _models(self, request: Request) -> Response:
        if self._refuses(_bearer(request.headers)):
            return _refusal("401", None)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in self.settings.models]
        return JSONResponse({"object": "list", "data": data})

    async def _told(self, request: Request) -> Response:
        """On the event loop, which alone writes the record: a thread would read it while it changes."""
        record = self.record
        told = {"calls": record.told, "counts": record.counts, "stats": record.stats}
        return _json(told[request.url.path.rpartition("/")[2]]())

    async def _reset(self, _request: Request) -> Response:
        self.record.reset()
        return JSONResponse({})

    async def _change(self, request: Request) -> Response:
        """Change faults, in_a_row or the pace while it runs."""
        body = await request.json()
        try:
            for text in body.get("faults", {}):
                parse(text)
            pace = replace(self.settings.pace, **body.pop("pace", {}))
            self.settings = replace(self.settings, pace=pace, **body)
        except (BadFaultError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({})

    async def serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        content = await _body(receive)
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        started = time.monotonic()
        try:
            body = orjson.loads(content)
            key = request_hash_of(body)
            prompt = body[INPUTS[api][0]]
            if not prompt or (api == "chat" and not isinstance(prompt, list)):
                raise ValueError  # noqa: TRY301 - the same answer for all that is no request
            tokens = input_tokens(body, api)
            model, faults = of_model(str(body["model"]))
            faults = (*faults, *parse(headers.get("x-simulate", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = (
                str(error)
                if isinstance(error, BadFaultError)
                else f"expected a JSON body with model and {INPUTS[api][0]}."
            )
            await _refusal("400", said)(scope, receive, send)
            return
        bearer = _bearer(headers)
        call = self.record.begin(
            key=key,
            prompt=shown(prompt),
            path=scope["path"],
            model=str(body["model"]),
            started=started,
            streamed=body.get("stream") is True,
            bearer_sha256=hashlib.sha256(bearer.encode()).hexdigest() if bearer else None,
        )
        fault = in_sequence(faults, call.attempt)
        settings = self.settings
        if fault is None and not faults:
            fault = by_rate(settings.faults, key, call.attempt, settings.seed, settings.in_a_row)
        if self._refuses(bearer):
            fault = Fault(("401",))
        call.fault = None if fault is None else fault.text
        ended = "broken"
        try:
            ended = await self._answer(_Asked(api, body, model, tokens), call, fault or Fault(()), scope, receive, send)
        except BrokenOff:
            pass
        except ConnectionResetError:
            ended = "client_gone"
        finally:
            self.record.end(call, ended)

    async def _answer(self, asked: _Asked, call: Call, fault: Fault, scope: Scope, receive: Receive, send: Send) -> str:
        if "slow_headers" in fault:
            await asyncio.sleep(fault.seconds(5))
        transport = scope["extensions"]["transport"]
        if "cut_first" in fault:
            transport.close()
            raise BrokenOff
        body, api = asked.body, asked.api
        found = answers(body, call.key, self.settings.seed, self.settings.pace, api, fault.names)
        limits = self._limits(call, asked.input_tokens + sum(answer.tokens for answer in found))
        if refusal := _refused(asked, fault, limits):
            call.http_status = refusal.status_code
            await refusal(scope, receive, send)
            return "refused"
        call.http_status = 200
        if "html" in fault:
            await PlainTextResponse("<html><body>Welcome</body></html>", media_type="text/html")(scope, receive, send)
            return "broken"
        if reason := next((name for name in ("content_filter", "length") if name in fault), None):
            found = [replace(answer, finish_reason=reason) for answer in found]
        facts = _facts(asked, call, fault, found)
        made = _FRAMES[api](facts)
        extra = {"x-request-id": f"req_sim{call.number:08d}", "openai-processing-ms": "1", **limits}
        if not call.streamed:
            await asyncio.sleep(max(sum(answer.waits_s) for answer in found))
            for index, answer in enumerate(found):
                for piece in answer.pieces:
                    call.write(time.monotonic(), index, piece)
                call.finish_reasons[index] = answer.finish_reason
            call.chunks.clear()
            call.usage = facts.usage
            await JSONResponse(made.whole(found), headers=extra)(scope, receive, send)
            return "done"
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **extra}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        gone = asyncio.Event()
        watch = asyncio.create_task(_disconnected(receive, gone))
        try:
            stream = _Stream(self, call, fault, send, transport, gone)
            await stream.all(made.begin())
            await self._pieces(stream, made, found)
            return await self._end(stream, made, found, facts, api)
        finally:
            watch.cancel()

    def _limits(self, call: Call, tokens: int) -> dict[str, str]:
        """Headers that say what is left of the limits; with a Retry-After where the call is too much."""
        settings, record = self.settings, self.record
        headers: dict[str, str] = {}
        for what, limit, amount in (
            ("requests", settings.requests_per_minute, 1),
            ("tokens", settings.tokens_per_minute, tokens),
        ):
            if limit is None:
                continue
            used, free_in = record.within_a_minute(call.started, what)
            left = math.floor(limit - used - amount)
            headers |= {
                f"x-ratelimit-limit-{what}": f"{limit:g}",
                f"x-ratelimit-remaining-{what}": str(max(0, left)),
                f"x-ratelimit-reset-{what}": f"{free_in:.3f}s",
            }
            if left < 0 and used:
                headers["retry-after"] = f"{max(free_in, 0.05):.3f}"
        if "retry-after" not in headers:
            record.accept(call.started, tokens)
        return headers

    async def _pieces(self, stream: _Stream, made: Frames, found: list[Answer]) -> None:
        """The pieces of all choices, each at its time, counted from the call's start: delays do not add up."""
        call, fault, record = stream.call, stream.fault, self.record
        breaks = fault.piece if fault.piece is not None else max(1, sum(len(a.pieces) for a in found) // 2)
        roles = set(range(len(found)))
        left = [len(answer.pieces) for answer in found]
        sent = 0
        for due, index, piece in merge(*(_timed(index, answer) for index, answer in enumerate(found))):
            if sent == breaks:
                await self._break(stream, made)
            wait = call.started + due - time.monotonic()
            await asyncio.sleep(max(0.0, wait))
            if "comments" in fault:
                await stream.write(frames.COMMENT)
            if "empty_choices" in fault and sent % 5 == 0:
                await stream.all(made.empty())
            left[index] -= 1
            together = index in roles and "role_with_content" in fault and piece.kind == "content"
            if index in roles and not together:
                await stream.all(made.role(index))
            roles.discard(index)
            now = time.monotonic()
            if due:
                record.late_by(now - call.started - due)
            call.write(now, index, piece)
            last = not left[index] and "finish_with_content" in fault
            if together:
                await stream.all(made.role(index, piece.text))
            else:
                await stream.all(made.piece(index, piece, found[index].finish_reason if last else None))
            sent += 1
        if sent <= breaks:
            await self._break(stream, made)

    async def _break(self, stream: _Stream, made: Frames) -> None:
        """What breaks a stream breaks it here."""
        fault = stream.fault
        if "cut" in fault:
            await stream.break_off()
        if "stall" in fault:
            await stream.flush()
            try:
                await asyncio.wait_for(stream.gone.wait(), fault.seconds(3600))
            except TimeoutError:
                pass
            else:
                raise ConnectionResetError
        if "drip" in fault:
            await stream.flush()
            while not stream.gone.is_set():
                await stream.write(frames.COMMENT)
                await asyncio.sleep(fault.seconds(0.1))
            raise ConnectionResetError
        if "error_event" in fault:
            await stream.all(made.error(named=fault.argument == "event"))
        if "bad_json" in fault:
            await stream.data(frames.BAD_JSON)
        if "error_event" in fault or "no_end" in fault:
            await stream.flush()
            await stream.send({"type": "http.response.body", "body": b"", "more_body": False})
            raise BrokenOff

    async def _end(self, stream: _Stream, made: Frames, found: list[Answer], facts: Facts, api: Api) -> str:
        call, fault = stream.call, stream.fault
        for index, answer in enumerate(found):
            if "no_finish" not in fault:
                call.finish_reasons[index] = answer.finish_reason
                await stream.all(made.finish(index, answer, answer.finish_reason))
        if api != "responses" or "no_finish" not in fault:
            if facts.with_usage or api == "responses" or "usage_with_finish" in fault:
                call.usage = facts.usage
            await stream.all(made.end(found, found[0].finish_reason))
        if "no_done" not in fault and api != "responses":
            await stream.write(frames.DONE)
        await stream.flush()
        await stream.send({"type": "http.response.body", "body": b"", "more_body": False})
        return "broken" if "bad_json" in fault else "done"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it was understood."""

    api: Api
    body: dict[str, Any]
    model: str
    input_tokens: int


def _refused(asked: _Asked, fault: Fault, limits: dict[str, str]) -> Response | None:
    """Why there is no answer, by the fault or by the limits."""
    if "no_stream_options" in fault and "stream_options" in asked.body:
        return _refusal("400", "Unrecognized request argument supplied: stream_options")
    if refused := next((name for name in fault.names if name in REFUSALS), None):
        return _refusal(refused, None, fault.argument)
    return _refusal("429", None, None, limits) if "retry-after" in limits else None


def _facts(asked: _Asked, call: Call, fault: Fault, found: list[Answer]) -> Facts:
    options = asked.body.get("stream_options")
    wanted = isinstance(options, dict) and options.get("include_usage") is True
    output, reasoning = sum(answer.tokens for answer in found), sum(answer.reasoning_tokens for answer in found)
    traits = tuple(name for name in fault.names if name in TRAITS)
    # Responses asks for logprobs among what to include; the others by name.
    logprobs = bool(asked.body.get("logprobs")) or "message.output_text.logprobs" in (asked.body.get("include") or ())
    return Facts(
        f"sim{call.number:08d}",
        int(time.time()),
        asked.model,
        frames.usage(asked.input_tokens, output, reasoning, traits),
        with_usage=wanted and "no_usage" not in fault,
        logprobs=logprobs,
        traits=traits,
    )


class _Endpoint:
    """An instance, so that Starlette hands it ASGI itself: nothing stands between a frame and its write."""

    def __init__(self, simulator: Simulator, api: Api) -> None:
        self._simulator, self._api = simulator, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await PlainTextResponse("Method Not Allowed", 405)(scope, receive, send)
            return
        if (
            scope["path"].startswith("/openai/")
            and "/v1/" not in scope["path"]
            and b"api-version=" not in scope["query_string"]
        ):
            await _refusal("404", "Resource not found")(scope, receive, send)
            return
        await self._simulator.serve(self._api, scope, receive, send)


def _timed(index: int, answer: Answer) -> Iterator[tuple[float, int, Piece]]:
    due = 0.0
    for wait, piece in zip(answer.waits_s, answer.pieces, strict=True):
        due += wait
        yield due, index, piece


async def _body(receive: Receive) -> bytes:
    content, more = [], True
    while more:
        message = await receive()
        content.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(content)


async def _disconnected(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def _refusal(
    name: str, message: str | None, argument: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    status, kind, code, usual = REFUSALS[name]
    if headers is None and status == 429 and name != "quota":  # noqa: PLR2004 - too many requests
        date = formatdate(time.time() + 1, usegmt=True)
        headers = {
            "retry-after": date if argument == "date" else argument or "1",
            "x-ratelimit-remaining-requests": "0",
        }
    return JSONResponse(frames.error(kind, code, message or usual), status, headers)


def _bearer(headers: Mapping[str, str]) -> str:
    """The key that a request brings, as OpenAI or as Azure has it."""
    return headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("api-key", "")
