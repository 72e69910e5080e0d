"""The parts of ``delta.tables`` and ``delta.prepare`` that need no Spark."""

from __future__ import annotations

from typing import Any, cast

import pytest

from deltatap.delta import prepare, tables

CONFLICT = "[DELTA_CONCURRENT_APPEND] ConcurrentAppendException: files were added"


class Session:
    """A session whose statements fail with the given errors, one each, and then succeed."""

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)
        self.statements: list[str] = []

    def sql(self, statement: str) -> None:
        self.statements.append(statement)
        if self.errors:
            raise RuntimeError(self.errors.pop(0))

    @property
    def catalog(self) -> Session:
        return self

    def tableExists(self, name: str) -> bool:  # noqa: N802 - as Spark has it
        return name == "`there`"

    def table(self, name: str) -> Session:
        self.statements.append(name)
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        return self

    schema = "a schema"


def spark(*errors: str) -> Any:
    return cast("Any", Session(*errors))


def test_a_commit_is_repeated_after_a_conflict() -> None:
    session = spark(CONFLICT, "[DELTA_METADATA_CHANGED] MetadataChangedException: The metadata changed")
    tables.commit(session, "MERGE")
    assert session.statements == ["MERGE"] * 3


def test_a_commit_is_repeated_nine_times_at_most() -> None:
    session = spark(*[CONFLICT] * 20)
    with pytest.raises(RuntimeError, match="DELTA_CONCURRENT_APPEND"):
        tables.commit(session, "MERGE")
    assert len(session.statements) == 10


@pytest.mark.parametrize("error", ["no space left on device", "/data/concurrent_test/runs: permission denied"])
def test_a_commit_is_not_repeated_after_any_other_error(error: str) -> None:
    session = spark(error)
    with pytest.raises(RuntimeError, match=error):
        tables.commit(session, "MERGE")
    assert len(session.statements) == 1


@pytest.mark.parametrize("message", tables._MISSING)
def test_a_path_without_a_table_does_not_exist(message: str) -> None:
    assert not tables.exists(spark(f"x [{message}] y" if "[" not in message else message), "/data/captures")


def test_another_error_does_not_mean_that_a_table_is_missing() -> None:
    assert tables.exists(spark(), "/data/captures")
    with pytest.raises(RuntimeError, match="access denied"):
        tables.exists(spark("access denied"), "/data/captures")


def test_a_catalog_knows_whether_a_name_exists() -> None:
    assert tables.exists(spark(), "there")
    assert not tables.exists(spark(), "elsewhere")


def test_an_existing_table_is_not_created() -> None:
    session = spark()
    tables.ensure(session, "there", ())
    assert session.statements == []
    tables.ensure(session, "elsewhere", (), "'a' = 'b'", ("x", "y"))
    (statement,) = session.statements
    assert statement.startswith("CREATE TABLE IF NOT EXISTS `elsewhere`")
    assert statement.endswith("USING DELTA CLUSTER BY (x, y) TBLPROPERTIES ('a' = 'b')")


def test_a_table_that_another_driver_creates_at_the_same_time_exists() -> None:
    tables.ensure(spark("[PATH_NOT_FOUND]", "[DELTA_TABLE_NOT_FOUND]"), "/data/captures", ())
    with pytest.raises(RuntimeError, match="no space"):
        tables.ensure(spark("[PATH_NOT_FOUND]", "no space", "[PATH_NOT_FOUND]"), "/data/captures", ())


def test_final_rows_win_over_newer_rows_in_the_current_view() -> None:
    sql = " ".join(prepare.current_sql("main.llm.captures").split())
    assert "max_by(struct(c.*), struct(coalesce(c.status = 'completed' OR " in sql
    assert sql.endswith("c.finished_at)) AS row FROM `main`.`llm`.`captures` AS c "
                        "GROUP BY c.request_id, c.request_hash, c.endpoint, c.mode)")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("run-1", "'run-1'"),
        ('a "b" é %#*:/', "'a \"b\" é %#*:/'"),
        ("it's", "CAST(X'69742773' AS STRING)"),
        ("a\\", "CAST(X'615c' AS STRING)"),
        ("${x}", "CAST(X'247b787d' AS STRING)"),
        ("é'", "CAST(X'c3a927' AS STRING)"),
    ],
)
def test_a_literal_means_the_same_under_every_setting_of_the_session(text: str, literal: str) -> None:
    assert tables.literal(text) == literal
