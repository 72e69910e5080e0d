"""Serves captured answers at the URLs of their APIs, with their original timing.

This module knows ASGI and the clock, and finds the recording for a request. `recordings.py` turns rows into recordings.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from deltatap.api import registry
from deltatap.prompts import request_hash_of
from deltatap.replay.recordings import prompt_of
from deltatap.simulator.record import quantiles
from deltatap.simulator.server import Endpoint, body_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from deltatap.api.base import Api
    from deltatap.replay.recordings import Recording

_PAGE = Path(__file__).with_name("page.html")
_OK = 200


class Replay:
    """The ASGI application.

    Attributes:
        late_ms: how late each frame was written, in ms.
    """

    def __init__(self, recordings: Iterable[Recording], *, speed: float = 1.0) -> None:
        """A later recording of the same request replaces an earlier one.

        Args:
            recordings: oldest first.
            speed: factor by which every wait is shortened; 0 means no waits.
        """
        self._speed = speed
        self._by_hash: dict[tuple[str, bool], Recording] = {}
        self._by_prompt: dict[tuple[str, bool], Recording] = {}
        self.late_ms: list[float] = []
        for each in recordings:
            self._by_hash[each.request_hash, each.streamed] = each
            if each.prompt:
                self._by_prompt[each.prompt, each.streamed] = each

    def find(self, body: Mapping[str, Any], api: str) -> Recording | None:
        """The recording for a request to an API: with the same body, or else with the same last prompt."""
        found = self._match(body, api, streamed=body.get("stream") is True)
        return found if found is not None and found.api == api else None

    def _match(self, body: Mapping[str, Any], api: str, *, streamed: bool) -> Recording | None:
        found = self._by_hash.get((request_hash_of(body), streamed))
        return self._by_prompt.get((prompt_of(body, api), streamed)) if found is None else found

    def why_none(self, body: Mapping[str, Any], api: str) -> str:
        """Why :meth:`find` finds nothing, and what to ask for instead."""
        streamed = body.get("stream") is True
        how, other = ("streamed", "whole") if streamed else ("whole", "streamed")
        if (found := self._match(body, api, streamed=streamed)) is not None:
            return f"this answer was captured from another API: ask /v1{registry.specification(found.api).path}"
        if (found := self._match(body, api, streamed=not streamed)) is not None and found.api == api:
            ask = "leave out stream" if streamed else 'set "stream": true'
            return f"no {how} answer was captured for this request, only a {other} one: {ask} to get it"
        return f"no {how} answer was captured for this request: neither its request_hash nor its last prompt matches"

    def application(self) -> Starlette:
        """The routes: the APIs, the list of recordings, and a page that shows them. Every origin is allowed."""
        return Starlette(
            middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])],
            routes=[
                *(Route(f"/v1{api.path}", Endpoint(self.serve, api)) for api in registry.specifications()),
                Route("/v1/models", self._models),
                Route("/replay/recordings", self._recordings),
                Route("/replay/stats", self._stats),
                Route("/", self._page),
            ],
        )

    async def serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        started = asyncio.get_running_loop().time()
        try:
            body = orjson.loads(await body_of(receive))
            found = self.find(body, api.name)
        except (ValueError, AttributeError, TypeError):
            await _refuse(api, 400, "expected a JSON object")(scope, receive, send)
            return
        if found is None:
            await _refuse(api, 404, self.why_none(body, api.name))(scope, receive, send)
            return
        await self._write(found, started, scope, send)

    async def _write(self, found: Recording, started: float, scope: Scope, send: Send) -> None:
        transport = scope["extensions"]["transport"]
        if not found.status:
            await self._until(started, found.end_ms)
            transport.close()
            return
        stream = found.streamed and found.status == _OK
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
        """Wait until this time since the start of the call, so that delays do not add up."""
        if self._speed:
            wait = started + ms / 1000 / self._speed - asyncio.get_running_loop().time()
            if wait > 0:
                await asyncio.sleep(wait)

    async def _models(self, _request: Request) -> Response:
        models = sorted({each.model for each in self._by_hash.values() if each.model})
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "replay"} for name in models]
        return JSONResponse({"object": "list", "data": data})

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
        late_ms = quantiles(self.late_ms, {"p50": 0.5, "p99": 0.99})
        return JSONResponse({"frames": len(self.late_ms), "late_ms": late_ms})

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))


def _refuse(api: Api, status: int, message: str) -> Response:
    return JSONResponse(api.error_body(status, "invalid_request_error", None, message), status)
