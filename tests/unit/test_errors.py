"""What an error says on one line."""

from __future__ import annotations

import pytest

from deltatap.errors import said

# As PythonException has it, shortened.
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
def test_the_line_that_says_why(error: Exception, line: str) -> None:
    assert said(error) == line
