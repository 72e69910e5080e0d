"""Conditions of ``deltatap compare --fail-if``."""

from __future__ import annotations

import pytest

from deltatap.analysis.compare import Difference
from deltatap.analysis.conditions import GRAMMAR, Condition, evaluate, parse
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
        ("ttft_ms.p95>10%", f"expected {GRAMMAR}"),
        ("ttft_ms>+10%", f"expected {GRAMMAR}"),
        ("ttft_ms.p99>+10%", f"expected {GRAMMAR}"),
        ("ttft_ms.p95=+10%", f"expected {GRAMMAR}"),
        ("ttft_ms.p95>+10%%", f"expected {GRAMMAR}"),
        ("ttft_ms.p95>+nan", f"expected {GRAMMAR}"),
        ("", f"expected {GRAMMAR}"),
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
