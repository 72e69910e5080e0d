"""What was captured is said again: chat completions and legacy completions, at the pace at which they came, or broke.

Knows how a row of ``captures`` becomes frames and when each is due, and which row answers a request. Where the events'
bytes were kept (``capture.keep_raw``), these are said, in any API; else frames are made from the chunks.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from deltatap.api.apis import PATHS
from deltatap.prompts import INPUTS, request_hash_of
from deltatap.simulator.frames import DONE, error, event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from deltatap.model import Api


_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True)
class Recording:
    """One captured answer.

    Attributes:
        request_id, request_hash: of the row.
        prompt: the last thing that was asked, as text; what a request with another body is matched by.
        api: whose form the answer has.
        streamed: whether it was captured as a stream.
        status: HTTP status; 0 where no response ever came.
        headers_ms: when the response began.
        frames: (ms, bytes), in order; of a whole answer one.
        end_ms: when it ended.
        broken: whether the connection broke then.
    """

    request_id: str
    request_hash: str
    prompt: str
    api: Api
    streamed: bool
    status: int
    headers_ms: float
    frames: tuple[tuple[float, bytes], ...]
    end_ms: float
    broken: bool


def recording(row: Mapping[str, Any]) -> Recording:
    """The recording of a row of captures, given as a dict.

    Raises:
        ValueError: when the row's API cannot be said again without the events' bytes.
    """
    body = json.loads(row["request"] or "{}")
    streamed, api = row["mode"] == "stream", row["api"]
    failed = row["error"] or {}
    status = 200 if row["status"] != "failed" else failed.get("http_status") or 0
    if status == 200:  # noqa: PLR2004 - OK
        frames = _frames(row, body) if streamed else ((0.0, _whole(row)),)
    else:
        said = error(failed.get("type") or "server_error", failed.get("code"), failed.get("message") or "")
        frames = ((0.0, orjson.dumps(said)),)
    last = frames[-1][0] if frames else 0.0
    return Recording(
        request_id=row["request_id"],
        request_hash=row["request_hash"],
        prompt=prompt_of(body, api),
        api=api,
        streamed=streamed,
        status=status,
        headers_ms=row["headers_ms"] or 0.0,
        frames=frames,
        end_ms=row["e2e_ms"] or last,
        broken=row["status"] == "interrupted" or not status,
    )


def prompt_of(body: Mapping[str, Any], api: Api) -> str:
    """The last thing that a request asks, as text; empty where there is none."""
    asked = body.get(INPUTS[api][0])
    if isinstance(asked, list) and asked:
        last = asked[-1]
        asked = last.get("content") if isinstance(last, dict) else last
    return asked if isinstance(asked, str) else "" if asked is None else orjson.dumps(asked).decode()


def _frames(row: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[tuple[float, bytes], ...]:
    when = {chunk["event"]: chunk["ms"] for chunk in row["chunks"]}
    if row["raw"] is not None:
        made, at = [], 0.0
        for number, kept in enumerate(row["raw"]):
            at = when.get(number, at)
            named = f"event: {kept['event']}\n".encode() if kept["event"] not in (None, "", "message") else b""
            lines = bytes(kept["data"]).split(b"\n")
            made.append((at, named + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"))
        return tuple(made)
    if row["api"] == "responses":
        raise ValueError("a stream of the Responses API is said again only where capture.keep_raw kept its events")
    events: dict[int, list[Mapping[str, Any]]] = {}
    for chunk in row["chunks"]:
        events.setdefault(chunk["event"], []).append(chunk)
    made = [(when[number], event(_chunk(row, its, body))) for number, its in events.items()]
    if row["status"] == "completed":
        made.append((made[-1][0] if made else 0.0, DONE))
    return tuple(made)


def _chunk(row: Mapping[str, Any], its: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
    """One event's chunk, as chat and legacy completions have it."""
    chat = row["api"] == "chat"
    made: dict[str, Any] = {
        "id": row["response_id"] or "",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": int(row["started_at"].timestamp()),
        "model": row["response_model"] or row["request_model"] or body.get("model") or "",
        "choices": [],
    }
    choices: dict[int, dict[str, Any]] = {}
    for chunk in its:
        kind, text = chunk["kind"], chunk["text"]
        if kind == "usage":
            made["usage"] = _usage(row)
        elif kind == "error":
            return {"error": {"message": text, "type": "server_error", "param": None, "code": None}}
        elif kind != "empty":
            choice = choices.setdefault(chunk["choice"], {"delta": {}, "text": "", "finish_reason": None})
            if kind == "finish":
                choice["finish_reason"] = text
            elif kind == "role":
                choice["delta"] |= {"role": "assistant", "content": ""}
            elif kind == "tool_calls":
                choice["delta"] |= _tool_calls(row, chunk)
            else:
                choice["delta"][_FIELDS[kind]] = text
                choice["text"] += text
    for index, choice in choices.items():
        said = {"delta": choice["delta"]} if chat else {"text": choice["text"]}
        made["choices"].append({"index": index, **said, "logprobs": None, "finish_reason": choice["finish_reason"]})
    return made


_FIELDS = {"content": "content", "reasoning": "reasoning_content", "refusal": "refusal"}


def _tool_calls(row: Mapping[str, Any], chunk: Mapping[str, Any]) -> dict[str, Any]:
    """All of a choice's calls with its first chunk of them: which piece was whose is not kept."""
    mine = [each for each in row["chunks"] if each["kind"] == "tool_calls" and each["choice"] == chunk["choice"]]
    if chunk is not mine[0]:
        return {}
    told = next((choice["tool_calls"] for choice in row["choices"] if choice["index"] == chunk["choice"]), None)
    calls = json.loads(told) if told else []
    return {"tool_calls": [{**call, "index": at} for at, call in enumerate(calls)]}


