"""The rows of the table of requests, packed for the page."""

from __future__ import annotations

import json

from deltatap.report.requests import keys, packed, requests_sql
from tests.unit.report.test_page import ATTACK, request_row, requests_table


def test_rows_are_packed_by_column_and_runs_by_place() -> None:
    table = requests_table(
        request_row("s", "q1"), request_row("r", "q2", ttft_ms=None, at_s=1.26, cost_usd=0.123456e-4)
    )
    found = json.loads(packed(table, {"r": "r", "s": "variant=hot"}))
    assert found["runs"] == [{"id": "r", "name": "r"}, {"id": "s", "name": "variant=hot"}]
    columns = found["columns"]
    assert {len(values) for values in columns.values()} == {2}
    assert columns["run"] == [1, 0]
    assert columns["request_id"] == ["q1", "q2"]
    assert columns["ttft_ms"] == [1.3, None]
    assert columns["at_s"] == [0.0, 1.3]
    assert columns["cost_usd"] == [None, 0.1235e-4]
    assert columns["prompt"] == [f"Ask {ATTACK}"] * 2
    assert not {"run_id", "body", "api"} & set(columns)


def test_the_rows_that_a_link_can_open() -> None:
    assert keys(requests_table(request_row(), request_row("s", "q2", mode="complete"))) == {
        ("r", "q", "stream"),
        ("s", "q2", "complete"),
    }


def test_each_run_has_an_equal_part_of_the_table() -> None:
    assert "place <= 10000 " in requests_sql("t", ["a"])
    assert "place <= 3333 " in requests_sql("t", ["a", "b", "c"])
