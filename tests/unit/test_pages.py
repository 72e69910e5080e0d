"""The links in the documentation resolve, and its table of layers has the order that the imports follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltatap.api.registry import NAMES
from tests.unit.test_layers import ORDER

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", (ROOT / page).read_text()):
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_the_layers_are_documented_in_their_order() -> None:
    section = (ROOT / "docs/how-it-works.md").read_text().partition("\n## The code\n")[2].partition("\n### ")[0]
    layers = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", section, re.MULTILINE)
    assert layers == [layer for layer in ORDER if layer != "__main__"]


def test_the_layers_name_each_module_of_a_package() -> None:
    section = (ROOT / "docs/how-it-works.md").read_text().partition("\n## The code\n")[2].partition("\n### ")[0]
    documented = {
        name: set(re.findall(r"`(\w+)`", what))
        for name, what in re.findall(r"^\| `(\w+)/` \| (.*)$", section, re.MULTILINE)
    }
    found = {
        name: {path.stem for path in (ROOT / "src/deltatap" / name).rglob("*.py")} - {"__init__"} for name in documented
    }
    found["api"] -= set(NAMES)  # "one module for each API": adding one changes no page
    assert documented == found
