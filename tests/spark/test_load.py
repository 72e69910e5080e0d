"""Loaded prompts: the rows of the table, and which requests a run makes from them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.delta.append import append
from deltatap.delta.prepare import prepare_tables
from deltatap.delta.tables import quoted
from deltatap.driver import source
from deltatap.driver.load import Loaded, load_locally
from deltatap.driver.load_spark import load_prompts
from deltatap.driver.owed import hashed, requests
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.prompts import write_file

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.slow
def test_requests_are_made_from_a_table_of_loaded_files(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    body = {"messages": [{"role": "user", "content": "Hé"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = write_file(tables, "x.jsonl", json.dumps(line))
    loaded = load_prompts(spark, settings, lines)
    assert (loaded.rows, loaded.bad) == (1, [])
    loaded = load_prompts(spark, settings, write_file(tables, "y.csv", 'request_id,prompt,tenant\nb,Say,x\nc," ",x\n'))
    assert (loaded.rows, loaded.bad) == (2, ["row 2 (request_id c): no prompt: expected text in prompt, or messages"])
    pq.write_table(pa.table({"request_id": [7], "prompt": ["Say more"]}), tables / "z.parquet")
    load_prompts(spark, settings, tables / "z.parquet")
    assert spark.table(quoted(str(tables / "prompts"))).count() == 4
    made = {
        row["request_id"]: row for row in requests(hashed(source.source(spark, settings), settings), settings).collect()
    }
    assert json.loads(made["a"]["body"])["messages"] == [{"role": "user", "content": "Hé"}]
    assert json.loads(made["b"]["body"])["messages"] == [{"role": "user", "content": "Say"}]
    assert made["c"]["error"]
    assert json.loads(made["7"]["body"])["messages"] == [{"role": "user", "content": "Say more"}]


def test_columns_that_do_not_fit_are_refused_without_a_change(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    with pytest.raises(ConfigError, match=r"y\.csv: expected .* found question; name it with --prompt-column"):
        load_prompts(spark, settings, write_file(tables, "y.csv", "question\nWhy?\n"))
    load_prompts(spark, settings, write_file(tables, "x.csv", "request_id,prompt,tenant\na,Say,x\n"))
    pq.write_table(pa.table({"request_id": ["b"], "prompt": ["Say"], "tenant": [[1, 2]]}), tables / "z.parquet")
    with pytest.raises(ConfigError, match=r"cannot load .*z\.parquet: "):
        load_prompts(spark, settings, tables / "z.parquet")
    assert spark.table(quoted(str(tables / "prompts"))).count() == 1
    with pytest.raises(ConfigError, match=r"expected the table to load into"):
        load_prompts(spark, load_settings({"prompts": {"table": None, "sql": "SELECT 1"}}), tables / "x.csv")


def test_a_value_that_python_cannot_read_is_loaded(spark: SparkSession, tables: Path) -> None:
    """Once, the rows were committed before they were checked, and the check raised."""
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    late = pa.array([600_000_000_000_000_000], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"prompt": ["Say"], "at": late}), tables / "x.parquet")
    loaded = load_prompts(spark, settings, tables / "x.parquet")
    assert (loaded.rows, loaded.bad, loaded.unused) == (1, [], ("at",))


def test_a_name_that_the_catalog_refuses_leaves_nothing_behind(spark: SparkSession, tables: Path) -> None:
    prompts_file = write_file(tables, "x.csv", "request_id,prompt\na,Say\n")
    tree = prompts.config(tables, "http://127.0.0.1:1/v1")
    for name in ("odd-{}", "default.odd_größe_{}", "spark_catalog.default.`odd {}`"):
        named = {each: {"table": name.format(each)} for each in ("prompts", "captures")}
        settings = load_settings({**tree, **named})
        with pytest.raises(ConfigError, match=r"cannot load .*x\.csv: a name in Spark's catalog has ASCII letters"):
            load_prompts(spark, settings, prompts_file)
        with pytest.raises(ConfigError, match=r"captures\.table: .*: a name in Spark's catalog has ASCII letters"):
            prepare_tables(spark, settings)
    warehouse = Path(str(spark.conf.get("spark.sql.warehouse.dir")).removeprefix("file:"))
    assert not list(warehouse.rglob("odd*"))


@pytest.mark.slow
def test_rows_with_the_same_request_id_are_replaced(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    load_prompts(
        spark, settings, write_file(tables, "x.csv", "request_id,prompt,params\na,Say,{}\nb,Say,{}\n,Say,{}\n")
    )
    partial = write_file(tables, "part.csv", "request_id,prompt\nb,Tell\n")
    with pytest.raises(ConfigError, match=r"part\.csv: --replace .* lacks columns that these rows use: params;"):
        load_prompts(spark, settings, partial, replace=True)
    again = write_file(tables, "y.csv", "id,text,params,tenant\nb,Tell,,x\nb,Tell,,x\nc,Tell,,x\n,Tell,,x\n")
    named = {"request_id": "id", "prompt": "text"}
    loaded = load_prompts(spark, settings, again, named=named, replace=True)
    assert (loaded.rows, loaded.known, loaded.unused) == (3, 1, ("tenant",))
    rows = spark.table(quoted(str(tables / "prompts"))).select("request_id", "prompt", "params", "tenant").collect()
    assert sorted(map(tuple, rows), key=str) == sorted(
        [("a", "Say", "{}", None), ("b", "Tell", None, "x"), ("c", "Tell", None, "x"), (None, "Say", "{}", None), (None, "Tell", None, "x")],
        key=str,
    )  # fmt: skip
    assert load_prompts(spark, settings, again, named=named).known == 2
    with pytest.raises(ConfigError, match=r"z\.csv: --replace: expected a column request_id, found prompt"):
        load_prompts(spark, settings, write_file(tables, "z.csv", "prompt\nx\n"), replace=True)


@pytest.mark.slow
def test_a_table_with_integer_ids_takes_files(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    prompts.write(spark, tables / "prompts", [(1, "Say"), (2, "Say")], "Request_ID BIGINT, prompt STRING")
    for replace, expected in ((True, [1, 2, 3]), (False, [1, 2, 2, 3, 3])):
        loaded = load_prompts(
            spark, settings, write_file(tables, "x.csv", "request_id,prompt\n2,Tell\n3,Tell\n"), replace=replace
        )
        assert loaded.known == (1 if replace else 2)
        rows = spark.table(quoted(str(tables / "prompts"))).collect()
        assert sorted(row["Request_ID"] for row in rows) == expected
    with pytest.raises(ConfigError, match=r"cannot load .*y\.csv: .*'a'.*BIGINT"):
        load_prompts(spark, settings, write_file(tables, "y.csv", "request_id,prompt\na,Tell\n"))


@pytest.mark.slow
def test_rows_that_are_loaded_without_a_jvm_are_those_of_spark(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    first = write_file(tables, "x.csv", 'request_id,prompt,tenant\na,"Grüße 🙂",x\nb,,y\n')
    second = write_file(tables, "y.jsonl", '{"request_id": "b", "prompt": "Say", "params": {"n": 1}}')
    bad = ["row 2 (request_id b): no prompt: expected text in prompt, or messages"]
    assert load_locally(settings, first) == Loaded(2, bad, 0, has_ids=True, unused=("tenant",))
    assert load_locally(settings, second) == Loaded(1, [], 1, has_ids=True)
    assert load_prompts(spark, settings, first).known == 2
    assert load_locally(settings, second) == Loaded(1, [], 1, has_ids=True), "after a commit of Spark"
    found = spark.table(quoted(str(tables / "prompts"))).select("request_id", "prompt", "params", "tenant").collect()
    assert sorted(map(tuple, found), key=str) == sorted(
        [("a", "Grüße 🙂", None, "x"), ("b", None, None, "y"), ("b", "Say", '{"n":1}', None)] * 2, key=str
    )
    spark.sql(f"ALTER TABLE {quoted(str(tables / 'prompts'))} CLUSTER BY (tenant)")
    assert load_locally(settings, second) is None
    assert load_locally(load_settings({"prompts": {"table": "main.s.prompts"}}), second) is None


@pytest.mark.slow
def test_no_row_is_lost_beside_a_spark_writer(spark: SparkSession, tables: Path) -> None:
    """Spark replaces a commit of delta-rs now and then."""
    table, theirs = str(tables / "t"), 0
    append(table, pa.table({"request_id": ["first"]}), lambda _: None)
    numbers = iter(range(400))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            append(table, pa.table({"request_id": [str(number)]}), lambda _: time.sleep(0.1))

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        while not all(worker.done() for worker in workers):
            spark.sql(f"INSERT INTO {quoted(table)} VALUES ('spark {theirs}')")
            theirs += 1
        for worker in workers:
            worker.result()
    found = [row["request_id"] for row in spark.table(quoted(table)).collect()]
    assert theirs
    assert sorted(found) == sorted(["first", *map(str, range(400)), *(f"spark {number}" for number in range(theirs))])


def test_parquet_types_that_spark_does_not_have_are_named(spark: SparkSession, tables: Path) -> None:
    settings = load_settings(prompts.config(tables, "http://127.0.0.1:1/v1"))
    pq.write_table(pa.table({"prompt": ["Say"], "at": pa.array([1.5], pa.float16())}), tables / "x.parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet: column at: expected a type that Spark has, found halffloat"):
        load_prompts(spark, settings, tables / "x.parquet")
