"""Conditions on the comparison of two runs, such as ``ttft_ms.p95>+10%`` or ``good<95%``, for CI.

Parses and evaluates conditions. A condition holds only if a difference is beyond the limit and its bootstrap interval
excludes zero, so that noise does not fail a build. A goal, such as ``good<95%``, is about the second run alone, and has
an interval, too. Reads no table; ``compare.py`` computes the differences.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from deltatap.analysis.metrics import METRICS
from deltatap.errors import ConfigError
from deltatap.model import Mode
from deltatap.prompt_columns import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deltatap.analysis.compare import Difference

GRAMMAR = "[MODE.]METRIC.p50 or .p95, then > or <, then a signed difference, for example ttft_ms.p95>+10%"
_GOAL_GRAMMAR = "or, for compare, a condition on good requests: good<95%"
_GOAL = re.compile(r"\s* good \s* < \s* (?P<limit>\d+(?:\.\d*)?|\.\d+) \s* % \s*", re.VERBOSE | re.ASCII)
_UNIT = re.compile(r"(?P<condition>.*[\d.]) \s* (?P<unit>[A-Za-z][A-Za-z/_ ]*)", re.VERBOSE | re.ASCII)
# The normal quantile of a two-sided 95 % interval.
_Z = 1.959964
_CONDITION = re.compile(
    r"""\s* ((?P<mode>\w+)\.)? (?P<metric>\w+) \. (?P<quantile>p50|p95)
    \s* (?P<side>[<>]) \s* (?P<limit>[+-] (?:\d+(?:\.\d*)?|\.\d+)) \s* (?P<percent>%?) \s*""",
    re.VERBOSE | re.ASCII,
)
_MODES = get_args(Mode)
_UNITS = {metric.name: metric.unit for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit of the difference between two runs, second minus first.

    Attributes:
        text: the condition as the user wrote it.
        mode: None for every mode that both runs have.
        metric: the metric's name.
        quantile: p50 or p95.
        above: whether the condition holds above the limit; otherwise below.
        limit: in the metric's unit, or in percent of the first run's value.
        percent: whether the limit is in percent.
    """

    text: str
    mode: str | None
    metric: str
    quantile: str
    above: bool
    limit: float
    percent: bool

    def is_passed_by(self, found: Difference) -> bool:
        """Whether a difference is beyond the limit."""
        limit = abs(found.first) * self.limit / 100 if self.percent else self.limit
        return found.value > limit if self.above else found.value < limit


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a condition holds for one mode."""

    condition: Condition
    mode: str
    difference: Difference

    @property
    def holds(self) -> bool:
        """Whether the difference is beyond the limit, and its interval excludes zero."""
        return self.condition.is_passed_by(self.difference) and self.difference.clear

    @property
    def unclear(self) -> bool:
        """Whether the difference is beyond the limit, but its interval includes zero."""
        return self.condition.is_passed_by(self.difference) and not self.difference.clear

    def __str__(self) -> str:
        found, unit = self.difference, _UNITS[self.condition.metric]
        share = f" ({found.value / abs(found.first):+.1%})" if found.first else ""
        return (
            f"{self.condition.text}: {self.mode} {self.condition.metric} {self.condition.quantile} went from "
            f"{found.first:,.1f} to {found.second:,.1f} {unit}: {found.value:+,.1f} {unit}{share}, "
            f"95 % interval {found.low:+,.1f} to {found.high:+,.1f}"
        )


@dataclass(frozen=True, slots=True)
class Goal:
    """The smallest share of requests that must be good under ``analysis.slo``, in percent.

    Attributes:
        text: the condition as the user wrote it: ``good<95%``.
        percent: the share.
    """

    text: str
    percent: float


@dataclass(frozen=True, slots=True)
class Reached:
    """How many of the second run's requests were good, and whether they were fewer than the goal.

    Attributes:
        condition: the goal.
        good: how many requests completed within every bound.
        sent: how many were sent.
        mode: None: the goal is about all requests of the run.
    """

    condition: Goal
    good: int
    sent: int
    mode: None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the share, in percent."""
        n, share, z2 = self.sent, self.good / self.sent, _Z**2
        middle, half = share + z2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
        return 100 * (middle - half) / (1 + z2 / n), 100 * (middle + half) / (1 + z2 / n)

    @property
    def holds(self) -> bool:
        """Whether the share is below the limit, and its interval, too."""
        return self.interval[1] < self.condition.percent

    @property
    def unclear(self) -> bool:
        """Whether the share is below the limit, but its interval reaches it."""
        return 100 * self.good < self.condition.percent * self.sent and not self.holds

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.condition.text}: {self.good:,} of {self.sent:,} requests good ({self.good / self.sent:.1%}), "
            f"95 % interval {low:.1f}% to {high:.1f}%"
        )


