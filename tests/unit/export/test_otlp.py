"""Captures that a real OTLP/HTTP receiver on loopback gets, from the command line, without a JVM."""

from __future__ import annotations

import http.server
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from typer.testing import CliRunner

from deltatap import cli
from deltatap.delta import columns
from deltatap.export import captures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deltatap.delta.columns import Column

AT = datetime(2026, 11, 21, 6, 30, 0, 123_456, tzinfo=UTC)
KEY = "sk-otlp-4711"
CONTENT = {"content-type": "application/x-protobuf"}


class Receiver(http.server.ThreadingHTTPServer):
    """Decodes what it receives. ``answers`` has the next answers; after them, it accepts everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [span for _, _, each in self.requests for resource in each.resource_spans
                for scope in resource.scope_spans for span in scope.spans]  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answers.pop(0) if self.server.answers else (200, CONTENT, b"")
        if answer[0] == 200:
            self.server.requests.append((self.path, headers, ExportTraceServiceRequest.FromString(body)))
        self.send_response(answer[0])
        for name, value in (answer[1] | {"content-length": str(len(answer[2]))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer[2])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def write(table: Path, declared: tuple[Column, ...], *given: dict[str, Any]) -> None:
    schema = pa.schema([(column.name, column.type) for column in declared])
    write_deltalake(table, pa.Table.from_pylist(list(given), schema))


def capture(run_id: str, number: int, **values: Any) -> dict[str, Any]:
    at = AT + timedelta(microseconds=1_001 * number)
    usage = {"input_tokens": number, "output_tokens": 2 * number, "total_tokens": 3 * number}
    return {
        "run_id": run_id, "request_id": f"q-{number}", "mode": "stream", "status": "completed", "api": "chat",
        "request_model": "m", "response_model": "m-1", "response_id": f"id-{number}", "request": '{"temperature": 0.5}',
        "choices": [{"index": 0, "text": "geheim", "finish_reason": "stop"}], "finish_reason": "stop", "retries": [],
        "chunks": [{"ms": 1.5, "text": "geheim", "kind": "content", "choice": 0, "event": 0, "read": 0, "tokens": 1}],
        "started_at": at, "finished_at": at + timedelta(microseconds=number), "dispatch_ms": 0.5,
        "first_chunk_ms": 1.5, "usage_reported": usage, **values,
    }  # fmt: skip


FAILED = {
    "status": "failed",
    "error": {"type": "server", "message": "geheim", "http_status": 500},
    "choices": [],
    "chunks": [],
}
ROWS = [
    *(capture("old", number) for number in range(3)),
    *(capture("mid", number) for number in range(10, 14)),
    *(capture("new", number) for number in range(20, 25)),
    capture("new", 25, **FAILED),
    capture("new", 20, mode="complete", chunks=[]),
    capture("new", 26, started_at=None, finished_at=None, status="failed"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "captures", columns.CAPTURES, *ROWS)
    config = json.dumps({"endpoint": {"kind": "openai", "base_url": "https://llm.example.com/v1"}})
    write(
        tmp_path / "runs",
        columns.RUNS,
        *(
            {"run_id": run_id, "captures": str(tmp_path / "captures"), "started_at": AT + timedelta(days=day),
             "completed": rows, "config": config}
            for day, (run_id, rows) in enumerate({"old": 3, "mid": 4, "new": 6, "empty": 0}.items())
        ),
    )  # fmt: skip
    (tmp_path / "c.yml").touch()
    return tmp_path


def export(folder: Path, url: str, *words: str, **environment: str) -> tuple[int, str]:
    tables = [word for name in ("captures", "runs") for word in ("--set", f"{name}.table={folder / name}")]
    command = ["export", "--otlp", url, *words, "--config", str(folder / "c.yml"), *tables]
    ended = CliRunner().invoke(cli.app, command, env={"OTEL_EXPORTER_OTLP_TIMEOUT": "1", **environment})
    return ended.exit_code, ended.output


def attributes(holder: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {each.key: plain(each.value) for each in holder.attributes}


def micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_the_spans_of_the_newest_run_are_equal_to_its_rows(receiver: Receiver, folder: Path) -> None:
    code, output = export(folder, receiver.url, "--chunks", "1", "--header", f"Authorization=Bearer {KEY}")
    assert (code, output.splitlines()) == (0, [
        f"7 spans exported to {receiver.url}/v1/traces (run new)",
        "1 row without a call has no span: an invalid prompt or a reused answer",
    ])  # fmt: skip
    ((path, headers, request),) = receiver.requests
    assert (path, headers["authorization"]) == ("/v1/traces", f"Bearer {KEY}")
    (resource,) = request.resource_spans
    assert attributes(resource.resource)["service.name"] == "deltatap"
    (scope,) = resource.scope_spans
    assert scope.scope.name == "deltatap"

    rows = {(row["request_id"], row["mode"]): row for row in ROWS if row["run_id"] == "new" and row["started_at"]}
    spans = {(found["deltatap.request_id"], found["deltatap.mode"]): (each, found)
             for each in receiver.spans() for found in [attributes(each)]}  # fmt: skip
    assert spans.keys() == rows.keys()
    assert len({each.span_id for each, _ in spans.values()}) == len({each.trace_id for each, _ in spans.values()}) == 7
    for key, row in rows.items():
        each, found = spans[key]
        assert (len(each.trace_id), len(each.span_id), each.parent_span_id) == (16, 8, b"")
        assert (each.name, each.kind) == ("chat m", Span.SPAN_KIND_CLIENT)
        assert each.start_time_unix_nano == micros(row["started_at"]) * 1000
        assert each.end_time_unix_nano == micros(row["finished_at"]) * 1000
        assert found["gen_ai.usage.input_tokens"] == row["usage_reported"]["input_tokens"]
        assert found["gen_ai.usage.output_tokens"] == row["usage_reported"]["output_tokens"]
        assert found.get("gen_ai.response.finish_reasons") == (["stop"] if row["choices"] else None)
        assert (found["gen_ai.response.id"], found["server.address"]) == (row["response_id"], "llm.example.com")
        assert (found["server.port"], found["gen_ai.request.temperature"]) == (443, 0.5)
        failed = row["status"] == "failed"
        assert each.status.code == (Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET)
        assert found.get("error.type") == ("server" if failed else None)
        assert [event.time_unix_nano for event in each.events] == [
            micros(row["started_at"]) * 1000 + 2_000_000 for _ in row["chunks"]
        ]
    assert b"geheim" not in request.SerializeToString()


def test_a_second_export_writes_the_same_spans(receiver: Receiver, folder: Path) -> None:
    assert export(folder, receiver.url, "--chunks", "0.5")[0] == 0
    first = sorted(span.SerializeToString() for span in receiver.spans())
    receiver.requests.clear()
    assert export(folder, receiver.url, "--chunks", "0.5")[0] == 0
    assert sorted(span.SerializeToString() for span in receiver.spans()) == first
    assert len(first) == 7


def test_since_a_run_means_this_run_and_all_later_ones(receiver: Receiver, folder: Path) -> None:
    code, output = export(folder, receiver.url, "--since", "mid")
    assert (code, output.splitlines()[0]) == (
        0,
        f"11 spans exported to {receiver.url}/v1/traces (3 runs, mid to empty)",
    )
    assert {attributes(span)["deltatap.run_id"] for span in receiver.spans()} == {"mid", "new"}
    code, output = export(folder, receiver.url, "--since", "none")
    assert (code, output.partition(": run ")[2]) == (
        2,
        "none does not exist on this captures table; newest: empty, new, mid, old\n",
    )


def test_content_is_exported_if_asked_for(receiver: Receiver, folder: Path) -> None:
    assert export(folder, receiver.url, "--content")[0] == 0
    answers = [attributes(span).get("gen_ai.output.messages") for span in receiver.spans()]
    parts = [{"type": "text", "content": "geheim"}]
    assert [json.loads(each) for each in answers if each] == [
        [{"role": "assistant", "parts": parts, "finish_reason": "stop"}]
    ] * 6
    assert [span.status.message for span in receiver.spans() if span.status.code] == ["geheim"]


def test_half_a_surrogate_pair_in_a_body_loses_nothing(
    receiver: Receiver, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a\ud83d"}], "stop": ["b\ud83d"]})
    write_deltalake(
        folder / "captures",
        pa.Table.from_pylist(
            [capture("new", 30, request=body)],
            pa.schema([(column.name, column.type) for column in columns.CAPTURES]),
        ),
        mode="append",
    )
    assert export(folder, receiver.url, "--content")[0] == 0
    found = [each for each in map(attributes, receiver.spans()) if each["deltatap.request_id"] == "q-30"]
    assert [each["gen_ai.request.stop_sequences"] for each in found] == [["b\ufffd"]]
    assert "a\ufffd" in found[0]["gen_ai.input.messages"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("limit", "value"), [("_SPANS", 3), ("_BYTES", 6_000)])
def test_batches_have_a_limit(
    receiver: Receiver, folder: Path, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, limit, value)
    assert export(folder, receiver.url)[0] == 0
    sizes = [len(each.resource_spans[0].scope_spans[0].spans) for _, _, each in receiver.requests]
    assert (sum(sizes), len(receiver.spans())) == (7, 7)
    assert max(sizes) == 3 if limit == "_SPANS" else 1 < len(sizes) < 7


def test_the_exporter_tries_again(receiver: Receiver, folder: Path) -> None:
    receiver.answers = [(503, {"retry-after": "0"}, b"")]
    assert export(folder, receiver.url)[0] == 0
    assert len(receiver.spans()) == 7


def refused() -> bytes:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "too old"
    body: bytes = answer.SerializeToString()
    return body


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((401, {"content-type": "application/json"}, b'{"message":\n "no: %s"}' % KEY.encode()), 'answered 401 Unauthorized: {"message": "no: ***"}'),
        ((400, {"content-type": "text/html"}, b"<html>"), "answered 400 Bad Request"),
        ((302, {"location": "https://h.example/v1/traces?key=1"}, b""), "redirects to https://h.example/v1/traces; use that URL"),
        ((200, CONTENT, refused()), "refused 2 spans: too old"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_server_that_does_not_take_the_spans_is_one_line(
    receiver: Receiver, folder: Path, answer: tuple[int, dict[str, str], bytes], problem: str, way: str
) -> None:
    receiver.answers = [answer]
    given = f"Authorization=Bearer {KEY}"
    words, environment = (
        (["--header", given], {})
        if way == "option"
        else ([], {"OTEL_EXPORTER_OTLP_HEADERS": given.replace(" ", "%20")})
    )
    assert export(folder, receiver.url, *words, **environment) == (
        1,
        f"✗ --otlp: {receiver.url}/v1/traces: {problem}\n",
    )


def test_spans_that_were_sent_before_an_error_are_counted(
    receiver: Receiver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, "_SPANS", 3)
    receiver.answers = [(200, CONTENT, b""), (400, {}, b"")]
    code, output = export(folder, receiver.url)
    assert (code, output) == (
        1,
        f"✗ --otlp: {receiver.url}/v1/traces: answered 400 Bad Request; 3 spans had already been sent, and the next export sends them again\n",
    )


def test_a_server_that_cannot_be_reached_is_one_line(folder: Path) -> None:
    code, output = export(folder, "http://127.0.0.1:9/x?key=geheim")
    assert (code, output) == (
        1,
        "✗ --otlp: http://127.0.0.1:9/x/v1/traces: cannot be reached: [Errno 111] Connection refused\n",
    )


def test_without_a_capture_the_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yml").touch()
    code, output = export(tmp_path, "http://127.0.0.1:9")
    assert code == 2
    assert output.startswith(f"✗ captures.table: {tmp_path / 'captures'}: this Delta table does not exist; ")
    assert output.count("\n") == 1
