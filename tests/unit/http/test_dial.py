"""Opening connections by name."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import httpx2
import pytest

from deltatap.http.dial import Dialer


def test_a_server_that_has_moved_is_looked_up_again() -> None:
    async def talk() -> None:
        loop, names = asyncio.get_running_loop(), list[str]()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as gone:
            gone.bind(("127.0.0.1", 0))  # nobody listens there
            addresses = iter([gone.getsockname(), server.getsockname()])

            async def looked_up(host: str, *_: object, **__: object) -> list[Any]:
                names.append(host)
                return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", next(addresses))]

            loop.getaddrinfo = looked_up  # type: ignore[method-assign,assignment]
            dialer = Dialer(time.monotonic, None, None)
            with pytest.raises(httpx2.ConnectError, match="refused"):
                await dialer.open("x.test", 80, tls=False)
            for _ in range(2):
                (await dialer.open("x.test", 80, tls=False)).stream.close()
            assert names == ["x.test"] * 2, "an address that works is kept"

    asyncio.run(talk())
