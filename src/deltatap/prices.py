"""What tokens cost: files of prices by model pattern, and the sum of a call, exact to the last digit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_FILE = "conf/prices.yml"
_MILLION = 1_000_000
# Through its text: 0.15 is 0.15, not the binary fraction next to it.
_Usd = Annotated[Decimal, BeforeValidator(lambda usd: str(usd) if isinstance(usd, float) else usd), Field(ge=0)]


class Price(BaseModel):
    """What a model costs, in USD per million tokens; `model` is a shell pattern such as ``gpt-4o-2024-*``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    input: _Usd
    cached_input: _Usd | None = None
    output: _Usd
    date: date
    source: str


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in the file's order; the first pattern that fits a model counts."""

    entries: tuple[Price, ...] = ()

    def find(self, *models: str | None) -> Price | None:
        """The price of the first of these names that has one.

        Args:
            models: the model asked for, and the one that answered: an Azure deployment or a serving endpoint has a name
                of its owner's. A provider's prefix (``openai/``) is left away where only so a price is found.
        """
        names = [name for model in models if model for name in (model, model.rpartition("/")[2])]
        return next((price for name in names for price in self.entries if fnmatchcase(name, price.model)), None)


def load_prices(paths: str | Sequence[str] | None) -> Prices:
    """Read files of prices, the first that has a model counts; none for None, and where the default file is not there.

    Raises:
        ConfigError: with each mistake, by file, entry and key.
    """
    files = [paths] if isinstance(paths, str) else paths or ()
    found = [_load(path) for path in files if path != DEFAULT_FILE or Path(path).exists()]
    return Prices(tuple(price for prices in found for price in prices))


def _load(path: str) -> list[Price]:
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"prices: {path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"prices: {path}: is no YAML: {' '.join(str(error).split())}"]) from error
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
    """What a call costs in USD, exactly; cached input tokens are a part of the input tokens."""
    cached = price.input if price.cached_input is None else price.cached_input
    fresh = max(0, input_tokens - cached_input_tokens)
    return (fresh * price.input + cached_input_tokens * cached + output_tokens * price.output) / _MILLION


def exact_usd(expression: str) -> str:
    """SQL for USD that add up to the last digit that a token costs, which sums of DOUBLE do not."""
    return f"CAST({expression} AS DECIMAL(30, 12))"
