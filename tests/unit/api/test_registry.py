"""Every API is complete, and only the registry knows the list of APIs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltatap.api.registry import NAMES, specification, specifications
from tests.spark.test_kinds import KINDS

SOURCE = Path(__file__).parents[3] / "src" / "deltatap"


@pytest.mark.parametrize("name", NAMES)
def test_a_specification_is_complete(name: str) -> None:
    api = specification(name)
    assert api.name == name
    assert api.path.startswith("/")
    assert api.prompt_field
    assert api.title
    assert api is specification(name)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        specification("base")


def test_paths_differ() -> None:
    assert len({api.path for api in specifications()}) == len(NAMES)


def test_every_api_has_requests_for_the_simulator() -> None:
    assert set(KINDS) == set(NAMES), "add the API to KINDS in tests/spark/test_kinds.py"


def test_no_other_module_names_an_api() -> None:
    """Code that compares an API's name, or uses it as a key, would have to change with the list."""
    names = set(NAMES) - {"messages"}  # also a column of the prompts table
    found = []
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "api":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = [node.left, *node.comparators]
            elif isinstance(node, ast.Dict):
                values = [key for key in node.keys if key is not None]
            else:
                continue
            if any(isinstance(value, ast.Constant) and value.value in names for value in values):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_checking_a_name_imports_no_api() -> None:
    code = "import sys, deltatap.api.registry as r; r.NAMES; print([m for m in sys.modules if m.startswith('deltatap.api.')])"
    command = [sys.executable, "-c", code]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        == "['deltatap.api.registry']"
    )


@pytest.mark.parametrize(
    ("api", "body", "most"),
    [
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ("chat", {"max_tokens": None}, None),
        ("chat", {}, None),
        ("completions", {"max_tokens": 5}, 5),
        ("responses", {"max_output_tokens": 9}, 9),
        ("messages", {"max_tokens": 9}, 9),
    ],
)
def test_the_maximum_output_of_a_choice(api: str, body: dict[str, Any], most: int | None) -> None:
    assert specification(api).max_output(body) == most
