"""Shared by the simulator and the replay: an ASGI application per API, and the process that serves it (uvicorn)."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deltatap.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from deltatap.api.base import Api

_BACKLOG = 4096
# The response headers that a script on a page of another origin can read.
_EXPOSED = (
    "retry-after", "x-request-id", "request-id", "x-deltatap-run-id", "x-deltatap-request-id",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The ASGI application at the path of one API. Starlette calls an object as it is, but wraps a function."""

    serve: Callable[[Api, Scope, Receive, Send], Awaitable[None]]
    api: Api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        await self.serve(self.api, scope, receive, send)


async def body_of(receive: Receive) -> bytes:
    """The body of a request."""
    content, more = [], True
    while more:
        message = await receive()
        content.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(content)


@asynccontextmanager
async def disconnected(receive: Receive) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client disconnects."""
    gone = asyncio.Event()

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    waiting = asyncio.create_task(wait())
    try:
        yield gone
    finally:
        waiting.cancel()


def cors() -> Middleware:
    """Allows web pages of any origin to send requests, and to read the headers of the answers."""
    return Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=list(_EXPOSED)
    )


class _Protocol(HttpToolsProtocol):
    """Passes the connection to the application, which cuts it if a fault requires that."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"transport": self.transport}  # type: ignore[dict-item] # our own extension


class _Server(uvicorn.Server):
    """Prints its URLs when it accepts connections."""

    name = "simulator"
    page = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            host, port = server.sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            scheme = "https" if self.config.is_ssl else "http"
            url = f"{scheme}://{host}:{port}"
            if self.page:
                print(f"{self.page}: {url}/", flush=True)  # noqa: T201 - as below
            print(f"{self.name}: {url}/v1", flush=True)  # noqa: T201 - the process that started it waits for this line


def serve(
    application: Starlette,
    listening: socket.socket,
    name: str = "simulator",
    tls: ssl.SSLContext | None = None,
    page: str = "",
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        application: the simulator or a replay.
        listening: what :func:`listen` returns.
        name: the start of the line that prints the URL.
        tls: the certificate to serve with; None: plain HTTP.
        page: the start of a line that prints the URL of the page at /; empty if there is no page.
    """
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http=_Protocol,
        lifespan="off",
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    server = _Server(config)
    server.name, server.page = name, page
    # A full garbage collection would delay the next piece of every stream by 100 ms. Frozen objects are never visited,
    # and frequent small collections stop tracking the record's tuples, which hold no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 20, 100)
    server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port. uvicorn would end the process without a message if that fails.

    Args:
        host: address to listen on. Keep it on loopback: there is no authentication.
        port: port to listen on. 0 picks a free port.

    Raises:
        ConfigError: the process cannot listen on this address and port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "choose another port with --port, or --port 0 for a free one"
            raise ConfigError([f"{host} port {port} is already in use; {hint}"]) from error
        # Python adds the address to the reason, in parentheses.
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ConfigError([f"cannot listen on {host} port {port}: {reason}"]) from error
