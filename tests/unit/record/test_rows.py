"""The rows that the proxy writes to its journal, with real sockets."""

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
from tests.proxying import HI, KEY, STREAM, STREAM_HEAD, answering, event, request, talk
from tests.raw_server import raw_server
from tests.recording import recording

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_model_that_is_no_text_of_utf_8(tmp_path: Path) -> None:
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request({**HI, "model": "m\ud800"})) == b"".join(STREAM)
    assert [(row["status"], row["request_model"]) for row in proxy.rows] == [("completed", "m\ufffd")]


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


def test_an_answer_that_deltatap_cannot_read_still_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(KEY)

    monkeypatch.setattr("deltatap.api.chat.ChatAccumulator._take", fail)
    with raw_server(answering(*STREAM)) as server, recording(server.base_url, tmp_path) as proxy:
        assert talk(proxy.port, request()) == b"".join(STREAM)
    (row,) = proxy.rows
    assert (row["status"], row["error"]["type"]) == ("interrupted", "internal")
    assert b"Hel" in row["raw"][0]["data"]
