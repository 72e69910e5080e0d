"""Published prices, from the data of the package genai-prices. Makes no network call.

Knows how to find a model: by the provider of the endpoint's URL or, for a gateway or another unknown URL, by the
model's name. Leaves the arithmetic to ``rates.py``.
"""

from __future__ import annotations

from datetime import UTC
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from deltatap.rates import Price, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date, datetime
    from decimal import Decimal

    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, PriceVariant, Provider

# The names of genai-prices for our rates.
_RATES = {
    "input_mtok": "input", "cache_read_mtok": "cached_input", "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h", "input_audio_mtok": "audio_input", "input_image_mtok": "image_input",
    "output_mtok": "output", "output_reasoning_mtok": "reasoning", "output_audio_mtok": "audio_output",
    "output_image_mtok": "image_output", "output_citation_mtok": "citations", "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search", "requests_kcount": "request",
}  # fmt: skip
# At an unknown URL, the model's name determines the price only if one provider alone serves the model. Anybody can
# serve an open model.
_ONLY_OWN_MODELS = ("openai", "anthropic", "google", "x-ai")
_OPEN_WEIGHTS = "gpt-oss"

# No model has a longer name, and matching takes time.
_LONGEST_NAME = 256


class _Found(NamedTuple):
    provider: Provider
    model: ModelInfo


def warm_up() -> None:
    """Import the prices, which takes half a second, before any request is timed."""
    _snapshot()


def published(model: str, url: str | None, tier: str | None, at: datetime) -> Price | None:
    """The published price of a model at a time; None if there is none.

    Args:
        model: the name that was requested, or that the answer names.
        url: the endpoint's base URL.
        tier: the service tier. A tier without separate prices costs as much as the default tier.
        at: when the call started.
    """
    # Prices change at whole minutes, if at all.
    return _published(model, url, tier, at.astimezone(UTC).replace(second=0, microsecond=0))


@lru_cache(maxsize=4096)
def _published(model: str, url: str | None, tier: str | None, at: datetime) -> Price | None:
    found = _find(model, url)
    if found is None:
        return None
    wanted = dict.fromkeys(("service_tier", "speed", "processing"), tier) if tier else {}
    variants = [
        variant
        for variant in found.model.price_variants or ()
        if all(wanted.get(name) == value for name, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
    ]
    rates = found.model.get_prices(at, wanted or None)
    base, steps = _of(rates)
    if "input" not in base and "output" not in base:
        return None
    return Price.model_validate(
        {
            **_both(base),
            "model": model,
            "service_tier": tier if variants else None,
            "steps": tuple(Step.model_validate({**_both(base | step), "above": above}) for above, step in steps),
            "date": _since([*found.model.prices, *variants] if isinstance(found.model.prices, list) else variants, at),
            "source": f"genai-prices {_version()}, {found.provider.id}: {found.model.id}",
        }
    )


def tiers(model: str, url: str | None) -> tuple[str, ...]:
    """The service tiers with separate prices, without the default tier."""
    found = _find(model, url)
    named = (variant.when for variant in (found.model.price_variants if found else None) or ())
    listed = [when.get("service_tier") or when.get("processing") or when.get("speed") for when in named]
    return tuple(dict.fromkeys(tier for tier in listed if tier not in (None, "default", "fast")))


@lru_cache(maxsize=4096)
def _find(model: str, url: str | None) -> _Found | None:
    if len(model) > _LONGEST_NAME:
        return None
    snapshot, provider = _snapshot(), None if url is None else _provider(url)
    try:
        if provider is not None:
            return _Found(*snapshot.find_provider_model(model, provider, None, None))
        # The provider "litellm" takes the name of the provider from a prefix, such as openai/gpt-4o.
        found = _Found(*snapshot.find_provider_model(model, None, "litellm", None))
    except LookupError:
        return None
    own = found.provider.id in _ONLY_OWN_MODELS or model.lower().startswith(f"{found.provider.id}/")
    return found if own and _OPEN_WEIGHTS not in model.lower() else None


@lru_cache(maxsize=64)
def _provider(url: str) -> Provider | None:
    try:
        return _snapshot().find_provider(None, None, url)
    except LookupError:
        return None


def _of(rates: ModelPrice) -> tuple[dict[str, Decimal], list[tuple[int, dict[str, Decimal]]]]:
    """Our rates, and those of each step: the number of input tokens above which it applies, and its rates."""
    base: dict[str, Decimal] = {}
    steps: dict[int, dict[str, Decimal]] = {}
    for name, value in _listed(rates):
        tiered = getattr(value, "tiers", None)
        base[name] = value if tiered is None else value.base
        for tier in tiered or ():
            steps.setdefault(tier.start, {})[name] = tier.price
    # A rate with fewer steps than the other rates keeps the value of its last step.
    known: dict[str, Decimal] = {}
    return base, [(start, known := known | steps[start]) for start in sorted(steps)]


def _listed(rates: ModelPrice) -> Iterator[tuple[str, Any]]:
    for theirs, ours in _RATES.items():
        value = rates.__dict__.get(theirs)
        if value is not None:
            yield ours, value


def _both(rates: Mapping[str, Decimal]) -> dict[str, Any]:
    """Rates that always have input and output. Some models, such as embeddings, do not bill one of them."""
    return {"input": "0", "output": "0", **rates}


def _since(changes: Sequence[ConditionalPrice | PriceVariant], at: datetime) -> date | None:
    """The day from which a price applies, if it is known."""
    days = [getattr(change.constraint, "start_date", None) for change in changes]
    return max((day for day in days if day is not None and day <= at.date()), default=None)


@cache
def _snapshot() -> DataSnapshot:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - takes half a second

    return get_snapshot()


@cache
def _version() -> str:
    return version("genai-prices")
