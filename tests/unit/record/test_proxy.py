"""The proxy with real sockets: what the client and the server see."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.calls import chunk
from tests.proxying import HI, KEY, STREAM, STREAM_HEAD, answering, event, request, talk
from tests.raw_server import Answer, raw_server
from tests.recording import recording

if TYPE_CHECKING:
    from pathlib import Path


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
