from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from deltatap.errors import ConfigError
from deltatap.prices import DEFAULT_FILE, cost_usd, load_prices, named

OURS = Path(__file__).parents[2] / DEFAULT_FILE
ENTRY = "- {model: 'a-*', input: 2, output: 8, date: 2026-01-01, source: here}\n"


def test_the_default_prices_match_known_models() -> None:
    prices = load_prices(str(OURS))
    found = {
        model: prices.find(model)
        for model in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o", "openai/gpt-4.1", "my-own")
    }
    assert {model: price and str(price.input) for model, price in found.items()} == {
        "gpt-4o-mini": "0.15", "gpt-4o-mini-2024-07-18": "0.15", "gpt-4o": "2.5", "openai/gpt-4.1": "2.0", "my-own": None,
    }  # fmt: skip


def test_the_answering_model_is_looked_up_if_the_requested_model_has_no_price(tmp_path: Path) -> None:
    prices = load_prices(str(OURS))
    deployment = prices.find("my-deployment", "gpt-4o-2024-08-06")
    assert deployment is not None
    assert deployment.model == "gpt-4o-2024-*"
    own = tmp_path / "own.yml"
    own.write_text(ENTRY.replace("a-*", "my-deployment"))
    mine = load_prices([str(own), str(OURS)])
    assert mine.find("my-deployment", "gpt-4o") == load_prices(str(own)).entries[0], "the first file wins"
    assert mine.find("gpt-4o") == prices.find("gpt-4o")
    assert mine.find(None, None) is None


def test_the_first_matching_pattern_applies(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text(ENTRY + ENTRY.replace("a-*", "a-b").replace("input: 2", "input: 7"))
    price = load_prices(str(path)).find("a-b")
    assert price is not None
    assert price.input == 2


def test_the_cost_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text(ENTRY + "- {model: c, input: 2, cached_input: 1, output: 8, date: 2026-01-01, source: here}\n")
    prices = load_prices(str(path))
    plain, cached = prices.find("a-x"), prices.find("c")
    assert plain is not None
    assert cached is not None
    assert cost_usd(plain, 1000, 500) == Decimal("0.006")
    assert cost_usd(plain, 1000, 500, 400) == Decimal("0.006"), (
        "without a cached price, cached input costs as much as other input"
    )
    assert cost_usd(cached, 1000, 500, 400) == Decimal("0.0056")


def test_without_the_default_file_the_prices_of_the_package_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_prices(None).find("gpt-4o") is None
    assert load_prices(DEFAULT_FILE).entries == load_prices(str(OURS)).entries
    own = tmp_path / "own.yml"
    own.write_text("# only comments\n")
    assert load_prices([str(own), DEFAULT_FILE]).entries == load_prices(str(OURS)).entries
    assert named([str(own), DEFAULT_FILE]) == f"{own}, deltatap's own prices"
    (tmp_path / "conf").mkdir()
    (tmp_path / DEFAULT_FILE).write_text(ENTRY)
    assert [price.model for price in load_prices(DEFAULT_FILE).entries] == ["a-*"]
    assert named(DEFAULT_FILE) == DEFAULT_FILE


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: 1", "expected a list of entries"),
        ("- [", "is not valid YAML"),
        (ENTRY + "- {model: x, output: 1, date: 2026-01-01, source: s}", "entry 2: input: Field required"),
        (ENTRY.replace("input: 2", "input: -2"), "entry 1: input: Input should be greater than or equal to 0"),
        (ENTRY.replace("input:", "inptu:"), "entry 1: inptu: Extra inputs are not permitted"),
        ("- 3", "entry 1: entry: "),
    ],
)
def test_a_problem_names_its_file_entry_and_key(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "p.yml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_prices(str(path))
    assert any(problem.startswith(f"prices: {path}: {expected}") for problem in caught.value.problems), caught.value


def test_a_configured_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"prices: nowhere.yml: cannot be read: No such file or directory"):
        load_prices("nowhere.yml")
