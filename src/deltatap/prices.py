"""What tokens cost: a file of prices by model pattern, and the sum of a call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deltatap.errors import ConfigError

DEFAULT_FILE = "conf/prices.yml"
_MILLION = 1_000_000
_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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

    def find(self, model: str) -> Price | None:
        """The price of a model, a provider's prefix (``openai/``) left away where only so it is found."""
        names = (model, model.rpartition("/")[2])
        return next((price for name in names for price in self.entries if fnmatchcase(name, price.model)), None)


def load_prices(path: str | None) -> Prices:
    """Read a file of prices; none for None, and where the default file is not there.

    Raises:
        ConfigError: with each mistake, by file, entry and key.
    """
    if path is None or (path == DEFAULT_FILE and not Path(path).exists()):
        return Prices()
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
    return Prices(tuple(prices))


def cost_usd(price: Price, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> float:
    """What a call costs in USD; cached input tokens are a part of the input tokens."""
    cached = price.input if price.cached_input is None else price.cached_input
    fresh = max(0, input_tokens - cached_input_tokens)
    return (fresh * price.input + cached_input_tokens * cached + output_tokens * price.output) / _MILLION
