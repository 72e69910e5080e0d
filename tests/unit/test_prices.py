from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from deltatap.delta import columns
from deltatap.errors import ConfigError
from deltatap.prices import DEFAULT_FILE, by_model, load_prices, money, named
from deltatap.rates import Billed, Price, cost_parts, cost_usd
from deltatap.worker.billing import total

OURS = Path(__file__).parents[2] / DEFAULT_FILE
ENTRY = "- {model: 'a-*', input: 2, output: 8, date: 2026-01-01, source: here}\n"


def test_published_prices_apply_after_those_of_the_files() -> None:
    prices = load_prices(str(OURS), "https://api.openai.com/v1")
    found = {
        model: prices.find(model)
        for model in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o", "gpt-4.1", "my-own", "gpt-4o-audio-preview")
    }
    assert {model: price and (str(price.input), str(price.output)) for model, price in found.items()} == {
        "gpt-4o-mini": ("0.15", "0.6"), "gpt-4o-mini-2024-07-18": ("0.15", "0.6"), "gpt-4o": ("2.5", "10"),
        "gpt-4.1": ("2", "8"), "my-own": None, "gpt-4o-audio-preview": ("2.5", "10.0"),
    }  # fmt: skip
    spoken = found["gpt-4o-audio-preview"]
    assert spoken is not None
    assert str(spoken.audio_input) == "40.0", "the shipped file knows audio, which the published prices do not"
    assert str(found["gpt-4o"] and found["gpt-4o"].source).startswith("genai-prices 0.2")


