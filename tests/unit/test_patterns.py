"""Patterns: which ones are valid, and which of them a window of a text contains."""

from __future__ import annotations

import time

import pytest

from deltatap.patterns import Window, expected, find


def whole(text: str) -> Window:
    return Window(text, first=True, last=True)


def begin(text: str) -> Window:
    """The start of a text that continues."""
    return Window(text, first=True, last=False)


@pytest.mark.parametrize("pattern", ["bomb", r"(?i)\bass\b", r"^Sure", r"\p{Greek}+x", "(?s)a.*b", "🙂", r"(?P<n>x)y"])
def test_valid_patterns(pattern: str) -> None:
    assert expected(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "missing )"),
        ("(?=x)y", "no lookaround"),
        (r"(a)\1", "no backreferences"),
        ("a**", "bad repetition"),
        ("\ud800", "surrogates"),
        ("a)(b", "unexpected )"),
        ("", "does not match an empty text"),
        ("a*", "does not match an empty text"),
        ("x|", "does not match an empty text"),
    ],
)
def test_invalid_patterns_are_explained(pattern: str, why: str) -> None:
    found = expected(pattern)
    assert found is not None
    assert why in found


@pytest.mark.parametrize(
    ("window", "pattern", "found"),
    [
        (whole("a bomb"), "bomb", True),
        (begin("a bomb"), "bomb", True),
        (begin("a bom"), "bomb", False),
        (begin("an ass"), r"\bass\b", False),  # assignment
        (begin("an ass "), r"\bass\b", True),
        (whole("an ass"), r"\bass\b", True),
        (begin("the end"), "end$", False),
        (whole("the end"), "end$", True),
        (begin("one\n"), r"(?m)one$", True),
        (begin("bom"), "bombs?", False),
        (begin("bomb"), "bombs?", True),
        (whole("Straße 🙂"), "🙂", True),
        (whole("BOMB"), "(?i)bomb", True),
        (whole(""), "x", False),
        (Window("xSure", first=False, last=False), "^Sure", False),
        (Window("x\nSure thing", first=False, last=False), "(?m)^Sure", True),
        (Window("xbomb!", first=False, last=False), r"\bbomb", False),
        (Window(" bomb!", first=False, last=False), r"\bbomb", True),
        (Window("bomb!", first=False, last=False), "omb", True),
    ],
)
def test_a_match_that_more_text_could_undo_does_not_count(window: Window, pattern: str, found: object) -> None:
    assert find([window], [pattern]) == [(pattern,) if found else ()]


def test_each_window_has_its_own_patterns_in_their_order() -> None:
    windows = [whole("one two"), Window("x two", first=False, last=True), whole("nothing"), begin("two one ")]
    assert find(windows, ["two", "one", "(?i)TWO"]) == [
        ("two", "one", "(?i)TWO"), ("two", "(?i)TWO"), (), ("two", "one", "(?i)TWO"),
    ]  # fmt: skip
    assert find([], ["x"]) == []


@pytest.mark.parametrize(
    "patterns",
    [
        ["(?P<same>one)", "(?P<same>two)"],  # together they have one name twice
        [f"word{n:05d}[a-z]{{200}}|two" for n in range(300)],  # together they are too large
    ],
)
def test_patterns_that_cannot_be_joined_are_searched_one_by_one(patterns: list[str]) -> None:
    assert patterns[1] in find([whole("two")], patterns)[0]


@pytest.mark.parametrize("pattern", [r"(a+)+$x", r"(a*)*b", r"(a|aa)+c", r"(.*)*1(.*)*2"])
def test_a_pattern_that_backtracks_elsewhere_takes_linear_time(pattern: str) -> None:
    started = time.perf_counter()
    find([begin("a" * 100_000)], [pattern])
    assert time.perf_counter() - started < 1
