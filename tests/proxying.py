"""What a client sends to the recording proxy, and what the server behind it answers."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from tests.calls import chunk
from tests.raw_server import Answer, Asked

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-record-0123456789abcdef"
HI = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def event(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c1", "model": "gpt-4o-mini", "choices": [choice]}).encode() + b"\n\n"


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX-Odd:  a  b \r\n\r\n"
)
STREAM = (
    STREAM_HEAD,
    chunk(event("Hel")),
    chunk(event("lo")),
    chunk(event(finish="stop") + b"data: [DONE]\n\n"),
    b"0\r\n\r\n",
)


def request(body: Any = HI, path: str = "/v1/chat/completions", *, method: str = "POST", headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def talk(port: int, data: bytes, *, end: bytes | None = None) -> bytes:
    """Send bytes; return everything that comes back, until the server closes the connection, or until `end`."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        got = b""
        while piece := client.recv(65536):
            got += piece
            if end is not None and got.endswith(end):
                break
        return got


def answering(*pieces: bytes, then: Any = "close") -> Callable[[Asked], Answer]:
    return lambda _: Answer(pieces, then)