def _usage(row: Mapping[str, Any]) -> dict[str, Any] | None:
    told = row["usage_reported"]
    if told is None:
        return None
    return {
        "prompt_tokens": told["input_tokens"],
        "completion_tokens": told["output_tokens"],
        "total_tokens": told["total_tokens"],
    }


def _whole(row: Mapping[str, Any]) -> bytes:
    if row["raw"]:
        return bytes(row["raw"][0]["data"])
    if row["api"] == "responses":
        raise ValueError("an answer of the Responses API is said again only where capture.keep_raw kept it")
    chat = row["api"] == "chat"
    choices = []
    for choice in row["choices"]:
        message = {"role": "assistant", "content": choice["text"], "refusal": choice["refusal"]}
        if choice["reasoning"]:
            message["reasoning_content"] = choice["reasoning"]
        if choice["tool_calls"]:
            message["tool_calls"] = json.loads(choice["tool_calls"])
        said = {"message": message} if chat else {"text": choice["text"]}
        choices.append({"index": choice["index"], **said, "logprobs": None, "finish_reason": choice["finish_reason"]})
    return orjson.dumps(
        {
            "id": row["response_id"] or "",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(row["started_at"].timestamp()),
            "model": row["response_model"] or row["request_model"] or "",
            "choices": choices,
            "usage": _usage(row),
        }
    )


class Replay:
    """The ASGI application: recordings by request, and how late their frames went out."""

    def __init__(self, recordings: Iterable[Recording], *, speed: float = 1.0) -> None:
        """Later recordings of the same request take the earlier ones' place.

        Args:
            recordings: oldest first.
            speed: how much faster everything goes; 0 is without any wait.
        """
        self._speed = speed
        self._by_hash: dict[tuple[str, bool], Recording] = {}
        self._by_prompt: dict[tuple[str, bool], Recording] = {}
        self.late_ms: list[float] = []
        for each in recordings:
            self._by_hash[each.request_hash, each.streamed] = each
            if each.prompt:
                self._by_prompt[each.prompt, each.streamed] = each

    def find(self, body: Mapping[str, Any], api: Api) -> Recording | None:
        """The recording for a request: of the same body, else of the same last prompt; of this API only."""
        streamed = body.get("stream") is True
        found = self._by_hash.get((request_hash_of(body), streamed))
        if found is None:
            found = self._by_prompt.get((prompt_of(body, api), streamed))
        return found if found is not None and found.api == api else None

    def application(self) -> Starlette:
        """The routes: the APIs, what there is, and a page that shows it. Front ends may be served from anywhere."""
        return Starlette(
            middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])],
            routes=[
                *(Route(f"/v1{path}", _Endpoint(self, api)) for api, path in PATHS.items()),
                Route("/v1/models", self._models),
                Route("/replay/recordings", self._recordings),
                Route("/replay/stats", self._stats),
                Route("/", self._page),
            ],
        )

    async def serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        started = asyncio.get_running_loop().time()
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message.get("body", b""), message.get("more_body", False)
        try:
            body = orjson.loads(content)
            found = self.find(body, api)
        except (ValueError, AttributeError, TypeError):
            await _refuse(400, "expected a JSON object")(scope, receive, send)
            return
        if found is None:
            how = "streamed" if body.get("stream") is True else "whole"
            said = (
                f"no {how} answer to this request was captured: neither its request_hash nor its last prompt is there"
            )
            await _refuse(404, said)(scope, receive, send)
            return
        await self._say(found, started, scope, send)

    async def _say(self, found: Recording, started: float, scope: Scope, send: Send) -> None:
        transport = scope["extensions"]["transport"]
        if not found.status:
            await self._until(started, found.end_ms)
            transport.close()
            return
        stream = found.streamed and found.status == 200  # noqa: PLR2004 - OK
        kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
        await self._until(started, found.headers_ms if stream else found.end_ms)
        headers = [(b"content-type", kind), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": found.status, "headers": headers})
        for ms, frame in found.frames:
            if stream:
                await self._until(started, ms)
                due = started + ms / 1000 / self._speed if self._speed else None
                if due is not None:
                    self.late_ms.append(1000 * (asyncio.get_running_loop().time() - due))
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await self._until(started, found.end_ms)
        if found.broken:
            transport.close()
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until(self, started: float, ms: float) -> None:
        """Wait until so many ms since the start, by the recording's clock: delays do not add up."""
        if self._speed:
            wait = started + ms / 1000 / self._speed - asyncio.get_running_loop().time()
            if wait > 0:
                await asyncio.sleep(wait)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    async def _recordings(self, _request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "request_id": each.request_id,
                    "prompt": each.prompt,
                    "api": each.api,
                    "status": each.status,
                    "broken": each.broken,
                }
                for each in sorted(self._by_hash.values(), key=lambda each: (each.broken, each.status))
                if each.streamed
            ]
        )

    async def _stats(self, _request: Request) -> Response:
        late = sorted(self.late_ms)
        told = (
            {name: late[min(len(late) - 1, int(p * len(late)))] for name, p in (("p50", 0.5), ("p99", 0.99))}
            if late
            else {}
        )
        return JSONResponse({"frames": len(late), "late_ms": told})

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))


class _Endpoint:
    """An instance, so that Starlette hands it ASGI itself."""

    def __init__(self, replay: Replay, api: Api) -> None:
        self._replay, self._api = replay, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._replay.serve(self._api, scope, receive, send)


def _refuse(status: int, message: str) -> Response:
    return JSONResponse(error("invalid_request_error", None, message), status)
