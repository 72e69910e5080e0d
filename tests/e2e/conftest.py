"""Fixtures of the tests with real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession


@pytest.fixture(autouse=True)
def jobs_end() -> Iterator[None]:
    yield
    jobs.end_all()


@pytest.fixture(scope="session")
def server(spark: SparkSession) -> Iterator[str]:
    """The URL of a Spark Connect server. It runs in the tests' Spark, which for a job is another process, as a cluster is.

    Its tables are also those of the tests' session.
    """
    java, context = spark._jvm, spark.sparkContext._jsc.sc()
    assert java is not None
    context.conf().set("spark.connect.grpc.binding.port", "0")
    # A Scala object: its members are those of MODULE$.
    service = getattr(getattr(java.org.apache.spark.sql.connect.service, "SparkConnectService$"), "MODULE$")
    service.start(context)
    yield f"sc://127.0.0.1:{service.localPort()}"
    service.stop(*(getattr(service, f"stop$default${number}")() for number in (1, 2)))
