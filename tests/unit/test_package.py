"""The public interface of the package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deltatap

ROOT = Path(__file__).parents[2]


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in deltatap.__all__ if getattr(deltatap, name) is None] == []
    assert deltatap.__all__ == sorted(deltatap.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = deltatap.nope


def test_the_version_is_the_one_in_pyproject() -> None:
    assert deltatap.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_documentation_imports_public_names_only() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "src/deltatap/demo.py"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(r"^ *from deltatap import (.+)$", text, re.MULTILINE)
    assert shown
    assert {name.strip() for line in shown for name in line.split(",")} <= set(deltatap.__all__)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, deltatap; print(sorted(name for name in sys.modules if name.startswith(('deltatap.', 'pandas'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
