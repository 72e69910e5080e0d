"""Modules import only from lower layers and without cycles. Imports for types count, too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
# Lowest first. A module imports from packages before its own, and from its own.
ORDER = (
    "errors", "visible", "program", "shipped", "rates", "catalog", "settings_file", "prices", "tokens", "model", "messages", "api", "template", "prompt_columns", "prompts", "setting_types", "endpoint", "prompt_files", "patterns", "config", "settings_loading", "delta", "files", "plan_state", "state", "http", "worker",
    "udf", "spark", "driver", "analysis", "report", "export", "reconcile", "sweep", "simulator", "replay", "record", "watch", "terminal", "starter", "cli", "demo", "__main__",
)  # fmt: skip
# What `from deltatap import …` offers, by name only.
PUBLIC = "deltatap"


def imports() -> dict[str, set[str]]:
    """Each module's imports of other modules of deltatap, anywhere in the file."""
    paths = {module_name(path): path for path in SOURCE.rglob("*.py")}
    return {name: set(imported(path, paths)) - {PUBLIC} for name, path in paths.items() if name != PUBLIC}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, known: dict[str, Path]) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PUBLIC:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in known else node.module for name in inner]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in known]
    return found


def package(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_layer() -> None:
    assert {package(module) for module in imports()} == set(ORDER)


def test_no_module_imports_a_higher_layer() -> None:
    rank = {package(module): ORDER.index(package(module)) for module in imports()}
    upward = [
        f"{module} imports {name}"
        for module, found in sorted(imports().items())
        for name in sorted(found)
        if rank[package(name)] > rank[package(module)]
    ]
    assert upward == []


def test_no_import_cycle() -> None:
    graph = {name: found - {name} for name, found in imports().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
