"""An error on one line, and the error for a missing extra."""

from __future__ import annotations

import pytest

from deltatap.errors import missing_extra, one_line

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
        (RuntimeError(CRASHED), "Python worker exited unexpectedly"),
        (RuntimeError(WORKER), "ModuleNotFoundError: No module named 'deltatap'"),
        (
            RuntimeError(CHAINED),
            "deltatap.errors.ConfigError: endpoint.api_key: the environment variable KEY is not set",
        ),
        (RuntimeError("Traceback (most recent call last):"), "RuntimeError"),
    ],
)
def test_an_error_on_one_line_gives_its_cause(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_the_error_for_a_missing_extra_names_the_module_and_the_extra() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'plotly'", name="plotly"), "report")
    assert str(error) == "plotly is not installed: run `pip install 'deltatap[report]'`, or `make setup` in a checkout"
