"""Templates: how they are written, and how a row fills them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from deltatap.api.prompt import BadPromptError
from deltatap.template import Template


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("", [], ""),
        ("no column", [], "no column"),
        ("{a}", ["x"], "x"),
        ("{a}{b}", ["x", "y"], "xy"),
        ("Say {a}: {b}!", ["{b}", "x"], "Say {b}: x!"),
        ("{{{a}}}", ["x"], "{x}"),
        ("{{a}} }}{{", [], "{a} }{"),
        ("{ my col }{größe}{a.b}{a`b}{a:b!r}", ["1", "2", "3", "4", "5"], "12345"),
        ("{a} {b} {c}", [1, Decimal("0.50"), True], "1 0.5 true"),
        ("{a} {b}", [{"k": None, "l": [1]}, b"x"], '{"l": [1]} eA=='),
        ("{a}", [""], ""),
    ],
)
def test_a_row_fills_a_template(template: str, values: list[Any], expected: str) -> None:
    parsed = Template.parse("prompts.template", template)
    assert len(parsed.columns) == len(values)
    assert parsed.render(values) == expected


def test_the_names_are_those_in_the_braces() -> None:
    assert Template.parse("t", "{ a } {b c} {a}").columns == ("a", "b c", "a")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{a", "t: unmatched brace at character 1; for a literal brace, write {{"),
        ("x}", "t: unmatched brace at character 2; for a literal brace, write }}"),
        ("{a{b}", "t: unmatched brace at character 1"),
        ("{{a}", "t: unmatched brace at character 4"),
        ("x {}", "t: expected a column name in the braces at character 3"),
        ("{ }", "t: expected a column name in the braces at character 1"),
    ],
)
def test_a_wrong_template_says_where(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match="t: ") as error:
        Template.parse("t", template)
    assert str(error.value).startswith(problem)


def test_a_null_makes_a_bad_row() -> None:
    with pytest.raises(BadPromptError, match=r"^t: column b is NULL$"):
        Template.parse("t", "{a} {b}").render(["x", None])
