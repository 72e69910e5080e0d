"""The proxy with real sockets: what the client and the server see, and the rows in the journal."""

from __future__ import annotations

import gzip
import json
import socket
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.calls import chunk
from tests.raw_server import Answer, Asked, raw_server
from tests.recording import recording

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def test_a_stream_passes_byte_for_byte_and_becomes_a_row(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request()) == b"".join(STREAM)
    (asked,), (row,) = server.asked, proxy.rows
    assert (asked.path, asked.body, asked.headers["authorization"]) == ("/v1/chat/completions", HI, f"Bearer {KEY}")
    assert asked.headers["host"] == server.base_url.removeprefix("http://").removesuffix("/v1")
    assert (row["status"], row["text"], row["mode"], row["api"]) == ("completed", "Hello", "stream", "chat")
    assert (row["finish_reason"], row["request_model"], row["clock"]) == ("stop", "gpt-4o-mini", "kernel")
    assert [each["text"] for each in row["chunks"]] == ["Hel", "lo", "stop"]
    assert json.loads(row["request"]) == HI
    assert 0 <= row["headers_ms"] <= row["ttft_ms"] <= row["last_chunk_ms"] <= row["e2e_ms"]
    assert row["connection"]["reused"] is False
    assert row["error"] is None


def test_a_heartbeat_counts_the_rows_of_every_api(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        talk(proxy.port, request())
        talk(proxy.port, request())
        talk(proxy.port, request(path="/v1/messages"))
        rows = proxy.journaled(3)
        beat = proxy.server.heartbeat()
    assert beat is not None
    assert (beat.requests, beat.open, beat.rows, beat.errors) == (3, 0, {"completed": 2, "failed": 1}, {"protocol": 1})
    assert beat.output_tokens == sum(row["usage_tiktoken"]["output_tokens"] or 0 for row in rows)
    times = [row["ttft_ms"] for row in rows if row["ttft_ms"] is not None]
    assert beat.ttft_ms == pytest.approx(statistics.median(times), abs=1e-3)
    assert beat.cost_usd is None


def test_one_connection_carries_several_requests(tmp_path: Path) -> None:
    with (
        raw_server(answering(*STREAM, then="keep")) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        for _ in range(3):
            client.sendall(request())
            got = b""
            while not got.endswith(b"0\r\n\r\n"):
                got += client.recv(65536)
            assert got == b"".join(STREAM)
    assert [row["connection"]["reused"] for row in proxy.rows] == [False, True, True]
    assert len({row["request_id"] for row in proxy.rows}) == 3


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    with (
        raw_server(answering(*STREAM, then="keep")) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        client.sendall(request() * 3)
        got = b""
        while len(got) < 3 * len(b"".join(STREAM)):
            got += client.recv(65536)
    assert got == b"".join(STREAM) * 3
    assert len(proxy.rows) == 3


def test_the_key_is_in_no_row(tmp_path: Path) -> None:
    said = f"Your key is {KEY}"
    pieces = (STREAM_HEAD, chunk(event(said[:20])), chunk(event(said[20:])), chunk(event(finish="stop")), b"0\r\n\r\n")
    body = {**HI, "messages": [{"role": "user", "content": f"my key: {KEY}"}], "user": "pw-12345678"}
    headers = "x-api-key: anthropic-abcdefgh\r\nCookie: session=abcdefghijklmnop; a=b\r\nProxy-Authorization: Basic dXNlcjpwdy0xMjM0NTY3OA==\r\n"
    with raw_server(answering(*pieces)) as server, recording(server.base_url, tmp_path) as proxy:
        assert KEY.encode()[8:] in talk(proxy.port, request(body, headers=headers))
    (row,) = proxy.rows
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (KEY, "pw-12345678", "anthropic-abcdefgh", "abcdefghijklmnop"):
        assert secret not in str(row)
        assert secret.encode() not in kept
    assert row["text"] == "Your key is ***"
    assert "my key: ***" in row["request"]
    assert "proxy-authorization" not in server.asked[0].headers


def test_the_credentials_of_tools_are_in_no_row(tmp_path: Path) -> None:
    secrets = ("ya29.SECRET", "sk-mcp-abcdefgh", "token-12345678")
    tool = {"type": "mcp", "authorization": secrets[0], "headers": {"Authorization": f"Bearer {secrets[1]}"}}
    schema = {"type": "object", "properties": {"authorization": {"type": "string"}}}
    function = {"type": "function", "function": {"name": "f", "parameters": schema}}
    servers = [{"type": "url", "authorization_token": secrets[2]}]
    body = {**HI, "tools": [tool, function], "mcp_servers": servers}
    pieces = (STREAM_HEAD, *(chunk(event(f"{secret}, ")) for secret in secrets))
    with raw_server(answering(*pieces, then="stall")) as server, recording(server.base_url, tmp_path) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            client.sendall(request(body))
            got = b""
            while not got.endswith(pieces[-1]):
                got += client.recv(65536)
            deadline, shown = time.monotonic() + 20, ""
            while shown != "***, ***, ***, ":  # the client gets bytes before they are parsed
                assert time.monotonic() < deadline, shown
                beat = proxy.server.heartbeat()
                shown = "".join(each.text for each in beat.streams) if beat is not None else ""
        (row,) = proxy.journaled()
    assert server.asked[0].body == body
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in secrets:
        assert secret not in str(row)
        assert secret.encode() not in kept
    assert row["text"] == "***, ***, ***, "
    struck = {"type": "mcp", "authorization": "***", "headers": {"Authorization": "***"}}
    assert json.loads(row["request"])["tools"] == [struck, function]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/embeddings", "/v1/threads/t1/messages", "/v2/odd?x=1", "/v1/chat/completions/c1"]
)
def test_other_paths_are_forwarded_and_not_recorded(tmp_path: Path, path: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with raw_server(answering(answer)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request({"a": 1}, path)) == answer
        assert talk(proxy.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()) == answer
    assert [asked.path for asked in server.asked] == [path, path]
    assert proxy.rows == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_each_piece_arrives_before_the_next_one_is_sent(tmp_path: Path, path: str) -> None:
    pieces = [
        STREAM_HEAD,
        *(chunk(event(f"word {number} ")) for number in range(20)),
        chunk(event(finish="stop")),
        b"0\r\n\r\n",
    ]
    read = threading.Semaphore(0)

    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            client.recv(65536)
            for piece in pieces:
                client.sendall(piece)
                assert read.acquire(timeout=20)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        upstream = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with (
            recording(upstream, tmp_path) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
        ):
            client.sendall(request(path=path))
            for piece in pieces:
                assert client.recv(65536) == piece
                read.release()
        thread.join()
    for row in proxy.rows:
        reads = [each["read"] for each in row["chunks"]]
        assert reads == sorted(set(reads)), "each chunk has a read of its own"
        assert len(reads) == 21
    assert len(proxy.rows) == (path == "/v1/chat/completions")


def test_head_and_204_end_without_a_body(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n"
    none = b"HTTP/1.1 204 No Content\r\n\r\n"
    with (
        raw_server(lambda asked: Answer((head if asked.path == "/a" else none,), "keep")) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        client.sendall(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536) == head
        client.sendall(b"DELETE /b HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536) == none


def test_an_error_passes_and_becomes_a_row(tmp_path: Path) -> None:
    body = json.dumps(
        {"error": {"message": f"bad key {KEY}", "type": "invalid_request_error", "code": "invalid_api_key"}}
    ).encode()
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    with raw_server(answering(answer)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request()) == answer
    (row,) = proxy.rows
    assert (row["status"], row["error"]["type"], row["error"]["http_status"]) == ("failed", "authentication", 401)
    assert row["error"]["message"] == "bad key ***"


def test_an_error_that_is_cut_keeps_its_head(tmp_path: Path) -> None:
    head = (
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nx-request-id: req-1\r\n"
        b"x-ratelimit-limit-requests: 9\r\nContent-Length: 100\r\n\r\n"
    )
    for pieces in ((head,), (head, b'{"error":')):
        folder = tmp_path / str(len(pieces))
        with raw_server(answering(*pieces, then="stall")) as server, recording(server.base_url, folder) as proxy:
            talk(proxy.port, request(), end=pieces[-1])
            (row,) = proxy.journaled()
        error = row["error"]
        assert (row["status"], error["type"], error["code"]) == ("failed", "cancelled", "client")
        assert (error["http_status"], error["retry_after_s"], row["server_request_id"]) == (429, 7.0, "req-1")
        assert dict(row["server_timing"]) == {"x-ratelimit-limit-requests": "9"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_a_connection_with_an_unfinished_body_is_not_used_again(tmp_path: Path, path: str) -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"
    fine = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
    closed, seen = threading.Event(), list[bytes]()

    def serve(listening: socket.socket) -> None:
        first, _ = listening.accept()
        with first:
            first.settimeout(10)
            got = b""
            while not got.endswith(b"x" * 100):
                got += first.recv(65536)
            first.sendall(refusal)
            while piece := first.recv(65536):
                got += piece
            seen.append(got)
        closed.set()
        second, _ = listening.accept()
        with second:
            seen.append(second.recv(65536))
            second.sendall(fine)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        with (
            recording(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", tmp_path) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
        ):
            client.sendall(request(b"x" * 1000, path)[:-900])
            assert client.recv(65536) == refusal
            assert closed.wait(10), "the connection to the server is closed before the rest of the body arrives"
            client.sendall(b"x" * 900 + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(65536) == fine
        thread.join()
    assert [data.count(b"GET") for data in seen] == [0, 1]


def test_a_stream_that_breaks_off_breaks_off_for_the_client(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM[:2], then="reset")) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request()) == b"".join(STREAM[:2])
    (row,) = proxy.rows
    assert (row["status"], row["text"], row["error"]["type"]) == ("interrupted", "Hel", "stream_interrupted")


def test_a_break_without_a_length_is_a_reset(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    with (
        raw_server(answering(head, event("Hel"), then="reset")) as server,
        recording(server.base_url, tmp_path) as proxy,
        pytest.raises(ConnectionResetError),
    ):
        talk(proxy.port, request())
    assert [row["status"] for row in proxy.rows] == ["interrupted"]


def test_a_client_that_disconnects_becomes_an_interrupted_row(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM[:2], then="stall")) as server, recording(server.base_url, tmp_path) as proxy:
        talk(proxy.port, request(), end=STREAM[1])
        (row,) = proxy.journaled()
    assert (row["status"], row["text"], row["error"]["type"], row["error"]["code"]) == (
        "interrupted",
        "Hel",
        "cancelled",
        "client",
    )
    assert "client closed the connection" in row["error"]["message"]


def test_a_client_that_disconnects_before_output_becomes_a_failed_row(tmp_path: Path) -> None:
    with raw_server(answering(STREAM_HEAD, then="stall")) as server, recording(server.base_url, tmp_path) as proxy:
        talk(proxy.port, request(), end=STREAM_HEAD)
        (row,) = proxy.journaled()
    assert (row["status"], row["error"]["type"], row["error"]["code"]) == ("failed", "cancelled", "client")


def test_a_client_that_disconnects_during_its_request_has_no_row(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(request()[:-5])
        assert talk(proxy.port, request()) == b"".join(STREAM)
    assert [row["status"] for row in proxy.rows] == ["completed"]


def test_an_unreachable_server_is_a_502_and_a_row(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        recording(f"http://127.0.0.1:{port}/v1", tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        for _ in range(2):  # the connection stays usable
            client.sendall(request())
            got = client.recv(65536)
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert f"cannot reach http://127.0.0.1:{port}" in json.loads(body)["error"]["message"]
        client.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + request())
        got = b""
        while not got.endswith(b"}}"):
            got += client.recv(65536)
        first, second, body = got.split(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 502")
        assert second.startswith(b"HTTP/1.1 502"), "the answer to HEAD has no body"
        assert json.loads(body)
    assert [(row["status"], row["error"]["type"]) for row in proxy.rows] == [("failed", "connection")] * 3


def test_a_request_to_upgrade_to_http_2_passes_with_its_body(tmp_path: Path) -> None:
    upgrade = request(
        headers="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    )
    with (
        raw_server(answering(*STREAM, then="keep")) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        client.sendall(upgrade * 2)
        got = b""
        while len(got) < 2 * len(b"".join(STREAM)):
            got += client.recv(65536)
    assert [asked.body for asked in server.asked] == [HI, HI]
    assert not {"upgrade", "http2-settings"} & server.asked[0].headers.keys()
    assert [row["status"] for row in proxy.rows] == ["completed"] * 2


def test_a_model_that_is_no_text_of_utf_8(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request({**HI, "model": "m\ud800"})) == b"".join(STREAM)
    assert [(row["status"], row["request_model"]) for row in proxy.rows] == [("completed", "m\ufffd")]


def test_many_requests_before_the_first_answer(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with (
        raw_server(answering(answer, then="keep")) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        got = b""
        while len(got) < 1000 * len(answer):
            got += client.recv(65536)
    assert got == answer * 1000


def test_a_compressed_answer_passes_untouched_and_is_decoded_for_the_row(tmp_path: Path) -> None:
    packed = gzip.compress(event("Hello") + event(finish="stop") + b"data: [DONE]\n\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (head, chunk(packed[:30]), chunk(packed[30:]), b"0\r\n\r\n")
    with raw_server(answering(*pieces)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request(headers="Accept-Encoding: br, gzip;q=0.9, zstd\r\n")) == b"".join(pieces)
    assert server.asked[0].headers["accept-encoding"] == "gzip;q=0.9"
    assert [(row["status"], row["text"]) for row in proxy.rows] == [("completed", "Hello")]


def test_an_answer_that_cannot_be_decoded_still_passes(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (head, chunk(b"\x8b\x03\x80abc"), chunk(b"\x01def"), b"0\r\n\r\n")
    with raw_server(answering(*pieces, then="keep")) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request(), end=b"0\r\n\r\n") == b"".join(pieces)
        (row,) = proxy.journaled()
    assert (row["status"], row["error"]["type"]) == ("failed", "connection")
    assert "content-encoding br" in row["error"]["message"]


def test_a_body_in_chunks_and_100_continue_pass(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            got = b""
            while b"\r\n\r\n" not in got:
                got += client.recv(65536)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            while not got.endswith(b"0\r\n\r\n"):
                got += client.recv(65536)
            seen.append(got)
            client.sendall(b"".join(STREAM))

    body = json.dumps(HI).encode()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        recording(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", tmp_path) as proxy,
    ):
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(chunk(body[:10]) + chunk(body[10:]) + b"0\r\n\r\n")
            got = b""
            while piece := client.recv(65536):
                got += piece
        thread.join()
    assert got == b"".join(STREAM)
    assert b"Expect: 100-continue" in seen[0]
    (row,) = proxy.rows
    assert (row["status"], json.loads(row["request"])) == ("completed", HI)
    assert row["dispatch_ms"] > 0


def test_a_slow_reader_bounds_the_memory(tmp_path: Path) -> None:
    pieces = (STREAM_HEAD, *[chunk(event("word " * 10_000))] * 200, chunk(event(finish="stop")), b"0\r\n\r\n")
    total = sum(map(len, pieces))
    with (
        raw_server(answering(*pieces)) as server,
        recording(server.base_url, tmp_path) as proxy,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        client.settimeout(30)
        client.connect(("127.0.0.1", proxy.port))
        client.sendall(request())
        deadline = time.monotonic() + 20
        while not any(session._pair.to_client.full for session in proxy.server._sessions.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        got = waiting = 0
        while got < total:
            waiting = max([waiting, *(session._pair.to_client._waiting for session in proxy.server._sessions.values())])
            got += len(client.recv(65536))
    assert got == total
    assert waiting < 2**20
    assert [row["status"] for row in proxy.rows] == ["completed"]


def test_a_large_request_passes(tmp_path: Path) -> None:
    body = {**HI, "messages": [{"role": "user", "content": "word " * 600_000}]}
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request(body)) == b"".join(STREAM)
    assert server.asked[0].body == body
    assert len(proxy.rows[0]["request"]) > 3_000_000


@pytest.mark.parametrize("large", [True, False])
def test_a_stream_keeps_its_chunks_if_the_request_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool
) -> None:
    body = json.dumps(HI).encode() if large else gzip.compress(json.dumps(HI).encode())
    if large:
        monkeypatch.setattr("deltatap.record.recording.MAX_BODY_BYTES", 10)

    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            got = b""
            while not got.endswith(body):
                got += client.recv(65536)
            client.sendall(b"".join(STREAM))

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        recording(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", tmp_path) as proxy,
    ):
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        headers = "" if large else "Content-Encoding: gzip\r\n"
        assert talk(proxy.port, request(body, headers=headers)) == b"".join(STREAM)
        thread.join()
    (row,) = proxy.rows
    assert (row["status"], row["text"], row["mode"], row["request"]) == ("completed", "Hello", "stream", None)
    assert [each["text"] for each in row["chunks"]] == ["Hel", "lo", "stop"]
    assert row["ttft_ms"] is not None


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_answer_in_the_background_is_not_recorded(tmp_path: Path, status: str) -> None:
    response = json.dumps({"id": "resp_1", "object": "response", "status": status, "output": []}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(response),
        response,
    )
    with raw_server(answering(answer)) as server, recording(server.base_url, tmp_path) as proxy:
        body = {"model": "gpt-4o-mini", "input": "Hi", "background": True}
        assert talk(proxy.port, request(body, "/v1/responses")) == answer
    (row,) = proxy.rows
    assert (row["status"], row["error"]["code"], row["response_id"]) == ("failed", status, "resp_1")
    assert "in the background; deltatap does not record" in row["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[1]",
        b'{"tools": [{"authorization": "ya29.SECRET"},]}',
        b'{"model": "m", "stream": tru',
        b"\xff\xfe",
        b"",
    ],
)
def test_an_invalid_body_is_forwarded_and_its_row_has_the_server_s_message(tmp_path: Path, body: bytes) -> None:
    refusal = b'{"error": {"message": "no: ya29.SECRET"}}'
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(refusal), refusal)

    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            got = client.recv(65536)
            while not got.endswith(body):
                got += client.recv(65536)
            client.sendall(answer)

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        recording(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", tmp_path) as proxy,
    ):
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        assert talk(proxy.port, request(body)) == answer
        thread.join()
    message = "no: ***" if b"ya29.SECRET" in body else "no: ya29.SECRET"
    assert [(row["status"], row["error"]["message"]) for row in proxy.rows] == [("failed", message)]


def test_invalid_http_gets_a_400(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert (server.asked, proxy.rows) == ([], [])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other"])
@pytest.mark.parametrize("reachable", [True, False])
def test_a_body_that_is_invalid_from_the_start_ends_the_connection(
    tmp_path: Path, path: str, *, reachable: bool
) -> None:
    """The head and the invalid byte arrive in one read, so no later read ends the request."""
    with (
        raw_server(answering(*STREAM)) as server,
        recording(server.base_url if reachable else "http://127.0.0.1:1/v1", tmp_path) as proxy,
    ):
        assert talk(proxy.port, f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".encode()) == b""
    assert proxy.rows == []


def test_a_stop_cuts_requests_that_do_not_end(tmp_path: Path) -> None:
    with (
        raw_server(answering(*STREAM[:2], then="stall")) as server,
        recording(server.base_url, tmp_path, grace_s=0.2) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
    ):
        client.sendall(request())
        got = b""
        while not got.endswith(STREAM[1]):
            got += client.recv(65536)
        proxy.server.stop(0.2)
        assert client.recv(65536) == b""
    assert [(row["status"], row["error"]["code"]) for row in proxy.rows] == [("interrupted", None)]


def test_a_fault_of_deltatap_affects_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise KeyError(KEY)

    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr("deltatap.record.session.forwarded", fail)
            assert talk(proxy.port, request()) == b""
        assert talk(proxy.port, request()) == b"".join(STREAM)
    assert [(row["status"], (row["error"] or {}).get("type")) for row in proxy.rows] == [
        ("failed", "internal"),
        ("completed", None),
    ]
    assert KEY not in str(proxy.rows)


def test_an_answer_that_deltatap_cannot_read_still_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(KEY)

    monkeypatch.setattr("deltatap.api.chat.ChatAccumulator._take", fail)
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request()) == b"".join(STREAM)
    (row,) = proxy.rows
    assert (row["status"], row["error"]["type"]) == ("interrupted", "internal")
    assert b"Hel" in row["raw"][0]["data"]
