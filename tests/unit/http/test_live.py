"""The end of a growing text, without secrets: complete, incomplete and cut secrets."""

from __future__ import annotations

import json

import pytest

from deltatap.api.registry import specification
from deltatap.http.live import open_stream
from deltatap.http.reading import Reading
from deltatap.http.redact import shown_end

KEY = "sk-live-0123456789"


def reading(*pieces: str, field: str = "content") -> Reading:
    api = specification("chat")
    accumulator = api.accumulator(1)
    for number, piece in enumerate(pieces):
        chunk = {"choices": [{"index": 0, "delta": {field: piece}, "finish_reason": None}]}
        accumulator.add(json.dumps(chunk).encode(), float(number), number)
    return Reading(api, accumulator, "r")


def shown(*pieces: str, field: str = "content") -> tuple[int, str]:
    stream = open_stream(reading(*pieces, field=field), "m", "stream", 0.0, {KEY})
    return stream.chars, stream.text


def test_an_open_stream_without_text() -> None:
    assert shown() == (0, "")


def test_the_end_of_a_long_text() -> None:
    chars, text = shown(*(f"{number:05d} " for number in range(2000)))
    assert (chars, len(text), text[-12:]) == (12_000, 400, "01998 01999 ")


def test_characters_of_several_bytes() -> None:
    chars, text = shown("日本🙂" * 1000)
    assert (chars, text) == (3000, ("日本🙂" * 1000)[-400:])


@pytest.mark.parametrize("field", ["reasoning_content", "refusal"])
def test_other_output_is_shown_while_there_is_no_text(field: str) -> None:
    assert shown("thinking", field=field) == (8, "thinking")


def test_a_secret_is_never_shown_however_far_it_has_arrived() -> None:
    text = f"before {KEY} after" + " more" * 200
    for size in range(len(text) + 1):
        _, found = shown(text[:size])
        assert "sk-liv" not in found
        assert KEY[4:] not in found
    assert shown(text[:30])[1].startswith("before ***")


def test_a_secret_is_cut_at_the_start_of_what_is_shown() -> None:
    for more in range(380, 900):
        _, found = shown(KEY + "." * more)
        assert set(found) <= {".", "*"}


def test_an_escaped_secret() -> None:
    escaped = "".join(f"\\u{ord(char):04x}" for char in KEY)
    for size in range(len(escaped) + 1):
        found = shown_end("x" + escaped[:size], {KEY}, 400, whole=True)
        assert len(found) < 6 * 6 + 2
    assert shown_end(f"x{escaped}y", {KEY}, 400, whole=True) == "x***y"


def test_short_values_are_not_secrets() -> None:
    assert shown_end("EMPTY none", {"EMPTY", "none"}, 400, whole=True) == "EMPTY none"
