"""Local tables are read without Spark."""

from __future__ import annotations

from typing import NoReturn


def no_spark() -> NoReturn:
    """The session of a reader that must not start Spark."""
    raise AssertionError("Spark was started")
