"""One call over a real socket: what is read of its answer, and what it means."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from deltatap.api.chat import ChatAccumulator
from deltatap.api.registry import specification
from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint
from deltatap.http.client import EndpointClient
from deltatap.http.connection import Moment
from deltatap.http.reading import Reading
from deltatap.model import Call, Usage
from tests.calls import (
    ANSWER,
    BODY,
    DONE,
    HI,
    OK,
    STOP,
    WHOLE,
    WIRE,
    answering,
    call,
    calls,
    chunk,
    refusing,
    request,
    server,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_stream_is_received_with_its_times() -> None:
    seen: list[bytes] = []
    made = call(answering(OK + chunk(HI), chunk(STOP) + chunk(DONE) + chunk(b"")), key=False, seen=seen)
    assert (made.status, made.error, made.http_status) == ("completed", None, 200)
    assert made.received.text == "Hi"
    assert made.server_request_id == "req_1"
    assert made.dispatch_ms is not None
    assert made.headers_ms is not None
    assert made.e2e_ms is not None
    assert 0 < made.headers_ms <= made.received.chunks.ms[0] <= made.e2e_ms
    head, body = seen
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert body == BODY.encode(), "the body is sent unchanged"
    assert b"authorization" not in head.lower()


def test_broken_stream_keeps_what_arrived() -> None:
    made = call(answering(OK + chunk(HI)))
    assert (made.status, made.received.text) == ("interrupted", "Hi")
    assert made.error is not None
    assert made.error.type == "stream_interrupted"
    assert made.error.retryable


def test_answer_that_is_neither_a_stream_nor_json_is_a_protocol_error() -> None:
    made = call(refusing("200 OK", b"<html></html>"))
    assert made.error is not None
    assert made.error.type == "protocol"
    assert made.error.message.startswith("expected an event stream or a JSON object, found application/json: <html>")


def test_answer_without_any_output_is_a_protocol_error() -> None:
    made = call(refusing("200 OK", b'{"choices": []}'))
    assert made.error is not None
    assert (made.status, made.error.type) == ("failed", "protocol")


def test_whole_answer_from_a_server_that_does_not_stream_is_kept() -> None:
    body = b'{"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}'
    made = call(refusing("200 OK", body))
    assert (made.status, made.received.text, len(made.received.chunks)) == ("completed", "Hi", 0), "it is paid for"


def test_compressed_stream_is_read() -> None:
    import gzip  # noqa: PLC0415

    packed = gzip.compress(HI + STOP + DONE)
    head = OK.replace(b"x-request-id", b"content-encoding: gzip\r\nx-request-id")
    made = call(answering(head + chunk(packed) + chunk(b"")))
    assert (made.status, made.received.text) == ("completed", "Hi")


def test_events_of_one_read_share_its_number_and_time() -> None:
    made = call(answering(OK + chunk(HI + HI + STOP + DONE) + chunk(b"")))
    chunks = made.received.chunks
    assert list(chunks.event) == [0, 1, 2]
    assert len(set(chunks.read)) == len(set(chunks.ms)) == 1


TIMING = (
    b"X-RateLimit-Remaining-Tokens: 9\r\nopenai-processing-ms: 12\r\nx-ms-region: East US\r\nset-cookie: a=b\r\n"
    b"server-timing: " + b"x" * 300
)


@pytest.mark.parametrize("status", [b"200 OK", b"429 Too Many Requests"])
def test_headers_about_timing_and_region_are_kept_and_bounded(status: bytes) -> None:
    made = call(refusing(status.decode(), b"{}", TIMING), wire=WHOLE)
    assert dict(made.server_timing) == {
        "x-ratelimit-remaining-tokens": "9",
        "openai-processing-ms": "12",
        "x-ms-region": "East US",
        "server-timing": "x" * 255 + "…",
    }


def test_headers_about_timing_that_are_absurd() -> None:
    limits = b"\r\n".join(b"x-ratelimit-%d: \xff\xfe" % number for number in range(900))
    made = call(refusing("200 OK", b"{}", b"x-ratelimit-" + b"n" * 60_000 + b": \xf0\x9f\x98\x80", limits), wire=WHOLE)
    (name, value), *others = made.server_timing
    assert (len(name), name[-1], value) == (256, "…", "\U0001f600")
    assert len(others) == 31
    assert {value for _, value in others} == {"ÿþ"}, "as Latin-1, if it is not UTF-8"


def test_times_of_reads_do_not_decrease_if_the_wall_clock_went_back_by_minutes() -> None:
    """Stamps are minutes early, and reads are microseconds apart."""
    reads = [(100.0 + number / 100, 700.0 + number / 1e5) for number in range(200)]

    async def read(sink: Callable[[bytes, float, float], bool]) -> None:
        for at, now in reads:
            sink(HI, at, now)

    clock = Mock(settled=lambda: False)
    incoming = Mock(headers=[], status=200, complete=True, clock=clock, read=read, ended=Moment(*reads[-1]))
    reading = Reading(specification("chat"), ChatAccumulator(), "r1")
    asyncio.run(reading.read(incoming, Mock(written=90.0)))
    chunks = reading.concluded(None, "stream")[0].chunks
    assert list(chunks.ms) == sorted(chunks.ms)
    assert list(chunks.ms) == pytest.approx([(now - 90.0) * 1e3 for _, now in reads], abs=1e-6)


def test_without_such_headers_nothing_is_kept() -> None:
    assert call(answering(OK + chunk(STOP) + chunk(DONE) + chunk(b""))).server_timing == ()


def test_call_ends_at_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.http.reading._END_S", 0.01)
    made = call(answering(OK + chunk(HI + STOP + DONE), linger=True))
    assert made.status == "completed"
    assert made.e2e_ms == made.received.chunks.ms[-1]


def test_whole_answer_has_an_end_and_no_chunks() -> None:
    body = b'{"id": "c-1", "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 8, "completion_tokens": 1}}'
    made = call(refusing("200 OK", body, b"x-request-id: req_2"), wire=WHOLE)
    assert (made.status, made.received.text, made.received.finish_reason) == ("completed", "Hi", "stop")
    assert (len(made.received.chunks), made.server_request_id, made.body) == (0, "req_2", WHOLE.body)
    assert made.received.usage == Usage(8, 1)
    assert made.headers_ms is not None
    assert made.e2e_ms is not None
    assert made.headers_ms <= made.e2e_ms


def test_whole_answer_may_take_as_long_as_the_call() -> None:
    made = call(answering(linger=True), wire=WHOLE, timeouts=Timeouts(first_byte_s=0.01, idle_s=0.01, total_s=0.06))
    assert made.error is not None
    assert (made.status, made.error.code) == ("failed", "total"), "the first byte arrives when the answer is complete"


def test_stream_in_place_of_a_whole_answer_is_kept_without_chunks() -> None:
    made = call(answering(OK + chunk(HI + STOP + DONE) + chunk(b"")), wire=WHOLE)
    assert (made.status, made.received.text, len(made.received.chunks)) == ("completed", "Hi", 0)


@pytest.mark.parametrize("body", [b'{"choices": [{"message": {"content": "H', b"{}", b"[]"])
def test_malformed_whole_answer_is_a_protocol_error(body: bytes) -> None:
    made = call(refusing("200 OK", body), wire=WHOLE)
    assert made.error is not None
    assert (made.status, made.error.type) == ("failed", "protocol")


def test_connection_is_reused_after_done() -> None:
    found = calls([OK + chunk(HI + STOP + DONE) + chunk(b""), ANSWER], [WIRE, WIRE])
    assert [call.status for call in found.made] == ["completed", "completed"]
    assert found.connections == 1


def test_end_of_the_body_may_arrive_after_done() -> None:
    """The call ended at [DONE]; the connection is still read to the end of the body, so that it can be reused."""
    connections = 0

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                await request(reader)
                writer.write(OK + chunk(HI + STOP + DONE))
                await asyncio.sleep(0.02)
                writer.write(chunk(b""))

    async def made() -> list[Call]:
        async with server(late) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url, api_key=None), Timeouts())
            try:
                return [await asyncio.create_task(client.call(WIRE)) for _ in range(2)]
            finally:
                await client.close()

    found = asyncio.run(made())
    assert [call.e2e_ms == call.received.chunks.ms[-1] for call in found] == [True, True]
    assert connections == 1


def test_content_filter_results_of_a_refusal_are_kept() -> None:
    body = (
        b'{"error": {"code": "content_filter", "message": "The response was filtered", "innererror": {'
        b'"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": true, "severity": "high"}}}}}'
    )
    made = call(refusing("400 X", body), path="/openai/v1", kind="azure")
    assert made.error is not None
    assert (made.error.type, made.error.code) == ("content_policy", "content_filter")
    assert json.loads(made.received.content_filter or "") == [
        {"content_filter_result": {"hate": {"filtered": True, "severity": "high"}}}
    ]


@pytest.mark.parametrize("linger", [False, True])
def test_refusal_whose_body_is_not_complete_keeps_its_status(*, linger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.http.transport._ERROR_S", 0.1)
    made = call(answering(b"HTTP/1.1 503 X\r\ncontent-length: 99\r\n\r\nbusy", linger=linger))
    assert made.error is not None
    assert (made.error.type, made.error.http_status, made.error.message) == ("server", 503, "busy")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\ncontent-type: text/event-stream\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: none\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: \r\n\r\n",
    ],
)
def test_head_that_is_slightly_wrong(head: bytes) -> None:
    assert call(answering(head + HI + STOP + DONE)).status == "completed"


class Panic(BaseException):
    """What a library in Rust raises when it panics."""


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "cut"])
@pytest.mark.parametrize("fault", [Panic("sk-secret"), KeyError("sk-secret"), RecursionError()], ids=repr)
def test_answer_that_deltatap_cannot_handle(
    fault: BaseException, *, complete: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take = ChatAccumulator._take

    def faulty(self: ChatAccumulator, chunk: dict[str, Any], data: bytes, event: str) -> None:
        if b"poison" in data:
            raise fault
        take(self, chunk, data, event)

    monkeypatch.setattr(ChatAccumulator, "_take", faulty)
    poison = HI.replace(b"Hi", b"poison").replace(b"{", b"{ ")  # not alike, so that it is decoded
    end = chunk(b"") if complete else b""
    answers = [OK + chunk(HI) + chunk(poison) + chunk(HI + STOP + DONE) + end]
    found = call(answering(*answers))
    assert found.error is not None
    assert (found.status, found.error.type, found.error.code) == (
        "interrupted",
        "internal",
        "complete" if complete else "cut",
    )
    assert found.received.chunks.text == ["Hi"]
    assert found.received.text == "Hi"
    assert found.received.raw is not None
    assert found.received.raw[-1][1].replace(HI, b"") == poison + STOP + DONE
    assert found.error.message == f"deltatap could not handle the answer: {type(fault).__name__} in faulty"
    assert "request unknown: handle the answer" in caplog.text
    assert "sk-secret" not in caplog.text


def test_outcome_that_deltatap_cannot_conclude(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise Panic

    monkeypatch.setattr("deltatap.http.reading.conclude", faulty)
    found = call(answering(OK + chunk(HI + STOP + DONE) + chunk(b"")))
    assert found.error is not None
    assert (found.status, found.error.code, found.received.text) == ("interrupted", "complete", "Hi")


def test_request_that_deltatap_cannot_send(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise Panic

    monkeypatch.setattr("deltatap.http.transport._head", faulty)
    found = call(answering(b""))
    assert found.error is not None
    assert (found.status, found.error.type, found.error.code) == ("failed", "internal", "request")


def test_chunks_beat_a_length() -> None:
    head = OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n")
    assert call(answering(head + chunk(HI + STOP + DONE) + chunk(b""))).status == "completed"
