"""Serves the page and its events: every watcher gets the newest board, twice a second, until the run ends.

One task reads the folder, however many watchers there are, and only while the server runs. ``folder.py`` reads,
``board.py`` computes the data that the page shows.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from deltatap.messages import POLL_S
from deltatap.watch.board import Board

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from deltatap.watch.folder import Folder

_PAGE = Path(__file__).with_name("page.html")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The page loads nothing from other hosts, and shows texts that a model wrote.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
# After the end, watchers get the last board.
_LAST_S = 1.0


class Watching:
    """The application, and the task that reads the folder.

    Args:
        folder: of the run.
        final: returns the status, the reason and the table of a run that has ended; None if they are not known. The
            status is None until a later run has settled this one.

    Attributes:
        board: the last one, as JSON.
        ended: set when the run has ended.
    """

    def __init__(self, folder: Folder, final: Callable[[str], tuple[str | None, str | None, str] | None]) -> None:
        self._folder, self._final, self._board = folder, final, Board()
        self._news = asyncio.Condition()
        self._number = 0
        self.board: dict[str, Any] = self._board.turn(folder.look(), time.monotonic())
        self.ended = asyncio.Event()

    def application(self, host: str) -> Starlette:
        """The routes. On loopback, other host names are refused, so other sites cannot read the events."""
        hosts = [*_LOOPBACK, "[::1]"] if host in _LOOPBACK else ["*"]
        return Starlette(
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            routes=[Route("/", self._page), Route("/events", self._events)],
        )

    async def follow(self) -> None:
        """Read the folder until the run ends."""
        while not self.ended.is_set():
            board = await asyncio.to_thread(self._turn)
            async with self._news:
                self.board, self._number = board, self._number + 1
                if board["state"] == "ended":
                    self.ended.set()
                self._news.notify_all()
            await asyncio.sleep(POLL_S)

    def _turn(self) -> dict[str, Any]:
        board = self._board.turn(self._folder.look(), time.monotonic())
        if board["state"] == "ended" and not board["reason"] and (found := self._final(board["run"])) is not None:
            status, reason, _ = found
            board |= {"status": status, "reason": reason or ""}
        return board

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={"content-security-policy": _POLICY})

    async def _events(self, _request: Request) -> Response:
        return StreamingResponse(self._boards(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def _boards(self) -> AsyncIterator[str]:
        """The board now, and each later board. A slow watcher misses some."""
        seen = -1
        while True:
            async with self._news:
                while self._number == seen and not self.ended.is_set():
                    await self._news.wait()
                seen, board = self._number, self.board
            yield f"data: {json.dumps(board)}\n\n"
            if board["state"] == "ended":
                return


class _Server(uvicorn.Server):
    """Prints its URL when it accepts connections, and ends with the run."""

    watching: Watching
    announce: Callable[[str], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.announce(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        self._following = asyncio.create_task(self.watching.follow())
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        ended = asyncio.create_task(self.watching.ended.wait())
        await asyncio.wait({ended, self._following}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_LAST_S)
        self.should_exit = True
        if self._following.done() and not self._following.cancelled() and (error := self._following.exception()):
            raise error


def serve(watching: Watching, listening: socket.socket, host: str, announce: Callable[[str], None]) -> None:
    """Serve until the run ends, or until SIGTERM or Ctrl-C.

    Args:
        watching: the run.
        listening: where watchers connect.
        host: the address that was requested.
        announce: gets the URL of the page.
    """
    config = uvicorn.Config(
        watching.application(host),
        lifespan="off",
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    server.watching, server.announce = watching, announce
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
