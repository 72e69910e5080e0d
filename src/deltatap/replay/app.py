"""Serves captured answers at the URLs of the APIs, with their original timing.

This module knows ASGI and the clock. `library.py` finds the answer for a request, and `plan.py` decides which bytes are
sent, and when.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deltatap.api import registry
from deltatap.api.from_row import CannotSayError
from deltatap.api.values import decode, to_json
from deltatap.replay.library import AmbiguousError, Library, NotFoundError
from deltatap.replay.options import PREFIX, BadOptionError, options_of
from deltatap.replay.plan import plan_of
from deltatap.simulator.record import quantiles
from deltatap.simulator.server import Endpoint, body_of, cors, disconnected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from deltatap.api.base import Api
    from deltatap.replay.plan import Plan
    from deltatap.replay.recordings import Recording

_PAGE = Path(__file__).with_name("page.html")
# How long a stalled response stays open, unless the client disconnects earlier.
_STALL_S = 3600.0
_MAX_LATE = 200_000


class Replay:
    """The ASGI application.

    Attributes:
        library: the captured answers.
        late_ms: how late each write was, in ms.
    """

    def __init__(self, recordings: Iterable[Recording], *, speed: float = 1.0) -> None:
        """Index the answers.

        Args:
            recordings: oldest first.
            speed: factor by which every wait is shortened, unless a request sets its own; 0 means no waits.
        """
        self.library = Library(recordings)
        self._speed = speed
        self.late_ms: list[float] = []

    def application(self) -> Starlette:
        """The routes: the APIs, the list of recordings, and a page that shows them. Every origin is allowed."""
        apis = registry.specifications()
        return Starlette(
            middleware=[cors()],
            routes=[
                *(Route(f"/v1{api.path}", Endpoint(self.serve, api)) for api in apis),
                Route("/v1/models", self._models),
                Route("/replay/recordings", self._recordings),
                Route("/replay/stats", self._stats),
                Route("/", self._page),
            ],
        )

    async def serve(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. GET returns a stream, for an EventSource."""
        started = asyncio.get_running_loop().time()
        planned = self._plan(api, scope, await body_of(receive))
        if isinstance(planned, Response):
            await planned(scope, receive, send)
            return
        async with disconnected(receive) as gone:
            await self._write(planned, started, gone, scope, send)

    def _plan(self, api: Api, scope: Scope, content: bytes) -> Plan | Response:
        """The plan of the response to a request, or an error response."""
        try:
            body = decode(content) if scope["method"] == "POST" else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _refuse(api, 400, "expected a JSON object")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        streamed = scope["method"] == "GET" or body.get("stream") is True
        try:
            options = options_of(query, headers, body)
            found = self.library.find(body, api.name, options, streamed=streamed)
            plan = plan_of(found, api, options, streamed=streamed, speed=self._speed)
        except BadOptionError as error:
            return _refuse(api, 400, str(error))
        except NotFoundError as error:
            return _refuse(api, 404, str(error))
        except AmbiguousError as error:
            return _refuse(api, 409, str(error), choices=[each.describe() for each in error.choices])
        except CannotSayError as error:
            path = registry.specification(found.api).path
            return _refuse(api, 422, f"{error}. It was captured from another API: use /v1{path}")
        plan.headers.update({f"{PREFIX}run-id": quote(found.run_id), f"{PREFIX}request-id": quote(found.request_id)})
        return plan

    async def _write(self, plan: Plan, started: float, gone: asyncio.Event, scope: Scope, send: Send) -> None:
        transport = scope["extensions"]["transport"]
        if plan.status:
            await _until(started, plan.begin_ms)
            headers = [(name.encode(), value.encode("latin-1")) for name, value in plan.headers.items()]
            await send({"type": "http.response.start", "status": plan.status, "headers": headers})
        for ms, data in plan.writes:
            await _until(started, ms)
            if gone.is_set():
                return
            if ms and len(self.late_ms) < _MAX_LATE:
                self.late_ms.append(1000 * (asyncio.get_running_loop().time() - started) - ms)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await _until(started, plan.end_ms)
        if plan.end == "stall":
            try:
                await asyncio.wait_for(gone.wait(), _STALL_S)
            except TimeoutError:
                transport.close()
        elif plan.end == "cut":
            transport.close()
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _models(self, _request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "replay"} for name in self.library.models()]
        return JSONResponse({"object": "list", "data": data})

    async def _recordings(self, _request: Request) -> Response:
        listed = [each.describe() for each in reversed(self.library.recordings)]
        return Response(to_json(listed), media_type="application/json")

    async def _stats(self, _request: Request) -> Response:
        late_ms = quantiles(self.late_ms, {"p50": 0.5, "p99": 0.99})
        return JSONResponse({"frames": len(self.late_ms), "late_ms": late_ms})

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))


async def _until(started: float, ms: float) -> None:
    """Wait until this time since the start of the call, so that delays do not add up. A timer can fire early."""
    clock = asyncio.get_running_loop().time
    while (wait := started + ms / 1000 - clock()) > 0:  # noqa: ASYNC110 - a clock, not an event
        await asyncio.sleep(wait)


def _refuse(api: Api, status: int, message: str, **more: Any) -> Response:  # noqa: ANN401 - any JSON
    body = api.error_body(status, "invalid_request_error", None, message)
    return Response(to_json({**body, **more}), status, media_type="application/json")
