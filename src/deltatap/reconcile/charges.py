"""Compares two lists of charges: those of captures and those of a bill. Pure: reads no file and no table.

A :class:`Charge` with ids is one call; a charge without ids is the sum of many calls. A value that one side does not
have is None, and is not compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

# The counts of a charge, in the order in which they explain a difference: a different number of tokens explains a
# different amount.
COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
ALL_MODELS = "all models"
_EXAMPLES = 3
_LOGGED_PLACES = 6
# Below this, an amount is the rounding error of a float.
_LEAST_USD = Decimal("0.0000000005")


@dataclass(frozen=True, slots=True)
class Charge:
    """The charge for one call, or for many calls of one model.

    Attributes:
        models: the names of the model, best first; empty if the model is not named.
        requests, input_tokens, cached_tokens, output_tokens: the input includes the cached tokens.
        usd: the amount.
        ids: of the one call.
        at: when it started, or when the period of the charge started.
        run_id: of the run, if the call named it.
        until: when the period of the charge ended.
    """

    models: tuple[str, ...]
    requests: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    usd: Decimal | None = None
    ids: tuple[str, ...] = ()
    at: datetime | None = None
    run_id: str | None = None
    until: datetime | None = None

    @property
    def model(self) -> str:
        """The name to show."""
        return self.models[0] if self.models else ALL_MODELS

    def __add__(self, other: Charge) -> Charge:
        return replace(
            self,
            **{name: _plus(getattr(self, name), getattr(other, name)) for name in COUNTS},
            usd=_plus(self.usd, other.usd),
            ids=(),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between the captures and the bill.

    Attributes:
        model: of the calls.
        reason: as text, such as "other output tokens".
        calls: how many calls differ; None if the bill does not have this number.
        counts: bill minus captures, for those of :data:`COUNTS` that both sides have.
        usd: bill minus captures; None if one of them has no amount.
        ids: of some of the calls.
    """

    model: str
    reason: str
    calls: int | None
    counts: Mapping[str, int]
    usd: Decimal | None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result of a comparison.

    Attributes:
        differences: by model, the largest amounts first.
        billed, captured: the totals of each model on both sides.
    """

    differences: tuple[Difference, ...]
    billed: Mapping[str, Charge]
    captured: Mapping[str, Charge]

    def share(self, model: str) -> Decimal:
        """The share of a model's bill that differs: the largest share among its amount and its counts."""
        ours = [each for each in self.differences if each.model == model]
        shares = [Decimal(0)]
        for name in ("usd", *COUNTS):
            totals = [getattr(side[model], name) or 0 for side in (self.billed, self.captured) if model in side]
            values = [each.usd if name == "usd" else each.counts.get(name) for each in ours]
            differs = sum((abs(Decimal(value)) for value in values if value), Decimal(0))
            if differs:
                shares.append(differs / max(Decimal(max(totals)), differs))
        return max(shares)

    def exceeds(self, tolerance: Decimal) -> list[str]:
        """The models whose difference exceeds this share of their bill."""
        return [
            each for each in dict.fromkeys(found.model for found in self.differences) if self.share(each) > tolerance
        ]


def reconcile(captured: Sequence[Charge], billed: Sequence[Charge]) -> Reconciled:
    """Compare the captures with the bill: call by call if the bill has ids, else model by model."""
    named = {_key(name) for charge in billed for name in charge.models}
    nameless = any(not charge.models and not charge.ids for charge in billed)
    ours = [replace(charge, models=() if nameless else _known(charge.models, named)) for charge in captured]
    theirs = [replace(charge, models=() if nameless else tuple(map(_key, charge.models))) for charge in billed]
    calls, sums = [each for each in theirs if each.ids], [each for each in theirs if not each.ids]
    found: list[Difference] = []
    if calls:
        calls, found = _by_call(ours, calls)
    if sums or not calls:
        found += _by_model(_totals(ours), _totals(sums))
    found.sort(key=lambda each: (each.model, -abs(each.usd or Decimal(0)), each.reason, each.ids))
    return Reconciled(tuple(found), _totals(sums or calls), _totals(ours))


