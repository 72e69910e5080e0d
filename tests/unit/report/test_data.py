"""The queries of the report on a small local table, without a JVM."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from deltatap.analysis.sql import measured_sql
from deltatap.analysis.uncounted import uncounted_sql
from deltatap.delta import columns, tables
from deltatap.delta.local import LocalReader
from deltatap.delta.reader import rows as rows_of
from deltatap.report import requests
from deltatap.report.cards import Words, kinds, left_out
from deltatap.report.data import failures_sql, gather, sizes_sql
from deltatap.settings_loading import load_settings
from tests import captured, prompts
from tests.local import no_spark

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.config import Settings


ERROR: dict[str, Any] = {"type": "server", "code": "c", "message": "overloaded", "http_status": 503}


def row(request_id: str, at: int = 0, **values: Any) -> dict[str, Any]:
    made = captured.capture_row(values.pop("run_id", "r"), request_id, chunks=[], usage_reported=None)
    made |= {"usage_tiktoken": None, "started_at": captured.AT + timedelta(seconds=at), "text": "text", "choices": []}
    return made | values


def retry(kind: str, status: int | None) -> dict[str, Any]:
    return {"error_type": kind, "http_status": status, "chunks": []}


def failed(request_id: str, **values: Any) -> dict[str, Any]:
    return row(request_id, **{"status": "failed", "error": ERROR} | values)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(prompts.config(tmp_path, "http://127.0.0.1:1/v1"))


def query(settings: Settings, sql: str, *made: dict[str, Any]) -> pa.Table:
    schema = pa.schema([(column.name, column.type) for column in columns.CAPTURES])
    write_deltalake(settings.captures.table, pa.Table.from_pylist(list(made), schema))
    return LocalReader(no_spark).query(sql)


def captures(settings: Settings) -> str:
    return f"SELECT * FROM {tables.quoted(settings.captures.table)}"


def test_errors_are_counted_by_type_and_words(settings: Settings) -> None:
    made = [failed(f"a{at}") for at in range(5)]
    made += [failed(f"b{at}", error=ERROR | {"message": f"words {at}"}) for at in range(4)]
    made.append(failed("unsent", started_at=None, error=ERROR | {"type": "invalid_request", "code": None}))
    made.append(row("retried", retries=[retry("server", 500), retry("server", 500), retry("rate_limit", 429)]))
    found = kinds(rows_of(query(settings, failures_sql(captures(settings)), *made)))
    assert [(kind.type, kind.rows, kind.calls, len(kind.words), kind.more) for kind in found] == [
        ("server", 9, 11, 3, 3),
        ("invalid_request", 1, 0, 1, 0),
        ("rate_limit", 0, 1, 1, 0),
    ]
    examples = tuple(("r", f"a{at}", "stream") for at in range(3))
    assert found[0].words[0] == Words(503, "c", "overloaded", 5, examples)
    assert found[0].words[1].message == "words 0", "words of last calls come before retried calls"
    assert found[2].words[0] == Words(429, None, None, 1, (("r", "retried", "stream"),))


def test_the_tokens_of_chunks_and_of_socket_reads(settings: Settings) -> None:
    def chunks(*pieces: tuple[int, int | None], kind: str = "content") -> list[dict[str, Any]]:
        return [{"kind": kind, "read": read, "tokens": tokens} for read, tokens in pieces]

    made = [
        row("a", chunks=chunks((0, 1), (1, 2), (1, 2), (2, 5000)) + chunks((3, 0), kind="usage")),
        row("b", chunks=chunks((1, 2))),
        row("older", chunks=chunks((1, None))),
        row("failed", chunks=chunks((1, 2)), status="interrupted"),
        row("merged", chunks=chunks((1, 7), (1, 7)), loop_lag_ms=1e3, clock="kernel"),
        row("late", chunks=chunks((1, 2)), loop_lag_ms=1e3, clock="process"),
    ]
    measured = measured_sql(settings, captures(settings))
    found = rows_of(query(settings, sizes_sql(measured), *made))
    assert [(each["what"], each["tokens"], each["count"]) for each in found] == [
        ("chunk", 1, 1), ("chunk", 2, 3), ("chunk", 7, 2), ("chunk", 1000, 1),
        ("read", 1, 1), ("read", 2, 1), ("read", 4, 1), ("read", 1000, 1),
    ]  # fmt: skip


def test_the_rows_left_out_have_a_reason(settings: Settings) -> None:
    made = [
        row("counts"),
        row("late", loop_lag_ms=80.0),
        row("reused", started_at=None, loop_lag_ms=None),
        failed("failed"),
        failed("unsent", started_at=None),
        row("cut", status="interrupted", error=ERROR),
    ]
    sql = uncounted_sql(measured_sql(settings, captures(settings)))
    found = left_out(rows_of(query(settings, sql, *made)), settings.analysis)
    assert [each.rows for each in found] == [1] * 5
    assert len({each.advice for each in found}) == 5


def test_the_charts_over_time_start_with_the_first_call(settings: Settings) -> None:
    calls = [retry("server", 503) | {"started_at": captured.AT - timedelta(seconds=at)} for at in (9, 5)]
    query(settings, "SELECT 1", row("a", retries=calls), row("b"))
    run = {"run_id": "r", "status": "completed", "started_at": captured.AT, "captures": settings.captures.table}
    write_deltalake(settings.runs.table, pa.Table.from_pylist([run], columns.arrow_schema(columns.RUNS)))
    found = gather(LocalReader(no_spark), settings, ["r"])
    assert [(each["at"], each["type"]) for each in rows_of(found.errors)] == [(0.0, "server"), (4.0, "server")]
    assert [each["at"] for each in rows_of(found.timeline) if each["started"]] == [9.0]


def test_the_table_of_requests_starts_with_what_broke(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "ROWS", 6)
    made = [row(f"a{at}", at) for at in range(4)]
    made += [failed("broken", at=9), row("reused", started_at=None)]
    made += [row(f"b{at}", 100 + at, run_id="s", text="x" * 500) for at in range(2)]
    made.append(row("other", run_id="t"))
    made[0]["retries"] = [retry("server", 503) | {"started_at": captured.AT - timedelta(seconds=9)}]
    sql = requests.requests_sql(tables.quoted(settings.captures.table), ["r", "s"])
    found = rows_of(query(settings, sql, *made))
    assert [(each["run_id"], each["request_id"], each["at_s"]) for each in found] == [
        ("r", "broken", 18.0),
        ("r", "a0", 9.0),
        ("r", "a1", 10.0),
        ("s", "b0", 0.0),
        ("s", "b1", 1.0),
    ]
    assert [(len(each["text"]), each["length"]) for each in found[-1:]] == [(requests.TEXT, 500)]
    assert (found[0]["error"], found[0]["message"], found[0]["http_status"]) == ("server", "overloaded", 503)