def test_the_answering_model_is_looked_up_if_the_requested_model_has_no_price(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text(ENTRY.replace("a-*", "my-deployment"))
    mine = load_prices([str(own), str(OURS)])
    assert mine.find("my-deployment", "gpt-4o") == load_prices(str(own)).entries[0], "the file wins"
    assert mine.find("other", "my-deployment") == load_prices(str(own)).entries[0]
    deployment = load_prices(str(OURS)).find("unknown", "gpt-4o-2024-08-06")
    assert deployment is not None
    assert deployment.input == Decimal("2.5")
    assert mine.find(None, None) is None


UNKNOWN_URLS = [
    ("gpt-4o", "2.5"), ("openai/gpt-4o", "2.5"), ("anthropic/claude-haiku-4-5", "1"), ("claude-haiku-4-5", "1"),
    ("gemini-2.0-flash", "0.1"), ("gpt-oss-120b", None), ("openai/gpt-oss-20b", None),
    ("deepseek-ai/DeepSeek-R1", None), ("deepseek-r1", None), ("mistralai/Mistral-7B-Instruct-v0.3", None),
    ("meta-llama/Llama-3.1-8B-Instruct", None), ("mistral/mistral-small-latest", "0.15"), ("", None), ("a" * 99_999, None),
    ("GPT-4o\ud800", None), ("*", None),
]  # fmt: skip


@pytest.mark.parametrize(("model", "price"), UNKNOWN_URLS)
def test_at_an_unknown_url_only_a_model_that_nobody_else_serves_has_a_price(model: str, price: str | None) -> None:
    """A gateway bills OpenAI's models at OpenAI's price. Your own server does not bill an open model."""
    found = load_prices(str(OURS), "http://10.0.0.7:8000/v1").find(model)
    assert (found and str(found.input)) == price


def test_the_published_price_is_that_of_the_model_that_answers() -> None:
    router = load_prices(str(OURS), "https://openrouter.ai/api/v1")
    routed = router.find("openai/gpt-4o", "openai/gpt-4o-mini")
    assert routed is not None
    assert routed.input == Decimal("0.15")
    azure = load_prices(str(OURS), "https://acme.openai.azure.com/openai/v1")
    misnamed = azure.find("gpt-4o", "gpt-4o-mini-2024-07-18")
    assert misnamed is not None
    assert misnamed.input == Decimal("0.15")
    assert azure.find("gpt-4o") is not None, "before the first answer, the name is all that is known"
    assert azure.find("ours") is None


def test_a_service_tier_has_a_price_of_its_own() -> None:
    prices = load_prices(str(OURS), "https://api.openai.com/v1")
    found = {
        tier: prices.find("gpt-5", tier=tier) for tier in (None, "default", "auto", "flex", "priority", "batch", "x")
    }
    assert {tier: price and (str(price.input), price.service_tier) for tier, price in found.items()} == {
        None: ("1.25", None), "default": ("1.25", None), "auto": ("1.25", None), "flex": ("0.625", "flex"),
        "priority": ("2.5", "priority"), "batch": ("0.625", "batch"), "x": ("1.25", None),
    }  # fmt: skip
    assert list(prices.tiers("gpt-5")) == ["flex", "priority", "batch"]
    assert list(prices.tiers("unknown")) == list(prices.tiers(None)) == []


def test_an_entry_can_be_for_one_tier_and_have_steps(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text(
        ENTRY.replace("input: 2", "service_tier: flex, input: 1")
        + ENTRY.replace(
            "input: 2", "steps: [{above: 9, input: 4, output: 9}, {above: 99, input: 5, output: 9}], input: 2"
        )
    )
    prices = load_prices(str(path))
    flex, plain = prices.find("a-b", tier="flex"), prices.find("a-b", tier="priority")
    assert flex is not None
    assert plain is not None
    assert [flex.input, plain.input] == [1, 2], "an entry without a tier is for every tier"
    assert [plain.at(tokens).input for tokens in (0, 9, 10, 99, 100)] == [2, 2, 4, 4, 5]
    assert plain.to_json()["steps"][1] == {"input": "5", "output": "9", "above": 99}


def test_a_price_that_changed_applies_from_its_day_on() -> None:
    prices = load_prices(str(OURS), "https://api.openai.com/v1")
    found = [prices.find("gpt-5.6-sol", at=datetime(2026, 8, day, tzinfo=UTC)) for day in (20, 21)]
    assert [price and (str(price.input), price.date) for price in found] == [("5", None), ("4", date(2026, 8, 21))]


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


@pytest.mark.parametrize(
    ("billed", "expected"),
    [
        (Billed(100, 10, cached_input=150), {"cached_input": 100, "output": 80}),
        (Billed(100, 10, cached_input=-5), {"input": 200, "output": 80}),
        (Billed(-100, -10), {}),
        (Billed(100, 10, cached_input=60, cache_write=60), {"cached_input": 60, "cache_write": 120, "output": 80}),
        (Billed(100, 10, cache_write=50, cache_write_1h=90), {"input": 100, "cache_write": 200, "output": 80}),
        (Billed(100, 10, audio_input=500, audio_output=500), {"audio_input": 2000, "audio_output": 300}),
        (Billed(100, 10, reasoning=500), {"input": 200, "reasoning": 80}),
        (Billed(2**63 - 1, 2**63 - 1), {"input": 2 * (2**63 - 1), "output": 8 * (2**63 - 1)}),
    ],
)
def test_counts_that_contradict_each_other_are_billed_once(billed: Billed, expected: dict[str, int]) -> None:
    price = Price(
        model="m", input=2, cached_input=1, cache_write=3, cache_write_1h=4, audio_input=20, output=8, audio_output=30,
        date=date(2026, 1, 1), source="here",
    )  # fmt: skip
    assert {name: amount * 10**6 for name, amount in cost_parts(price, billed).items() if amount} == expected


def test_reasoning_with_a_price_of_its_own_is_billed_once() -> None:
    price = Price(model="m", input=1, output=2, reasoning=8, date=date(2026, 1, 1), source="here")
    parts = cost_parts(price, Billed(10, 100, reasoning=80))
    assert {name: amount * 10**6 for name, amount in parts.items() if amount} == {
        "input": 10, "output": 20 * 2, "reasoning": 80 * 8,
    }  # fmt: skip


def test_a_cost_fits_its_column() -> None:
    tiny = Price(model="m", input="0.0000000000001", output=0, date=date(2026, 1, 1), source="here")
    assert str(cost_parts(tiny, Billed(15, 0))["input"]) == "2E-18", "rounded to the last place"


def test_without_the_default_file_the_prices_of_the_package_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_prices(None).find("gpt-4o") is None, "no costs at all"
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
        ("a: 1", ": expected a list of entries"),
        ("- [", ", line 1, column 4: is not valid YAML"),
        ("- " + "[" * 9999, ": is not valid YAML: it is nested too deeply"),
        ("\xff", ": is not UTF-8 text (byte 0)"),
        (ENTRY + "- {model: x, output: 1, date: 2026-01-01, source: s}", ": entry 2: input: Field required"),
        (ENTRY.replace("input: 2", "input: -2"), ": entry 1: input: Input should be greater than or equal to 0"),
        (ENTRY.replace("input:", "inptu:"), ": entry 1: inptu: Extra inputs are not permitted"),
        ("- 3", ": entry 1: entry: "),
        (ENTRY.replace("input: 2", "input: .inf"), ": entry 1: input: Input should be a finite number"),
        (ENTRY.replace("input: 2", "input: .nan"), ": entry 1: input: Input should be a finite number"),
        (ENTRY.replace("input: 2", "input: 1e400"), ": entry 1: input: Input should be "),
        (ENTRY.replace("input: 2", "input: 1e99999999999999999999"), ": entry 1: input: Input should be "),
        (ENTRY.replace("input: 2", "input: 1:30"), ": entry 1: input: Input should be a valid decimal"),
        (ENTRY.replace("input: 2", "input: x"), ": entry 1: input: Input should be a valid decimal"),
        (ENTRY.replace("input: 2", "input: true"), ": entry 1: input: Decimal input should be"),
        (ENTRY.replace("input: 2", f"input: {'9' * 5000}"), ": is not valid YAML: Exceeds the limit"),
        (ENTRY.replace("input: 2", "input: 2, input: 3"), ", line 1, column 28: is not valid YAML: input is set twice"),
        (ENTRY.replace("2026-01-01", "2026-13-45"), ": entry 1: date: Input should be a valid date"),
    ],
)
def test_a_problem_names_its_file_entry_and_key(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "p.yml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        load_prices(str(path))
    assert any(problem.startswith(f"prices: {path}{expected}") for problem in caught.value.problems), caught.value


def test_a_configured_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"prices: nowhere.yml: cannot be read: No such file or directory"):
        load_prices("nowhere.yml")


