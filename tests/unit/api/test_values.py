from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.values import clean, decode, joined, to_json


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
        (b'"\xed\xa0\xbd"', "\ufffd\ufffd\ufffd"),
        (rb'"\ud83d"', "\ud83d"),
        (b"[1e999, -1e999]", [float("inf"), float("-inf")]),
        (b"[" + b"9" * 5000 + b"]", ["9" * 5000]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_json_that_python_can_only_nearly_hold(data: bytes, value: Any) -> None:
    assert decode(data) == value
    json.loads(to_json(decode(data)))


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"{'a': 1}", b"\xff", b"1 2"])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(ValueError, match="line 1"):
        decode(data)


def test_what_cannot_be_encoded_is_replaced() -> None:
    value = {"\ud83d": ["\udc00", 2**70, float("nan"), float("inf"), 1.5, True, None]}
    assert json.loads(to_json(value)) == {"\ufffd": ["\ufffd", str(2**70), None, None, 1.5, True, None]}
    assert "…" in to_json(decode(b"[" * 900 + b"]" * 900))


def test_halves_of_surrogate_pairs() -> None:
    assert (clean("a\ud83d"), clean("é"), joined("\ud83d\ude42"), joined("\ude42\ud83d")) == (
        "a\ufffd",
        "é",
        "🙂",
        "\ufffd\ufffd",
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud83d"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("\udc00"), inner),
)


@settings(deadline=None)
@given(_JSON)
def test_every_value_becomes_valid_json(value: Any) -> None:
    text = to_json(value)
    text.encode()
    json.loads(text, parse_constant=pytest.fail)
