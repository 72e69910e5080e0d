from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from deltatap.analysis.conditions import parse_all
from deltatap.http.outcomes import http_error
from deltatap.model import ERRORS
from deltatap.settings_loading import load_settings
from tools import docs

if TYPE_CHECKING:
    from pathlib import Path

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


def classified() -> list[list[str]]:
    """The rows of the table of errors: what the server does, status, type, retried, owed, kept."""
    lines = PAGES["endpoints.md"].partition("## Outcomes and errors\n")[2].partition("\n\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return rows[1:]


def test_the_table_of_errors_has_every_type() -> None:
    assert {row[2].partition(";")[0] for row in classified()} >= set(ERRORS)


def test_the_table_of_errors_has_the_type_of_each_status() -> None:
    listed = {int(status): row[2] for row in classified() for status in re.findall(r"\b[345]\d\d\b", row[0])}
    listed = {status: type_ for status, type_ in listed.items() if type_ in ERRORS}
    found = {status: http_error(status, b"", {}, 0.0).type for status in range(300, 600)}
    others = {4: "invalid_request", 5: "server"}
    assert {status: listed.get(status) or others.get(status // 100, "wrong_url") for status in found} == found


@pytest.mark.parametrize(
    "row", [row for row in classified() if row[1] == "failed" and row[2] in ERRORS], ids=lambda row: row[2]
)
def test_the_table_of_errors_has_the_rules_of_each_type(row: list[str]) -> None:
    _, _, type_, retried, owed, _ = row
    kind = ERRORS[type_]
    assert retried.startswith(
        {"never": "no", "attempt": "up to `max_attempts`", "waiting": "until `retry_for_s`"}[kind.retry]
    )
    assert owed.startswith("yes" if kind.owed else "no")
    assert ("the run stops" in owed) is kind.stops_run
    assert ("model's" in owed or "as for 403" in owed) is kind.parks_model


def example(name: str) -> str:
    """A marked example of the guide."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```sh\n(.*?)```", PAGES["guide.md"], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_for_ci_compares_with_the_newest_run_that_passed(tmp_path: Path) -> None:
    command = tmp_path / "deltatap"
    command.write_text(
        '#!/bin/sh\necho "$@" >> calls\ncase $1 in\n'
        'capture) echo summary; echo "{\\"run_id\\": \\"$(cat run)\\"}";;\ncompare) exit $(cat code);;\nesac\n'
    )
    command.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", example("ci.sh")], cwd=tmp_path, env=path, check=True)
    for run_id, code, compared in (("a", 0, "a a"), ("b", 3, "a b"), ("c", 0, "a c"), ("d", 0, "c d")):
        (tmp_path / "run").write_text(run_id)
        (tmp_path / "code").write_text(str(code))
        ended = subprocess.run(["bash", "ci.sh", "--set", "a=b"], cwd=tmp_path, env=path, check=False)
        assert ended.returncode == code, "the code of compare"
        *_, last = (tmp_path / "calls").read_text().splitlines()
        assert last.startswith(f"compare {compared} --set a=b --fail-if good<95% ")


def test_the_conditions_of_the_example_for_ci_are_valid() -> None:
    conditions, goals = parse_all(re.findall(r"--fail-if '(.*?)'", example("ci.sh")))
    assert (len(conditions), len(goals)) == (2, 1)
