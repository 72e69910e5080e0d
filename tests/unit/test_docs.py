from __future__ import annotations

import re

import pytest
import yaml

from deltatap.config import load_settings
from tools import docs

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(docs.DOCS.glob("*.md"))}


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_up_to_date(name: str) -> None:
    assert docs.generated(PAGES[name]) == PAGES[name], f"docs/{name} is stale: run make docs"


def test_every_generated_part_appears_once() -> None:
    found = re.findall(r"<!-- generated: (.*) -->", "".join(PAGES.values()))
    assert sorted(found) == sorted(docs.PARTS)


def test_only_the_text_between_the_markers_changes() -> None:
    page = "# A\n\n<!-- generated: runs -->\nstale\n<!-- /generated -->\n\nby hand | text\n"
    before, after = docs.generated(page).split(docs.PARTS["runs"]())
    assert before == "# A\n\n<!-- generated: runs -->\n"
    assert after == "<!-- /generated -->\n\nby hand | text\n"


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        docs.generated("<!-- generated: nothing -->\n<!-- /generated -->\n")


def test_provider_configurations_can_be_pasted() -> None:
    blocks = re.findall(r"```yaml\n(endpoint:\n.*?)```", PAGES["endpoints.md"], re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        settings = load_settings(yaml.safe_load(block))
        assert settings.endpoint.name
        # The page shows the identity in a separate block, which replaces the key.
        load_settings(yaml.safe_load(block), ["endpoint.api_key={identity: azure}"])
