"""Conditions of ``deltatap compare --fail-if``."""

from __future__ import annotations

import pytest

from deltatap.analysis.compare import Difference
from deltatap.analysis.conditions import GRAMMAR, Condition, Goal, evaluate, parse, parse_all, reach
from deltatap.errors import ConfigError

TTFT = ("stream", "ttft_ms", "p95")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft_ms.p95>+10%", (None, "ttft_ms", "p95", True, 10.0, True)),
        ("stream.tokens_per_s.p50<-2.5", ("stream", "tokens_per_s", "p50", False, -2.5, False)),
        (" complete.e2e_ms.p50 > +.5 % ", ("complete", "e2e_ms", "p50", True, 0.5, True)),
    ],
)
def test_a_condition_is_parsed(text: str, expected: tuple[object, ...]) -> None:
    assert parse([text]) == [Condition(text.strip(), *expected)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ttft_ms.p95>10%", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("ttft_ms>+10%", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("ttft_ms.p99>+10%", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("ttft_ms.p95=+10%", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("ttft_ms.p95>+10%%", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("ttft_ms.p95>+nan", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        ("", f"expected {GRAMMAR}; or, for compare, a condition on good requests: good<95%"),
        (
            "ttft_ms.p50>+50ms",
            "expected the limit without a unit, or with %, found ms: ttft_ms.p50>+50",
        ),
        ("paired.ttft_ms.p95>+1", "expected mode stream or complete, found paired"),
        ("tftf_ms.p95>+1", "metric tftf_ms does not exist; did you mean ttft_ms?"),
    ],
)
def test_a_condition_that_cannot_be_parsed_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([text, "ttft_ms.p50>+1"])
    assert error.value.problems == (f"--fail-if {text}: {why}",)


def test_every_condition_that_cannot_be_parsed_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        parse(["a", "ttft_ms.p50>+1", "xyz.p50>+1"])
    assert [problem[:16] for problem in error.value.problems] == ["--fail-if a: exp", "--fail-if xyz.p5"]
    assert "xyz does not exist; metrics: headers_ms, " in error.value.problems[1]


@pytest.mark.parametrize(
    ("text", "found", "holds"),
    [
        ("ttft_ms.p95>+10%", Difference(200.0, 221.0, 1.0, 40.0), True),
        ("ttft_ms.p95>+10%", Difference(200.0, 220.0, 1.0, 40.0), False),
        ("ttft_ms.p95>+10%", Difference(200.0, 300.0, -1.0, 200.0), False),
        ("ttft_ms.p95>+10%", Difference(200.0, 100.0, -150.0, -50.0), False),
        ("ttft_ms.p95>+10", Difference(200.0, 211.0, 1.0, 40.0), True),
        ("ttft_ms.p95<-10%", Difference(200.0, 179.0, -40.0, -1.0), True),
        ("ttft_ms.p95<-10%", Difference(200.0, 180.0, -40.0, -1.0), False),
        ("ttft_ms.p95<-10%", Difference(200.0, 100.0, -150.0, 0.5), False),
        ("ttft_ms.p95>-5", Difference(200.0, 198.0, -3.0, -1.0), True),
    ],
    ids=["beyond", "at the limit", "noise", "the other side", "in the unit", "below", "at -10 %", "noise below", "less than 5 gained"],
)  # fmt: skip
def test_a_condition_holds_beyond_its_limit_if_the_interval_excludes_zero(
    text: str, found: Difference, *, holds: bool
) -> None:
    (outcome,) = evaluate(parse([text]), {TTFT: found})
    assert outcome.holds is holds


def test_a_condition_without_a_mode_is_evaluated_for_every_mode() -> None:
    slower, same = Difference(200.0, 300.0, 50.0, 150.0), Difference(200.0, 200.0, -9.0, 9.0)
    differences = {(mode, "e2e_ms", "p50"): found for mode, found in (("stream", slower), ("complete", same))}
    outcomes = evaluate(parse(["e2e_ms.p50>+10%", "complete.e2e_ms.p50>+10%"]), differences)
    assert [(each.mode, each.holds) for each in outcomes] == [
        ("stream", True),
        ("complete", False),
        ("complete", False),
    ]
    assert str(outcomes[0]) == (
        "e2e_ms.p50>+10%: stream e2e_ms p50 went from 200.0 to 300.0 ms: +100.0 ms (+50.0%), "
        "95 % interval +50.0 to +150.0"
    )


def test_a_condition_that_cannot_be_computed_is_named() -> None:
    differences = {
        TTFT: Difference(1.0, 2.0, None, None),
        ("stream", "stall_ms", "p50"): Difference(0.0, 2.0, 1.0, 3.0),
    }
    with pytest.raises(ConfigError) as error:
        evaluate(
            parse(["complete.e2e_ms.p50>+1", "ttft_ms.p95>+1", "stall_ms.p50>+1%", "stall_ms.p50>+1"]), differences
        )
    assert error.value.problems == (
        (
            "--fail-if complete.e2e_ms.p50>+1: expected values of e2e_ms in both runs in mode complete, "
            "found none in at least one of them"
        ),
        "--fail-if ttft_ms.p95>+1: expected at least two values of ttft_ms in each run (stream), found fewer",
        "--fail-if stall_ms.p50>+1%: the first run's value is 0 (stream); expected a limit in ms, not %",
    )


def test_a_limit_in_percent_of_a_negative_value_keeps_its_sign() -> None:
    (condition,) = parse(["ttft_ms.p50>+10%"])
    assert not condition.is_passed_by(Difference(-100.0, -95.0, 1.0, 9.0))
    assert condition.is_passed_by(Difference(-100.0, -85.0, 1.0, 19.0))


def test_a_condition_on_good_requests_is_parsed() -> None:
    conditions, goals = parse_all(["ttft_ms.p50>+1", " good < 99.5 % "])
    assert ([each.metric for each in conditions], goals) == (["ttft_ms"], [Goal("good < 99.5 %", 99.5)])
    for wrong in ("good<95", "good<0%", "good<101%", "good>95%", "good<+5%", "complete.good<5%"):
        with pytest.raises(ConfigError, match=r"good<95%"):
            parse_all([wrong])


@pytest.mark.parametrize(
    ("good", "sent", "holds", "unclear"),
    [
        (90, 100, True, False),  # Wilson: 82.6 % to 94.5 %
        (93, 100, False, True),  # 86.3 % to 96.6 %
        (95, 100, False, False),
        (930, 1000, True, False),
        (0, 1, True, False),  # 0 % to 79.3 %
        (100, 100, False, False),
    ],
)
def test_too_few_good_requests_fail_if_the_interval_is_below_the_limit(
    good: int, sent: int, *, holds: bool, unclear: bool
) -> None:
    (outcome,) = reach([Goal("good<95%", 95.0)], (good, sent), {"ttft_ms": 1.0}, "r")
    assert (outcome.holds, outcome.unclear) == (holds, unclear)


@pytest.mark.parametrize(("bounds", "why"), [({}, "no bound is set"), ({"ttft_ms": 1.0}, "run r sent no request")])
def test_good_requests_without_a_bound_or_a_request_are_an_error(bounds: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=f"--fail-if good<95%: {why}"):
        reach([Goal("good<95%", 95.0)], None, bounds, "r")
    assert reach([], None, bounds, "r") == []
