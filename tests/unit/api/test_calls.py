"""Which tool call each chunk belongs to, and calls in order for APIs that have one open at a time."""

from __future__ import annotations

import pytest

from deltatap.api.calls import Called, pieces_of_calls
from deltatap.api.captured import Event, Part
from deltatap.api.frames import Piece
from deltatap.api.typed import in_order

ONE, TWO = Called("a", "function", "f", '{"x":1}'), Called("b", "function", "g", '{"y":2}')


def shown(made: list[list[Piece]]) -> list[list[tuple[str, int, str]]]:
    return [[(piece.kind, piece.call, piece.text) for piece in its] for its in made]


@pytest.mark.parametrize(
    ("texts", "made"),
    [
        (["f", '{"x"', ":1}", 'g{"y":2}'],
         [[("call", 0, "f")], [("arguments", 0, '{"x"')], [("arguments", 0, ":1}")], [("call", 1, "g"), ("arguments", 1, '{"y":2}')]]),
        (["f", "g", '{"x":1}', '{"y":2}'],
         [[("call", 0, "f")], [("call", 1, "g")], [("arguments", 0, '{"x":1}')], [("arguments", 1, '{"y":2}')]]),
        (["f", "g", '{"y":2}'],
         [[("call", 0, "f")], [("call", 1, "g")], [("arguments", 1, '{"y":2}')]]),
        (["?", "g"],
         [[("call", 0, "f"), ("arguments", 0, '{"x":1}'), ("call", 1, "g"), ("arguments", 1, '{"y":2}')], []]),
    ],
)  # fmt: skip
def test_chunks_are_matched_with_calls_by_their_texts(texts: list[str], made: list[list[tuple[str, int, str]]]) -> None:
    assert shown(pieces_of_calls([ONE, TWO], texts, complete=False)) == made


def test_arguments_that_no_chunk_has_are_added_to_the_last_chunk_of_the_call() -> None:
    made = shown(pieces_of_calls([Called("a", "function", "f", "{}")], ["f"]))
    assert made == [[("call", 0, "f"), ("arguments", 0, "{}")]]
    assert pieces_of_calls([], ["?"]) == [[]]
    assert pieces_of_calls([ONE], []) == []


def test_a_call_is_completed_before_something_else_starts() -> None:
    pieces = [ONE.start(0), TWO.start(1), Piece("arguments", '{"x":1}', 0), Piece("arguments", '{"y":2}', 1)]
    events = [Event(float(at), (Part("tool_calls", 0, "", (piece,)),)) for at, piece in enumerate(pieces)]
    made = in_order([*events, Event(4.0, (Part("content", 0, "", (Piece("content", "Hi"),)),))])
    assert shown([[piece for part in event.parts for piece in part.pieces] for event in made]) == [
        [("call", 0, "f")], [("arguments", 0, '{"x":1}'), ("call", 1, "g")], [], [("arguments", 1, '{"y":2}')],
        [("content", 0, "Hi")],
    ]  # fmt: skip
