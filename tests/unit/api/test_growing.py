"""A text while its pieces arrive."""

from __future__ import annotations

from io import StringIO

from hypothesis import given
from hypothesis import strategies as st

from deltatap.api.growing import Text

PIECES = st.lists(st.text(max_size=4) | st.sampled_from(["\ud83d", "\ude00", "😀", "é"]), max_size=8)


@given(before=PIECES, pieces=PIECES, after=PIECES)
def test_a_text_is_what_a_file_of_text_would_hold(before: list[str], pieces: list[str], after: list[str]) -> None:
    text, expected = Text(), StringIO(newline="")
    for piece in before:
        text.write(piece)
        expected.write(piece)
    place = text.place()
    for piece in (*pieces, *after):
        text.write(piece)
        expected.write(piece)
    assert (text.getvalue(), text.tell()) == (expected.getvalue(), expected.tell())
    assert text.since(place, len("".join(pieces))) == "".join(pieces)
