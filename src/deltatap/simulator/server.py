"""The simulator as a process: uvicorn on uvloop, loopback by default."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import socket

    from starlette.applications import Starlette


class _Protocol(HttpToolsProtocol):
    """Hands the connection to the application: only who holds it can cut it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"transport": self.transport}  # type: ignore[dict-item] # not ASGI's: ours


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    name = "simulator"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            host, port = server.sockets[0].getsockname()[:2]
            print(f"{self.name}: http://{host}:{port}/v1", flush=True)  # noqa: T201 - whoever started it waits for this line


def serve(application: Starlette, host: str, port: int, name: str = "simulator") -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        application: the simulator's, or a replay's.
        host: loopback, unless you know what you do: there is no protection whatever.
        port: 0 takes a free one.
        name: what the line that says so begins with.
    """
    server = _Server(
        uvicorn.Config(
            application,
            host=host,
            port=port,
            loop="uvloop",
            http=_Protocol,
            lifespan="off",
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
            backlog=4096,
        )
    )
    server.name = name
    # A collection that walks over all that is loaded would write every stream's next piece 100 ms late; one that takes
    # little at a time forgets the record's tuples, in which nothing can be cyclic.
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 20, 100)
    server.run()
