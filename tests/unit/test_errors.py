"""An error on one line, and the error for a missing extra."""

from __future__ import annotations

import pytest
from pyspark.errors import PySparkException

from deltatap.errors import ConfigError, described, missing_extra, one_line

# The message of a PythonException, shortened.
WORKER = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "worker.py", line 64, in read_command
    command = serializer._read_with_length(file)
              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ModuleNotFoundError: No module named 'deltatap'

\tat org.apache.spark.api.python.BasePythonRunner.handlePythonException(PythonRunner.scala:582)
"""
JOB = """An error occurred while calling o1.collect.
: org.apache.spark.SparkException: Job aborted due to stage failure
Traceback (most recent call last):
  File "engine.py", line 1, in check
    raise RuntimeError("the engine broke down") from error
RuntimeError: the engine broke down: KeyError: 'x'
\tat org.apache.spark.api.python.BasePythonRunner"""
JAVA = """An error occurred while calling o5875.sql.
: io.delta.exceptions.ConcurrentAppendException: [DELTA_CONCURRENT_APPEND] Files were added by a concurrent update.
\tat org.apache.spark.sql.delta.DeltaErrors"""
WRAPPED = """An error occurred while calling o99.save.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1 times
\tat org.apache.spark.scheduler.DAGScheduler
Caused by: org.apache.spark.SparkRuntimeException: [CAST_INVALID_INPUT] The value 'x' cannot be cast.
\tat org.apache.spark.sql.errors
Caused by: java.io.IOException: No space left on device
\tat java.base"""
CRASHED = "x\norg.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n\tat org"
CHAINED = """Traceback (most recent call last):
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 1, in work
deltatap.errors.ConfigError: endpoint.api_key: the environment variable KEY is not set"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  [TABLE_NOT_FOUND] no.  \n\tat org"), "[TABLE_NOT_FOUND] no."),
        (ValueError(), "ValueError"),
        (ValueError("x" * 1000), "x" * 300),
        (RuntimeError(JOB), "RuntimeError: the engine broke down: KeyError: 'x'"),
        (RuntimeError(JAVA), "[DELTA_CONCURRENT_APPEND] Files were added by a concurrent update."),
        (RuntimeError(WRAPPED), "No space left on device"),
        (
            RuntimeError(
                "An error occurred while calling o1.x.\n: java.lang.NullPointerException\n\tat a.b.C(D.java:1)"
            ),
            "NullPointerException",
        ),
        (
            RuntimeError(
                "x.y.SparkException: Exception thrown in awaitResult: \n\tat a.B(C)\nCaused by: java.io.IOException: Connection refused\n"
            ),
            "Connection refused",
        ),
        (
            RuntimeError(
                "java.util.concurrent.ExecutionException: org.apache.spark.SparkFileNotFoundException: File x does not exist"
            ),
            "File x does not exist",
        ),
        (
            RuntimeError("An error occurred while calling o1.x.\n: java.nio.file.AccessDeniedException: /data/x"),
            "permission denied: /data/x",
        ),
        (ConfigError(["column a\nb is missing"]), "column a b is missing"),
        (
            RuntimeError(
                "An error occurred while calling None.X.\n: java.lang.OutOfMemoryError: Java heap space\n\tat x"
            ),
            "Java heap space",
        ),
        (RuntimeError("An error occurred while calling o1.x"), "RuntimeError"),
        (RuntimeError("o.k. is not Java: it is text"), "o.k. is not Java: it is text"),
        (RuntimeError(CRASHED), "Python worker exited unexpectedly"),
        (RuntimeError(WORKER), "ModuleNotFoundError: No module named 'deltatap'"),
        (
            RuntimeError(CHAINED),
            "deltatap.errors.ConfigError: endpoint.api_key: the environment variable KEY is not set",
        ),
        (RuntimeError("Traceback (most recent call last):"), "RuntimeError"),
        (ValueError("s3a://KEY:s3/cr@et@bucket/x and jdbc:x://u:p@h"), "s3a://***@bucket/x and jdbc:x://***@h"),
        (
            ConfigError(["no file abfss://c@account/x, https://:p@h:1/y"]),
            "no file abfss://c@account/x, https://***@h:1/y",
        ),
    ],
)
def test_an_error_on_one_line_gives_its_cause(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_the_error_for_a_missing_extra_names_the_module_and_the_extra() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'plotly'", name="plotly"), "report")
    assert (
        str(error)
        == "the extra report is not installed (plotly is missing): run `pip install 'deltatap[report]'`, or `make setup` in a checkout"
    )


def test_errors_of_spark_are_described_without_their_class() -> None:
    assert described(PySparkException(JAVA)) == "[DELTA_CONCURRENT_APPEND] Files were added by a concurrent update."
    assert described(ConfigError(["runs.table: no"])) == "runs.table: no"
    assert described(KeyError("x")) == "KeyError: 'x'"