def _by_call(ours: Sequence[Charge], theirs: Sequence[Charge]) -> tuple[list[Charge], list[Difference]]:
    """The bill, with the model names of the captures for known calls; and the differences by model and reason."""
    places = {id_: at for at, charge in enumerate(ours) for id_ in charge.ids}
    matched: dict[int, Charge] = {}
    found: dict[tuple[str, str], list[tuple[Charge | None, Charge | None]]] = defaultdict(list)
    named = []
    for charge in theirs:
        at = next((places[id_] for id_ in charge.ids if id_ in places), None)
        known = charge if at is None else replace(charge, models=ours[at].models)
        named.append(known)
        if at is None:
            found[known.model, "missing in captures"].append((None, known))
        elif at in matched:
            found[known.model, "billed twice"].append((None, known))
        else:
            matched[at] = known
            if (reason := _reason(ours[at], known)) is not None:
                found[known.model, reason].append((ours[at], known))
    for at, charge in enumerate(ours):
        if at not in matched:
            found[charge.model, "missing in the bill"].append((charge, None))
    return named, [_difference(model, reason, pairs) for (model, reason), pairs in found.items()]


def _difference(model: str, reason: str, pairs: Sequence[tuple[Charge | None, Charge | None]]) -> Difference:
    counts: Counter[str] = Counter()
    amounts = []
    for ours, theirs in pairs:
        for name in COUNTS[1:]:
            values = [getattr(side, name) if side is not None else 0 for side in (theirs, ours)]
            if None not in values:
                counts[name] += values[0] - values[1]
        amounts.append(_minus(theirs, ours))
    calls = sum(1 for ours, theirs in pairs if ours is None or theirs is None)
    signed = calls if reason in ("missing in captures", "billed twice") else -calls
    ids = [next(iter((theirs or ours).ids), "") for ours, theirs in pairs if theirs or ours]  # type: ignore[union-attr]
    usd = None if None in amounts else sum((each for each in amounts if each is not None), Decimal(0))
    kept = {name: value for name, value in ({"requests": signed} | dict(counts)).items() if value}
    return Difference(model, reason, len(pairs), kept, usd, tuple(each for each in ids if each)[:_EXAMPLES])


def _by_model(ours: Mapping[str, Charge], theirs: Mapping[str, Charge]) -> Iterator[Difference]:
    for model in ours.keys() | theirs.keys():
        mine, its = ours.get(model), theirs.get(model)
        if mine is None or its is None:
            reason = "missing in captures" if mine is None else "missing in the bill"
        else:
            found = _reason(mine, its)
            if found is None:
                continue
            reason = found
        there, here = its or Charge(()), mine or Charge(())
        absent = mine is None or its is None
        pairs = {name: (getattr(there, name), getattr(here, name)) for name in COUNTS}
        counts = {
            name: (value or 0) - (other or 0)
            for name, (value, other) in pairs.items()
            if absent or (value is not None and other is not None)
        }
        calls = abs(counts.get("requests", 0)) or None
        kept = {name: value for name, value in counts.items() if value}
        yield Difference(model, reason, calls, kept, _minus(its, mine))


def _reason(ours: Charge, theirs: Charge) -> str | None:
    """Why two charges for the same calls differ; None if they do not."""
    for name in COUNTS:
        mine, its = getattr(ours, name), getattr(theirs, name)
        if mine is not None and its is not None and mine != its:
            if name == "requests":
                return "missing in captures" if its > mine else "missing in the bill"
            return f"other {name.replace('_', ' ')}"
    if ours.usd is None and theirs.usd:
        return "no price in captures"
    if ours.usd is None or theirs.usd is None or abs(theirs.usd - ours.usd) <= _rounding(theirs.usd):
        return None
    return "other price"


def _rounding(amount: Decimal) -> Decimal:
    """The maximum rounding error of this amount: a log rounds to six or more places."""
    exponent = amount.as_tuple().exponent
    if not isinstance(exponent, int) or exponent > -_LOGGED_PLACES:
        return _LEAST_USD
    return max(_LEAST_USD, Decimal(5).scaleb(exponent - 1))


def _minus(theirs: Charge | None, ours: Charge | None) -> Decimal | None:
    billed = Decimal(0) if theirs is None else theirs.usd
    here = Decimal(0) if ours is None else ours.usd
    return None if billed is None or here is None else billed - here


def _totals(charges: Iterable[Charge]) -> dict[str, Charge]:
    found: dict[str, Charge] = {}
    for charge in charges:
        found[charge.model] = found[charge.model] + charge if charge.model in found else replace(charge, ids=())
    return found


def _known(models: tuple[str, ...], named: set[str]) -> tuple[str, ...]:
    """The names of a model, with the one that the bill uses first."""
    used = [name for name in models if _key(name) in named]
    return tuple(dict.fromkeys((*map(_key, used), *models)))


def _key(name: str) -> str:
    """A model's name without the prefix of a provider, in lower case."""
    return name.rpartition("/")[2].lower()


def _plus(first: Any, second: Any) -> Any:  # noqa: ANN401 - two counts, or two amounts
    if first is None or second is None:
        return second if first is None else first
    return first + second
