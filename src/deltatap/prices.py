"""Finds the price of a call: in price files, else among the published prices. Also formats amounts.

Leaves the published prices to ``catalog.py`` and the arithmetic to ``rates.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from deltatap import catalog, settings_file, shipped
from deltatap.errors import ConfigError
from deltatap.rates import Price

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_FILE = "conf/prices.yml"
# Maximum number of models in a line of costs.
MODELS = 10
# Amounts in this range are written without an exponent.
_LEAST_USD, _MOST_USD = 1e-18, 1e15
# The names of the default tier. "auto" in an answer names no tier.
_DEFAULT_TIERS = ("default", "standard", "auto", "scale")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in the order of their files, then the published ones. The first that matches a model and a tier applies.

    Attributes:
        entries: of the files.
        url: the endpoint's base URL, which determines the provider.
        published: whether the published prices apply, too.
    """

    entries: tuple[Price, ...] = ()
    url: str | None = None
    published: bool = False

    def find(
        self, asked: str | None, answered: str | None = None, *, tier: str | None = None, at: datetime | None = None
    ) -> Price | None:
        """The price of a call; None if there is none.

        In files, the requested model is looked up first, and a name with a provider's prefix (``openai/``) also without
        the prefix. Among the published prices, the model that answered is looked up first.

        Args:
            asked: the requested model. The name of an Azure deployment or a serving endpoint can have no price.
            answered: the model that answered.
            tier: the service tier that the answer names, or else the requested one.
            at: when the call started; now if not given.
        """
        tier = None if tier in _DEFAULT_TIERS else tier
        names = [name for model in (asked, answered) if model for name in (model, model.rpartition("/")[2])]
        listed = (
            price
            for name in names
            for price in self.entries
            if fnmatchcase(name, price.model) and price.service_tier in (None, tier)
        )
        found = next(listed, None)
        if found is not None or not self.published:
            return found
        when = at or datetime.now(UTC)
        # Routers and deployments may answer with a model other than the requested one. They bill the model that
        # answers.
        models = (model for model in (answered, asked) if model)
        return next((price for model in models if (price := catalog.published(model, self.url, tier, when))), None)

    def tiers(self, model: str | None) -> Iterator[str]:
        """The service tiers of a model that have separate prices."""
        listed = [price.service_tier for price in self.entries if model and fnmatchcase(model, price.model)]
        known = catalog.tiers(model, self.url) if model and self.published else ()
        yield from dict.fromkeys(tier for tier in (*listed, *known) if tier)

    def warm_up(self) -> None:
        """Load the published prices before any request is timed."""
        if self.published:
            catalog.warm_up()


def load_prices(paths: str | Sequence[str] | None, url: str | None = None) -> Prices:
    """Read price files. The first file with a price for a model applies; without one, the published price applies.

    Returns no prices if ``paths`` is None. If the default file does not exist, the one in the package applies.

    Args:
        paths: of the files.
        url: the endpoint's base URL.

    Raises:
        ConfigError: lists every problem with its file, entry and key.
    """
    entries = tuple(price for path in _listed(paths) for price in _load(path))
    return Prices(entries, url, published=paths is not None)


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
        entries = settings_file.parse(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"prices: {path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"prices: {path}: is not UTF-8 text (byte {error.start})"]) from error
    except ValueError as error:
        where = str(error)
        raise ConfigError([f"prices: {path}{', ' if where.startswith('line ') else ': '}{where}"]) from error
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


def exact_usd(expression: str) -> str:
    """SQL that converts USD to a decimal type, so that sums are exact. Sums of DOUBLE are not.

    Null for a value that is not an amount of money, for example infinity.
    """
    return f"try_cast({expression} AS DECIMAL(30, 12))"


def money(usd: float) -> str:
    """An amount with four decimals; a small amount with three digits, without zeros at the end.

    A number that no call costs, such as infinity in a table that deltatap did not write, is shown as it is.
    """
    if not _LEAST_USD <= abs(usd) <= _MOST_USD and usd != 0:
        return f"{usd:g}"
    decimals = 4 if usd == 0 else max(4, 2 - math.floor(math.log10(abs(usd))))
    whole, _, fraction = f"{usd:,.{decimals}f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<4}"


def by_model(costs: Sequence[tuple[str, float | None]]) -> str:
    """The cost of each model as text, the most expensive model first; at most :data:`MODELS` models."""
    ordered = sorted(costs, key=lambda each: (each[1] is None, -(each[1] or 0), each[0]))
    shown = [f"{model} {'no price' if cost is None else '$' + money(cost)}" for model, cost in ordered[:MODELS]]
    return ", ".join(shown) + (f", and {len(ordered) - MODELS:,} more models" if len(ordered) > MODELS else "")
