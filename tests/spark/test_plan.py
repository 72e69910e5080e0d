"""Which requests are owed. Skipping settled requests gives the same result as building all of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.delta import columns
from deltatap.delta import tables as delta_tables
from deltatap.driver import owed as planning
from deltatap.driver import source
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests import prompts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from deltatap.config import Settings

SCHEMA = (
    "request_id STRING, prompt STRING, system STRING, params MAP<STRING, STRING>, note STRING, "
    "messages ARRAY<STRUCT<role: STRING, content: STRING>>"
)
LIMITED = {"type": "rate_limit"}
BAD = {"type": "invalid_request"}

# SETTLED: prompts rows with the status and error of their captures. NOW: rows of the next plan, and whether it owes them.
SETTLED: list[tuple[dict[str, Any], str, dict[str, str] | None]] = [
    ({"request_id": "same", "prompt": "p"}, "completed", None),
    ({"request_id": "noted", "prompt": "p"}, "completed", None),
    ({"request_id": "edited", "prompt": "p"}, "completed", None),
    ({"request_id": "moved", "prompt": "p"}, "completed", None),
    ({"request_id": "limited", "prompt": "p"}, "failed", LIMITED),
    ({"request_id": "broken", "prompt": "p"}, "interrupted", {"type": "connection"}),
    ({"request_id": "bad", "prompt": " "}, "failed", BAD),
    ({"request_id": "doubled", "prompt": "p"}, "completed", None),
    ({"request_id": "twice", "prompt": "p"}, "completed", None),
    ({"request_id": None, "prompt": "without an id"}, "completed", None),
    ({"request_id": "mapped", "prompt": "p", "params": {"seed": "1", "top_p": "0.5"}}, "completed", None),
    ({"request_id": "listed", "messages": [("user", "p")]}, "completed", None),
    ({"request_id": "gone", "prompt": "p"}, "completed", None),
]
NOW: list[tuple[dict[str, Any], bool]] = [
    ({"request_id": "same", "prompt": "p"}, False),
    ({"request_id": "noted", "prompt": "p", "note": "an extra column"}, False),
    ({"request_id": "edited", "prompt": "q"}, True),
    ({"request_id": "moved", "system": "p"}, True),
    ({"request_id": "limited", "prompt": "p"}, True),
    ({"request_id": "broken", "prompt": "p"}, True),
    ({"request_id": "bad", "prompt": " "}, False),
    ({"request_id": "doubled", "prompt": "p"}, True),
    ({"request_id": "doubled", "prompt": "q"}, True),
    ({"request_id": "twice", "prompt": "p"}, False),
    ({"request_id": "twice", "prompt": "p"}, False),
    ({"request_id": None, "prompt": "without an id"}, False),
    ({"request_id": None, "prompt": "new, without an id"}, True),
    ({"request_id": "mapped", "prompt": "p", "params": {"seed": "1", "top_p": "0.5"}}, False),
    ({"request_id": "listed", "messages": [("user", "p")]}, False),
    ({"request_id": "new", "prompt": "p"}, True),
]
NAMES = ("request_id", "prompt", "system", "params", "note", "messages")


def write_prompts(spark: SparkSession, folder: Path, rows: list[dict[str, Any]]) -> None:
    prompts.write(spark, folder / "prompts", [tuple(row.get(name) for name in NAMES) for row in rows], SCHEMA)


def settle(spark: SparkSession, settings: Settings, run_id: str, ends: dict[str, tuple[str, Any]]) -> None:
    """Append a captures row for every owed request, as a run would."""
    with planning.owed_requests(spark, settings, run_id) as owed:
        found = owed.collect()
    rows = []
    for row in found:
        status, error = ends.get(row["request_id"], ("completed", None))
        made: dict[str, Any] = dict.fromkeys(column.name for column in columns.CAPTURES)
        made |= {name: row[name] for name in ("request_id", "request_hash", "source_hash", "mode")}
        made |= {"run_id": run_id, "status": status, "endpoint": settings.endpoint.label, "retries": []}
        rows.append(tuple((made | {"error": error and (error["type"], *[None] * 5)}).values()))
    frame = spark.createDataFrame(rows, columns.spark_schema(columns.CAPTURES))
    frame.write.format("delta").mode("append").save(settings.captures.table)


@pytest.fixture
def settings(empty_captures: Path, tables: Path) -> Settings:
    shutil.copytree(empty_captures, tables / "captures")
    return load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))


def owed_ids(spark: SparkSession, settings: Settings) -> set[tuple[str, str]]:
    with planning.owed_requests(spark, settings, "next") as owed:
        return {(row["request_id"], row["mode"]) for row in owed.collect()}


def built(spark: SparkSession, settings: Settings) -> list[str | None]:
    rows = spark.table(delta_tables.quoted(settings.captures.table))
    changed = planning.changed(planning.hashed(source.source(spark, settings), settings), rows, settings)
    return [row["request_id"] for row in changed.collect()]


@pytest.mark.slow
def test_the_shortcut_skips_exactly_the_settled_requests(spark: SparkSession, tables: Path, settings: Settings) -> None:
    write_prompts(spark, tables, [row for row, *_ in SETTLED])
    settle(spark, settings, "earlier", {row["request_id"]: (status, error) for row, status, error in SETTLED})
    write_prompts(spark, tables, [row for row, _ in NOW])
    expected = {row["request_id"] for row, is_owed in NOW if is_owed and row["request_id"]}
    found = {id_ for id_, _ in owed_ids(spark, settings)}
    assert {id_ for id_ in found if len(id_) < 64} == expected
    assert len([id_ for id_ in found if len(id_) == 64]) == 1, "the new prompt without an id"
    built_ids = built(spark, settings)
    assert {id_ for id_ in built_ids if id_} == expected
    assert built_ids.count(None) == 2
    # Without the shortcut, the result is the same.
    captures = delta_tables.quoted(settings.captures.table)
    spark.sql(f"UPDATE {captures} SET source_hash = NULL")
    assert len(built(spark, settings)) == len(NOW)
    assert {id_ for id_, _ in owed_ids(spark, settings)} == found


@pytest.fixture(scope="module")
def settled_once(spark: SparkSession, empty_captures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of one prompt and its completed row, to be copied."""
    folder = tmp_path_factory.mktemp("settled")
    shutil.copytree(empty_captures, folder / "captures")
    write_prompts(spark, folder, [{"request_id": "a", "prompt": "p"}])
    settle(spark, load_settings(prompts.config(folder, "http://127.0.0.1:1/v1")), "earlier", {})
    return folder


