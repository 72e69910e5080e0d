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
