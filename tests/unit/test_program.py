"""The command in messages works when pasted."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from deltatap.program import program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment that is not activated."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env/bin/python"))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "my env/bin/deltatap"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    return tmp_path


def test_it_is_a_path_in_a_checkout(checkout: Path) -> None:
    assert program() == "'my env/bin/deltatap'"
    assert program(elsewhere=True) == f"'{checkout}/my env/bin/deltatap'"


def test_it_is_the_name_on_path(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "my env/bin"), prepend=os.pathsep)
    assert program() == program(elsewhere=True) == "deltatap"


def test_it_is_a_path_if_another_one_is_on_path(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkout / "other/deltatap"
    other.parent.mkdir()
    other.touch(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert program() == "'my env/bin/deltatap'"


def test_it_is_the_name_outside_of_this_folder(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("other"))
    assert program() == "deltatap"
    assert program(elsewhere=True) == f"'{checkout}/my env/bin/deltatap'"
