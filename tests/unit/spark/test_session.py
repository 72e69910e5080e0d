from __future__ import annotations

import importlib.metadata
import sys
import threading
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import pytest
from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from deltatap.errors import MissingExtraError, SparkSetupError
from deltatap.spark import session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_jars_are_on_the_class_path_of_driver_and_executors(tmp_path: Path) -> None:
    options = session._options([tmp_path / "one.jar", tmp_path / "two.jar"])
    expected = f"{tmp_path / 'one.jar'}:{tmp_path / 'two.jar'}"
    assert options["spark.driver.extraClassPath"] == options["spark.executor.extraClassPath"] == expected


def test_a_missing_pyspark_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^the extra spark is not installed \(pyspark is missing\): run `pip install 'deltatap\[spark\]'`",
    ):
        session.local_session()


def test_a_missing_delta_spark_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nowhere)
    with pytest.raises(
        MissingExtraError,
        match=r"^the extra spark is not installed \(delta-spark is missing\): run `pip install 'deltatap\[spark\]'",
    ):
        session.local_session()


def test_versions_that_do_not_fit_are_named_before_a_jvm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyspark.__version__", "4.3.0")
    with pytest.raises(SparkSetupError, match=r"needs pyspark 4.0, 4.1, 4.2; found pyspark 4.3.0"):
        session.local_session()


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_an_empty_warehouse_that_spark_created_does_not_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, existed: bool, table: bool
) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "java_home", nullcontext)
    monkeypatch.setattr(session, "find_jars", lambda *_: [])
    monkeypatch.setattr(session, "_import_reader", lambda: None)
    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", lambda _: None)
    monkeypatch.setattr("atexit.register", lambda work, *arguments: at_exit.append(partial(work, *arguments)))
    folder = tmp_path / "spark-warehouse"
    if existed:
        folder.mkdir()
    session.local_session()
    (folder / "t" if table else folder).mkdir(parents=True, exist_ok=True)
    for work in at_exit:
        work()
    assert folder.exists() == (existed or table)


def test_a_jvm_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: object) -> None:
        raise PySparkRuntimeError(errorClass="JAVA_GATEWAY_EXITED", messageParameters={})

    def found(_jars: object, _pyspark: object, folder: Path | None) -> list[Path]:
        seen.append(folder)
        return []

    seen: list[Path | None] = []
    monkeypatch.setattr(session, "java_home", nullcontext)
    monkeypatch.setattr(session, "find_jars", found)
    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", crash)
    with pytest.raises(SparkSetupError) as raised:
        session.local_session(jars=tmp_path)
    assert str(raised.value) == (
        "Spark does not start: [JAVA_GATEWAY_EXITED] Java gateway process exited before sending its port number."
    )
    assert seen == [tmp_path]


def test_the_reader_of_local_tables_is_imported_while_the_jvm_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = threading.Event()
    monkeypatch.setattr(session, "_import_reader", imported.set)
    monkeypatch.setattr(session, "java_home", nullcontext)
    monkeypatch.setattr(session, "find_jars", lambda *_: [])
    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", lambda _: imported.wait(5))
    started: object = session.local_session(jars=tmp_path)
    assert started is True, "imported before the JVM was ready"
