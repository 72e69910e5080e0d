from __future__ import annotations

from typing import Any

import pytest

from deltatap.delta.local import LocalReader
from deltatap.delta.reader import SparkReader
from deltatap.delta.readers import reader_beside


class Session:
    def __init__(self, master: str | None) -> None:
        self.conf = {"spark.master": master}


def reader_of(master: str | None) -> object:
    spark: Any = Session(master)
    return reader_beside(spark)


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,1024]"])
def test_beside_a_local_spark_tables_are_read_without_it(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    assert isinstance(reader_of(master), LocalReader)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18")
    assert isinstance(reader_of(master), SparkReader)


@pytest.mark.parametrize("master", ["spark://host:7077", None])
def test_a_spark_elsewhere_reads_the_tables(master: str | None) -> None:
    assert isinstance(reader_of(master), SparkReader)


def test_without_the_extra_spark_reads_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.delta.readers.find_spec", lambda name: None if name == "duckdb" else object())
    assert isinstance(reader_of("local[*]"), SparkReader)
