from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import ConfigError, capture_udf
from deltatap.delta import columns

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import DataFrame, SparkSession

    from tests.simulation import Simulation


def config(simulator: Simulation, **sections: Any) -> dict[str, Any]:
    return {"endpoint": {"base_url": simulator.base_url, "api_key": None}, "prices": None, **sections}


def test_a_column_of_prompts_becomes_captures_in_order(
    spark: SparkSession, tables: Path, simulator: Simulation
) -> None:
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "7")
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        prompts = spark.createDataFrame([(n, f"p{n}" if n != 3 else None) for n in range(40)], "n INT, prompt STRING")
        captured = prompts.coalesce(2).withColumn("c", capture_udf(config(simulator), max_requests=100)("prompt"))
        assert captured.schema["c"].dataType.simpleString() == columns.spark_schema(columns.CAPTURES).simpleString()
        captured.write.format("delta").save(str(tables / "c"))
        rows = spark.read.format("delta").load(str(tables / "c")).orderBy("n").collect()
        late = (
            spark.read.format("delta")
            .load(str(tables / "c"))
            .where("c.started_at > now() OR c.started_at < now() - INTERVAL 1 HOUR")
        )
        assert late.count() == 0, "times are instants, independent of the session's time zone"
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    calls = {call["prompt"]: call for call in simulator.calls()}
    assert len(calls) == 39
    for row in rows:
        c = row["c"]
        if row["n"] == 3:
            assert (c["status"], c["error"]["type"]) == ("failed", "invalid_request")
            continue
        call = calls[f"p{row['n']}"]
        assert (c["status"], c["text"], c["request_hash"]) == ("completed", call["texts"]["0"], call["key"])
        assert [chunk["text"] for chunk in c["chunks"] if chunk["kind"] == "content"] == [t for _, t in call["chunks"]]
        assert {chunk["choice"] for chunk in c["chunks"]} == {0, None}


def test_a_struct_with_the_columns_of_a_prompts_table(spark: SparkSession, simulator: Simulation) -> None:
    rows = [
        ("a", None, [("system", "Be brief."), ("user", "Hi")], "gpt-4o", {"max_tokens": "3"}),
        ("b", "Hello", None, None, None),
    ]
    columns = "request_id STRING, prompt STRING, messages ARRAY<STRUCT<role: STRING, content: STRING>>, model STRING, params MAP<STRING, STRING>"
    frame = spark.createDataFrame(rows, columns).coalesce(1)
    udf = capture_udf(config(simulator), max_requests=10)
    found = {
        row["c"]["request_id"]: row["c"]
        for row in frame.selectExpr("struct(*) AS s").select(udf("s").alias("c")).collect()
    }
    assert found["a"]["request_model"] == "gpt-4o"
    assert found["a"]["finish_reason"] == "length"
    assert found["a"]["usage_reported"]["output_tokens"] == 3
    assert (
        '"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]' in found["a"]["request"]
    )
    assert found["b"]["status"] == "completed"


def test_columns_of_other_types_and_in_other_cases(spark: SparkSession, simulator: Simulation) -> None:
    """The commonest id is a BIGINT. Once, such rows were paid for and then lost."""
    query = """SELECT id AS REQUEST_ID, 'Hi' AS Prompt, 'gpt-4o' AS MODEL, map('max_tokens', 3.0, 'x', id / 2.0) AS Params,
        array(DATE'2026-01-02') AS unused, NULL AS system FROM range(3)"""
    frame = spark.sql(query).coalesce(1)
    udf = capture_udf(config(simulator), max_requests=10)
    found = [row["c"] for row in frame.selectExpr("struct(*) AS s").select(udf("s").alias("c")).collect()]
    assert [(c["request_id"], c["request_model"], c["status"]) for c in found] == [
        (str(at), "gpt-4o", "completed") for at in range(3)
    ]
    assert [json.loads(c["request"])["x"] for c in found] == [0, 0.5, 1]
    # pandas has no time zone for a TIMESTAMP in a struct.
    message = "struct('user' AS role, 'Hi' AS content, X'FF' AS data, DATE'2026-01-02' AS day, 0.5 AS share, map('k', 1) AS counts)"
    frame = spark.range(1).selectExpr(f"struct(CAST(NULL AS BIGINT) AS request_id, array({message}) AS messages) AS s")
    (c,) = [row["c"] for row in frame.select(udf("s").alias("c")).collect()]
    (sent,) = json.loads(c["request"])["messages"]
    assert sent == {"role": "user", "content": "Hi", "data": "/w==", "day": "2026-01-02", "share": 0.5, "counts": {"k": 1}}  # fmt: skip


def test_in_sql(spark: SparkSession, simulator: Simulation) -> None:
    spark.udf.register("capture", capture_udf(config(simulator), max_requests=10))
    rows = spark.sql("SELECT c.* FROM (SELECT capture(prompt) AS c FROM VALUES ('x'), ('y') AS t(prompt))").collect()
    assert {row["status"] for row in rows} == {"completed"}
    assert simulator.counts()["calls"] == 2