def parse_all(texts: Iterable[str]) -> tuple[list[Condition], list[Goal]]:
    """Parse conditions and goals.

    Raises:
        ConfigError: with every text that cannot be parsed.
    """
    goals, others = [], []
    for text in texts:
        found = _GOAL.fullmatch(text)
        if found is not None and 0 < float(found["limit"]) <= 100:  # noqa: PLR2004 - percent
            goals.append(Goal(text.strip(), float(found["limit"])))
        else:
            others.append(text)
    return parse(others), goals


def parse(texts: Iterable[str]) -> list[Condition]:
    """Parse conditions.

    Raises:
        ConfigError: with every condition that cannot be parsed.
    """
    made, problems = [], []
    for text in texts:
        try:
            made.append(_parsed(text))
        except ValueError as error:
            problems.append(f"--fail-if {text}: {error}")
    if problems:
        raise ConfigError(problems)
    return made


def _parsed(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None:
        if (unit := _UNIT.fullmatch(text.strip())) and _CONDITION.fullmatch(unit["condition"]):
            raise ValueError(f"expected the limit without a unit, or with %, found {unit['unit']}: {unit['condition']}")
        raise ValueError(f"expected {GRAMMAR}; {_GOAL_GRAMMAR}")
    mode, metric = found["mode"], found["metric"]
    if mode not in (None, *_MODES):
        raise ValueError(f"expected mode {' or '.join(_MODES)}, found {mode}")
    if metric not in _UNITS:
        raise ValueError(f"metric {metric} does not exist{did_you_mean_metric(metric)}")
    return Condition(
        text.strip(),
        mode,
        metric,
        found["quantile"],
        found["side"] == ">",
        float(found["limit"]),
        bool(found["percent"]),
    )


def evaluate(conditions: Iterable[Condition], differences: Mapping[tuple[str, str, str], Difference]) -> list[Outcome]:
    """Evaluate conditions: an outcome for each condition and mode.

    Args:
        conditions: to evaluate.
        differences: by (mode, metric, quantile).

    Raises:
        ConfigError: with every condition that cannot be computed.
    """
    outcomes: list[Outcome] = []
    problems: list[str] = []
    for condition in conditions:
        modes = [condition.mode] if condition.mode else _MODES
        found = [
            Outcome(condition, mode, differences[key])
            for mode in modes
            if (key := (mode, condition.metric, condition.quantile)) in differences
        ]
        outcomes += found
        problems += [f"--fail-if {condition.text}: {why}" for why in _why_not(condition, found)]
    if problems:
        raise ConfigError(problems)
    return outcomes


def reach(goals: Iterable[Goal], good: tuple[int, int] | None, bounds: Mapping[str, float], run: str) -> list[Reached]:
    """Evaluate goals.

    Args:
        goals: to evaluate.
        good: how many of the run's requests were good, and how many were sent; None if none was sent.
        bounds: of ``analysis.slo``.
        run: its name.

    Raises:
        ConfigError: no bound is set, or the run sent no request.
    """
    wanted = list(goals)
    if not bounds:
        why = "no bound is set that a good request keeps: set one, for example --set analysis.slo.ttft_ms=500"
    elif good is None:
        why = f"run {run} sent no request"
    else:
        return [Reached(goal, *good) for goal in wanted]
    if wanted:
        raise ConfigError([f"--fail-if {goal.text}: {why}" for goal in wanted])
    return []


def _why_not(condition: Condition, found: Iterable[Outcome]) -> Iterator[str]:
    """Why a condition cannot be computed."""
    found = list(found)
    if not found:
        mode = f" in mode {condition.mode}" if condition.mode else ""
        yield f"expected values of {condition.metric} in both runs{mode}, found none in at least one of them"
    for outcome in found:
        if outcome.difference.low is None:
            yield f"expected at least two values of {condition.metric} in each run ({outcome.mode}), found fewer"
        elif condition.percent and not outcome.difference.first:
            yield f"the first run's value is 0 ({outcome.mode}); expected a limit in {_UNITS[condition.metric]}, not %"


def did_you_mean_metric(name: str) -> str:
    """The end of a message about an unknown metric: the one that the user may have meant, or all of them."""
    labels = {each.label.lower(): each.name for each in METRICS}  # TTFB is headers_ms
    meant = labels.get(name.lower().removesuffix("_ms"))
    near = [meant] if meant else difflib.get_close_matches(name, _UNITS, 1)
    return did_you_mean(*near) or f"; metrics: {', '.join(_UNITS)}"
