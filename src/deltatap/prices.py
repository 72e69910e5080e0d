"""Prices of tokens: price files with a pattern for each model, the exact cost of a call, and how amounts are shown.

Costs are ``Decimal``, so that they add up exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deltatap import shipped
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_FILE = "conf/prices.yml"
_MILLION = 1_000_000
# Models in a line of costs.
MODELS = 10
# A float is converted through its text, so that 0.15 is exactly 0.15.
_Usd = Annotated[Decimal, BeforeValidator(lambda usd: str(usd) if isinstance(usd, float) else usd), Field(ge=0)]


class Price(BaseModel):
    """The price of a model in USD per million tokens. ``model`` is a shell pattern such as ``gpt-4o-2024-*``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    input: _Usd
    cached_input: _Usd | None = None
    output: _Usd
    date: date
    source: str


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in the order of their files. The first pattern that matches a model applies."""

    entries: tuple[Price, ...] = ()

    def find(self, *models: str | None) -> Price | None:
        """The price of the first of these models that has one.

        Args:
            models: the requested model and the model that answered. A requested name that is the name of an Azure
                deployment or a serving endpoint has no price. If a name with a provider's prefix (``openai/``) has no
                price, the name without the prefix is looked up.
        """
        names = [name for model in models if model for name in (model, model.rpartition("/")[2])]
        return next((price for name in names for price in self.entries if fnmatchcase(name, price.model)), None)


def load_prices(paths: str | Sequence[str] | None) -> Prices:
    """Read price files. The first file with a price for a model applies.

    Returns no prices if ``paths`` is None. If the default file does not exist, deltatap's own prices apply.

    Raises:
        ConfigError: lists every problem with its file, entry and key.
    """
    return Prices(tuple(price for path in _listed(paths) for price in _load(path)))


def named(paths: str | Sequence[str] | None) -> str:
    """The price files, for messages."""
    return ", ".join("deltatap's own prices" if _is_shipped(path) else path for path in _listed(paths))


def _listed(paths: str | Sequence[str] | None) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths or ()


def _is_shipped(path: str) -> bool:
    return path == DEFAULT_FILE and not Path(path).exists()


def _load(path: str) -> list[Price]:
    file = shipped.path(path) if _is_shipped(path) else Path(path)
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"prices: {path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"prices: {path}: is not valid YAML: {' '.join(str(error).split())}"]) from error
    if entries is None:  # only comments
        return []
    if not isinstance(entries, list):
        raise ConfigError([f"prices: {path}: expected a list of entries with model, input and output"])
    prices, problems = [], []
    for number, entry in enumerate(entries, 1):
        try:
            prices.append(Price.model_validate(entry))
        except ValidationError as error:
            for found in error.errors(include_url=False):
                where = ".".join(str(part) for part in found["loc"]) or "entry"
                problems.append(f"prices: {path}: entry {number}: {where}: {found['msg']}")
    if problems:
        raise ConfigError(problems)
    return prices


def cost_usd(price: Price, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Decimal:
    """The exact cost of a call in USD. The input tokens include the cached ones."""
    cached = price.input if price.cached_input is None else price.cached_input
    uncached = max(0, input_tokens - cached_input_tokens)
    return (uncached * price.input + cached_input_tokens * cached + output_tokens * price.output) / _MILLION


def exact_usd(expression: str) -> str:
    """SQL that converts USD to a decimal type, so that sums are exact. Sums of DOUBLE are not.

    Null for a value that is not an amount of money, such as infinity.
    """
    return f"try_cast({expression} AS DECIMAL(30, 12))"


def money(usd: float) -> str:
    """An amount with four decimals; a small amount with three digits, without zeros at the end."""
    decimals = 4 if usd == 0 else max(4, 2 - math.floor(math.log10(abs(usd))))
    whole, _, fraction = f"{usd:,.{decimals}f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<4}"


def by_model(costs: Sequence[tuple[str, float | None]]) -> str:
    """The cost of each model in words, the most expensive model first; of many models, the first :data:`MODELS`."""
    ordered = sorted(costs, key=lambda each: (each[1] is None, -(each[1] or 0), each[0]))
    shown = [f"{model} {'no price' if cost is None else '$' + money(cost)}" for model, cost in ordered[:MODELS]]
    return ", ".join(shown) + (f", and {len(ordered) - MODELS:,} more models" if len(ordered) > MODELS else "")