def test_twice_in_one_frame(spark: SparkSession, simulator: Simulation) -> None:
    first, second = (capture_udf(config(simulator), max_requests=2) for _ in range(2))
    frame = spark.createDataFrame([("a", "b"), ("c", "d")], "x STRING, y STRING").coalesce(1)
    rows = frame.select("x", "y", first("x").alias("of_x"), second("y").alias("of_y")).collect()
    for row in rows:
        for name in "xy":
            (message,) = json.loads(row[f"of_{name}"]["request"])["messages"]
            assert (row[f"of_{name}"]["status"], message["content"]) == ("completed", row[name])
    assert simulator.counts()["calls"] == 4


@pytest.mark.slow
def test_in_a_stream(spark: SparkSession, tables: Path, simulator: Simulation) -> None:
    udf = capture_udf(config(simulator), max_requests=9)
    path = str(tables / "prompts")

    def write(batch: DataFrame, _: int) -> None:
        batch.select(udf("prompt").alias("c")).write.format("delta").mode("append").save(str(tables / "c"))

    for prompt in ("a", "b"):
        spark.createDataFrame([(prompt,)], "prompt STRING").write.format("delta").mode("append").save(path)
        stream = spark.readStream.format("delta").load(path).writeStream.trigger(availableNow=True)
        stream.option("checkpointLocation", str(tables / "checkpoint")).foreachBatch(write).start().awaitTermination()
    found = spark.read.format("delta").load(str(tables / "c")).select("c.status", "c.request").collect()
    assert sorted(json.loads(row["request"])["messages"][0]["content"] for row in found) == ["a", "b"]
    assert {row["status"] for row in found} == {"completed"}


def test_a_variant_in_a_struct(spark: SparkSession, simulator: Simulation) -> None:
    query = """SELECT array(struct('user' AS role, 'Hi' AS content, parse_json('{"k": [1, null]}') AS x)) AS messages,
        parse_json('{"max_tokens": 3}') AS params"""
    udf = capture_udf(config(simulator), max_requests=1)
    (c,) = [row["c"] for row in spark.sql(query).selectExpr("struct(*) AS s").select(udf("s").alias("c")).collect()]
    body = json.loads(c["request"])
    assert (body["max_tokens"], body["messages"][0]["x"]) == (3, {"k": [1, None]})


def test_a_task_sends_at_most_max_requests(spark: SparkSession, simulator: Simulation) -> None:
    frame = spark.createDataFrame([(f"p{n}",) for n in range(9)], "prompt STRING").coalesce(1)
    rows = frame.select(capture_udf(config(simulator), max_requests=4)("prompt").alias("c")).collect()
    assert simulator.counts()["calls"] == 4
    unsent = [row["c"] for row in rows if row["c"]["status"] == "failed"]
    assert {c["error"]["message"] for c in unsent} == {"max_requests=4 was reached"}


def test_a_wrong_key_stops_all_rows(spark: SparkSession, simulator: Simulation) -> None:
    rows = [(f"p{n}",) for n in range(200)]
    frame = spark.createDataFrame(rows, "prompt STRING").coalesce(1)
    settings = config(simulator, capture={"concurrency": 2})
    settings["endpoint"]["model"] = "gpt-4o!401"
    found = frame.select(capture_udf(settings, max_requests=1000)("prompt").alias("c")).collect()
    assert simulator.counts()["calls"] <= 6
    assert {row["c"]["error"]["type"] for row in found} == {"authentication", "cancelled"}
    assert any(row["c"]["error"]["message"].startswith("not sent, because of authentication: ") for row in found)


def test_a_bad_configuration_is_rejected_before_any_call() -> None:
    with pytest.raises(ConfigError, match=r"capture\.concurrency"):
        capture_udf({"capture": {"concurrency": 0}}, max_requests=1)
    with pytest.raises(ValueError, match="max_requests"):
        capture_udf({"endpoint": {"api_key": None}}, max_requests=0)
    with pytest.raises(ConfigError, match=r"capture\.mode: a UDF returns one row for each prompt"):
        capture_udf({"endpoint": {"api_key": None}, "capture": {"mode": "paired"}}, max_requests=1)


def test_complete_answers_of_another_api(spark: SparkSession, simulator: Simulation) -> None:
    settings = config(simulator, capture={"mode": "complete", "keep_raw": True}, request={})
    settings["endpoint"]["api"] = "responses"
    frame = spark.createDataFrame([("Hi",)], "prompt STRING").coalesce(1)
    (row,) = frame.select(capture_udf(settings, max_requests=1)("prompt").alias("c")).collect()
    (call,) = simulator.calls()
    assert (row["c"]["mode"], row["c"]["api"], row["c"]["text"]) == ("complete", "responses", call["texts"]["0"])
    assert (row["c"]["chunks"], len(row["c"]["raw"])) == ([], 1)
