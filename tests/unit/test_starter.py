"""The files that ``deltatap init`` writes, and the commands that it shows."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from deltatap import cli, shipped, starter
from deltatap.prices import load_prices
from deltatap.prompt_files import read_prompts
from deltatap.settings_loading import load_settings
from tests import bundle

if TYPE_CHECKING:
    from pathlib import Path


def init(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["init", *map(str, words)])
    return result.exit_code, result.output


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_valid_and_the_configuration_has_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = init()
    assert code == 0, output
    assert written(tmp_path) == {"conf/local.yml", "conf/our-prices.yml", "prompts.csv"}
    settings = load_settings(tmp_path / "conf/local.yml")
    assert settings.model_dump(exclude={"prices"}) == load_settings({}).model_dump(exclude={"prices"})
    assert load_prices(settings.prices).entries == load_prices("conf/prices.yml").entries
    assert read_prompts(tmp_path / "prompts.csv", "chat").rows.num_rows == 3


def test_the_help_shows_the_folder_as_optional() -> None:
    code, output = init("--help")
    assert code == 0
    assert "[OPTIONS] [FOLDER]" in output


def test_the_example_in_the_prices_is_valid_without_its_hash(tmp_path: Path) -> None:
    init(tmp_path)
    own = tmp_path / "conf/our-prices.yml"
    own.write_text(own.read_text().replace("# - ", "- "))
    assert [price.model for price in load_prices(str(own)).entries] == ["our-deployment"]


def test_the_bundle_is_that_of_the_checkout_but_for_how_the_wheel_is_made(tmp_path: Path) -> None:
    code, output = init(tmp_path, "--databricks")
    assert code == 0, output
    assert "conf/local.yml" not in shipped.bundle()
    made, ours = bundle.read(tmp_path), bundle.read()
    assert made["artifacts"]["wheel"].pop("build").startswith("pip wheel --quiet --no-deps --wheel-dir dist ")
    ours["artifacts"]["wheel"].pop("build")
    assert made["bundle"].pop("uuid") != ours["bundle"].pop("uuid")
    assert made == ours
    assert {"conf/dev.yml", "conf/prod.yml", "conf/prices.yml", "jobs/capture.py"} <= written(tmp_path)
    assert "make" not in (tmp_path / "databricks.yml").read_text()
    for target in ("dev", "prod"):
        assert load_settings(tmp_path / f"conf/{target}.yml").budget.cost_usd is not None
    dashboard = tmp_path / "conf/dashboards/deltatap.lvdash.json"
    assert json.loads(dashboard.read_text())


def test_files_that_exist_are_kept_and_missing_ones_are_added(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("mine")
    code, output = init(tmp_path)
    assert (code, output.splitlines()[:2]) == (
        0,
        [
            f"✓ written to {tmp_path}: conf/local.yml, conf/our-prices.yml",
            f"kept as they are in {tmp_path}: prompts.csv",
        ],
    )
    (tmp_path / "conf/our-prices.yml").write_text("# mine")
    code, output = init(tmp_path, "--databricks")
    first, second, *_ = output.splitlines()
    assert (code, second) == (0, f"kept as they are in {tmp_path}: conf/local.yml, conf/our-prices.yml, prompts.csv")
    assert "databricks.yml" in first
    assert written(tmp_path) >= {"databricks.yml", "jobs/capture.py"}
    assert [(tmp_path / name).read_text() for name in ("prompts.csv", "conf/our-prices.yml")] == ["mine", "# mine"]
    code, output = init(tmp_path, "--databricks")
    assert (code, output.splitlines()[0].startswith("kept")) == (0, True)


def test_what_ships_names_no_page_that_does_not_ship(tmp_path: Path) -> None:
    init(tmp_path, "--databricks")
    shown = [*tmp_path.rglob("*"), *(shipped.CHECKOUT / "src/deltatap/report").glob("*.j2")]
    texts = {str(path): path.read_text() for path in shown if path.is_file()}
    for command in sorted(set(cli.__all__) - {"app", "run", "run_job"}):
        if command.islower():
            texts[command] = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert len(texts) > 20
    assert [name for name, text in texts.items() if re.search(r"docs/\w", text)] == []


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/local.yml").symlink_to(tmp_path / "elsewhere")
    assert init(tmp_path) == (2, f"✗ {tmp_path}/conf/local.yml: cannot be written: File exists\n")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert init(tmp_path / "file") == (2, f"✗ {tmp_path}/file/conf/local.yml: cannot be written: Not a directory\n")


def test_the_commands_to_try_next_begin_with_what_is_missing() -> None:
    steps = starter.next_steps("my folder", "'/a b/deltatap'", missing=["report", "serve"], databricks=False)
    commands = [line.strip() for line in steps if line.startswith("  ")]
    assert commands[:3] == [
        "pip install 'deltatap[report,serve]'", "cd 'my folder'", "'/a b/deltatap' simulate &",
    ]  # fmt: skip
    steps = starter.next_steps(".", "deltatap", missing=[], databricks=True)
    commands = [line.strip() for line in steps if line.startswith("  ")]
    assert commands[0] == "deltatap simulate &"
    assert commands[-1] == "databricks bundle deploy --target dev"


def test_each_command_to_try_next_exists() -> None:
    steps = starter.next_steps(".", "deltatap", missing=[], databricks=True)
    shown = re.findall(r"^  deltatap (\w+)", "\n".join(steps), re.MULTILINE)
    assert shown == ["simulate", "load", "capture", "show", "report", "check"]
    assert set(shown) <= set(cli.__all__)


@pytest.mark.parametrize(
    ("direct_url", "source"),
    [
        (None, "deltatap==1.2"),
        (
            '{"url": "file:///w/deltatap-1.2-py3-none-any.whl", "archive_info": {}}',
            "file:///w/deltatap-1.2-py3-none-any.whl",
        ),
        ('{"url": "https://example.com/deltatap.whl"}', "deltatap==1.2"),
    ],
)
def test_the_wheel_is_made_from_what_deltatap_was_installed_from(direct_url: str | None, source: str) -> None:
    assert starter.wheel_source("1.2", direct_url) == source


def test_a_shipped_file_without_the_line_to_change_is_an_error() -> None:
    texts = {name: shipped.path(name).read_text() for name in ("conf/local.yml", "databricks.yml")}
    made = starter.files(texts, wheel="a b", uuid="u")
    build = yaml.safe_load(made["databricks.yml"])["artifacts"]["wheel"]["build"]
    assert build == "pip wheel --quiet --no-deps --wheel-dir dist 'a b'"
    with pytest.raises(ValueError, match=r"a shipped file has .*make wheel"):
        starter.files(
            texts | {"databricks.yml": texts["databricks.yml"].replace("make wheel", "x")}, wheel="w", uuid="u"
        )
