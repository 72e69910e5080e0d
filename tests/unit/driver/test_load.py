"""Loading a file without Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deltatap.driver.load import load_locally
from deltatap.settings_loading import load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_an_error_while_rows_are_checked_leaves_the_table_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("deltatap.driver.load.build_request", failing)
    file = tmp_path / "prompts.csv"
    file.write_text("request_id,prompt\nq,Hello\n")
    with pytest.raises(RuntimeError, match="a bug"):
        load_locally(load_settings({"prompts": {"table": f"{tmp_path}/prompts"}}), file)
    assert not (tmp_path / "prompts").exists()


def test_an_invalid_row_is_named_by_its_place_and_its_id(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("request_id,prompt\nq1,Hello\nq2,\n,\n")
    loaded = load_locally(load_settings({"prompts": {"table": f"{tmp_path}/prompts"}}), file)
    assert loaded is not None
    first, second = loaded.bad
    assert first.startswith("row 2 (request_id q2): no prompt")
    assert second.startswith("row 3: no prompt")