def test_the_largest_counts_and_amounts_fit_into_the_column() -> None:
    most, million = 2**63 - 1, Decimal(1_000_000)
    price = Price(
        model="m", input=million, output=million, reasoning=million, citations=million, web_search=million,
        file_search=million, request=million, date=None, source="x",
    )  # fmt: skip
    billed = Billed(most, most, reasoning=most, citations=most, web_searches=most, file_searches=most)
    earlier = [{"input_tokens": 3, "cost_usd": 1.2345678901234567e-05}]
    costs = [{**cost_parts(price, billed), "retries": Decimal(0)}, dict(total([], earlier, priced=True).parts)]
    (column,) = (column for column in columns.CAPTURES if column.name == "cost")
    assert pa.array(costs, column.type).to_pylist() == costs


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (0.0, "0.0000"), (1234.5, "1,234.5000"), (0.00001234, "0.0000123"), (-1.5, "-1.5000"), (math.inf, "inf"),
        (-math.inf, "-inf"), (math.nan, "nan"), (1e308, "1e+308"), (5e-324, "4.94066e-324"),
    ],
)  # fmt: skip
def test_money_shows_any_number(usd: float, shown: str) -> None:
    assert money(usd) == shown
    assert by_model([("a", usd), ("b", None)]) == f"a ${shown}, b no price"


@pytest.mark.parametrize(
    ("usd", "shown"),
    [(0, "0.0000"), (1234.5, "1,234.5000"), (0.01774, "0.0177"), (0.0003, "0.0003"), (0.000012345, "0.0000123")],
)
def test_small_amounts_of_money_have_three_digits(usd: float, shown: str) -> None:
    assert money(usd) == shown
