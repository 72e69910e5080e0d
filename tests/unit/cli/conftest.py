"""A configuration with a state folder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_run_is_about_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` does not wait for one, nor for its answer. test_asking.py tests both waits."""
    monkeypatch.setattr("deltatap.driver.asking.PATIENCE_S", 0.0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yml"
    path.write_text(f"state: {{dir: {tmp_path / 'state'}}}\n")
    return path