@pytest.fixture
def settled(settled_once: Path, tables: Path) -> Settings:
    """The settings of a table with one prompt, whose capture has completed."""
    shutil.copytree(settled_once, tables, dirs_exist_ok=True)
    return load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))


@pytest.mark.slow
def test_a_changed_default_changes_every_request(spark: SparkSession, tables: Path, settled: Settings) -> None:
    assert owed_ids(spark, settled) == set()
    for section in ({"request": {"temperature": 1}}, {"endpoint": {"model": "another"}}):
        other = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1", **section))
        assert owed_ids(spark, other) == {("a", "stream")}


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
def test_a_request_is_settled_separately_in_each_mode(spark: SparkSession, tables: Path) -> None:
    paired = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1", capture={"mode": "paired"}))
    assert owed_ids(spark, paired) == {("a", "complete")}
    settle(spark, paired, "second", {})
    assert (owed_ids(spark, paired), built(spark, paired)) == (set(), [])


@pytest.mark.slow
def test_a_reverted_edit_is_settled(spark: SparkSession, tables: Path, settled: Settings) -> None:
    write_prompts(spark, tables, [{"request_id": "a", "prompt": "q"}])
    settle(spark, settled, "second", {})
    write_prompts(spark, tables, [{"request_id": "a", "prompt": "p"}])
    assert built(spark, settled) == ["a"], "captures has two versions, so the request is built for comparison"
    assert owed_ids(spark, settled) == set()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["new", "all"])
def test_a_request_settled_while_requests_are_built_is_not_owed(
    spark: SparkSession, tables: Path, settings: Settings, which: str
) -> None:
    write_prompts(spark, tables, [{"request_id": "a", "prompt": "p"}])
    made = load_settings(settings.model_dump() | {"capture": {"owed": which}})
    building = planning.Building(spark, made, None)
    assert building.wait().count() == 1
    settle(spark, made, "next", {})
    with planning.owed_requests(spark, made, "next", building) as owed:
        assert owed.collect() == []


def test_wait_raises_the_error_of_a_failed_build(spark: SparkSession, settings: Settings) -> None:
    building = planning.Building(spark, settings, None)
    with pytest.raises(ConfigError, match="the Delta table does not exist"):
        building.wait()


def test_the_shortcut_for_an_empty_table_finds_what_the_lookup_finds(
    spark: SparkSession, tables: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(spark, tables, [{"request_id": "a", "prompt": "p"}, {"request_id": "b", "prompt": " "}])
    assert planning._nothing_captured(spark, settings)
    found = []
    for empty in (False, True):
        monkeypatch.setattr(planning, "_nothing_captured", lambda *_, empty=empty: empty)
        with planning.owed_requests(spark, settings, "next") as owed:
            found.append((owed.columns, sorted(owed.collect())))
    assert found[0] == found[1]
    assert len(found[0][1]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("max_runs", "is_owed"), [(1, False), (2, True)])
def test_an_interrupted_request_is_owed_until_max_runs(
    spark: SparkSession, tables: Path, settings: Settings, max_runs: int, *, is_owed: bool
) -> None:
    write_prompts(spark, tables, [{"request_id": "a", "prompt": "p"}])
    settle(spark, settings, "earlier", {"a": ("interrupted", {"type": "connection"})})
    made = load_settings(settings.model_dump() | {"capture": {"max_runs": max_runs}})
    assert owed_ids(spark, made) == ({("a", "stream")} if is_owed else set())
