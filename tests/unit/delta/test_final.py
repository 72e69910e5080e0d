"""Which rows are final, evaluated by SQLite, whose three-valued logic is that of Spark."""

from __future__ import annotations

import sqlite3

import pytest

from deltatap.delta.final import final_sql
from deltatap.model import ERRORS


def is_final(status: str | None, type_: str | None, code: str | None = None, *, keep: bool = False) -> object:
    sql = final_sql("c", keep_interrupted=keep).replace("error.", "error_")
    with sqlite3.connect(":memory:") as db:
        row = "SELECT ? AS status, ? AS error_type, ? AS error_code"
        ((found,),) = db.execute(f"SELECT {sql} FROM ({row}) AS c", (status, type_, code)).fetchall()
    return found


@pytest.mark.parametrize("type_", ERRORS)
def test_a_failed_row_is_final_if_a_new_call_would_fail_again(type_: str) -> None:
    assert is_final("failed", type_) == (type_ in {"invalid_request", "content_policy", "internal"})


@pytest.mark.parametrize("type_", ERRORS)
def test_an_interrupted_row_is_final_if_the_policy_cut_it(type_: str) -> None:
    assert is_final("interrupted", type_) == (type_ == "content_policy")
    assert is_final("interrupted", type_, keep=True) == 1, "or if interrupted rows are kept"


@pytest.mark.parametrize(
    ("status", "type_", "code", "final"),
    [
        ("completed", None, None, 1),
        ("interrupted", "internal", "complete", 1),
        ("interrupted", "internal", "cut", 0),
        ("interrupted", "internal", None, 0),
        ("failed", "internal", "request", 1),
        ("failed", "internal", "complete", 1),
        ("failed", "internal", "cut", 0),
        ("failed", "server", "complete", 0),
        ("interrupted", "stream_error", "complete", 0),
        ("interrupted", "content_policy", "content_filter", 1),
        ("failed", None, None, 0),
        ("interrupted", None, None, 0),
        ("interrupted", None, "complete", 0),
        (None, None, None, 0),
        (None, "internal", "complete", 0),
    ],
)
def test_a_row_is_final_or_not_and_never_null(status: str | None, type_: str | None, code: str | None, final: int) -> None:  # fmt: skip
    assert is_final(status, type_, code) == final
