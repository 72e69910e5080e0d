"""Fixtures of the tests with real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import jobs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def jobs_end() -> Iterator[None]:
    yield
    jobs.end_all()
