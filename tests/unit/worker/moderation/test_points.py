"""Where texts are checked: at regular intervals of characters, for any division into chunks and reads."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deltatap.model import CONTENT, FINISH, REASONING, ROLE, TOOL_CALLS, Choice, Chunks
from deltatap.patterns import find
from deltatap.worker.moderation.points import _MOST, _REACH, Check, Points

WORD = "verboten🙂"


def add(chunks: Chunks, text: str, choice: int = 0, kind: int = CONTENT) -> None:
    chunks.append(float(len(chunks)), 0.0, text, kind, choice, len(chunks), len(chunks))


def ends(checks: list[Check]) -> list[tuple[int, int, int | None]]:
    return [(check.choice, check.chars, check.chunk) for check in checks]


def test_a_check_follows_the_one_before_it_after_so_many_characters() -> None:
    chunks, points, found = Chunks(), Points(5), []
    for text in ("ab", "cd", "ef", "ghij", "k", "lmnopqrstuvw", "x"):
        add(chunks, text)
        found += points.take(chunks)
    assert ends(found) == [(0, 6, 2), (0, 11, 4), (0, 23, 5)]
    assert [points.text(check) for check in found] == ["abcdef", "abcdefghijk", "abcdefghijklmnopqrstuvw"]
    (last,) = points.end(again=False)
    assert (last.chars, last.chunk, last.last) == (24, 6, True)
    assert points.seen(0) == 24
    assert points.end(again=False) == []


def test_only_content_is_checked() -> None:
    chunks, points = Chunks(), Points(3)
    add(chunks, "assistant", kind=ROLE)
    add(chunks, "thinking", kind=REASONING)
    add(chunks, '{"a": 1}', kind=TOOL_CALLS)
    add(chunks, "abcd")
    add(chunks, "stop", kind=FINISH)
    assert ends(points.take(chunks)) == [(0, 4, 3)]
    assert points.end(again=False) == []


def test_each_choice_has_its_own_text() -> None:
    chunks, points = Chunks(), Points(4)
    for text, choice in (("ab", 0), ("xy", 1), ("cd", 0), ("z", 1), ("e", 0), ("zz", 1)):
        add(chunks, text, choice)
    found = points.take(chunks)
    assert ends(found) == [(0, 4, 2), (1, 5, 5)]
    assert [points.text(check) for check in found] == ["abcd", "xyzzz"]
    assert ends(points.end(again=False)) == [(0, 5, 4)]


def test_a_text_that_ends_at_its_last_point_is_checked_again_only_if_asked() -> None:
    chunks, points = Chunks(), Points(2)
    add(chunks, "ab")
    assert len(points.take(chunks)) == 1
    assert points.end(again=False) == []
    assert ends(points.end(again=True)) == [(0, 2, 0)]


def test_an_answer_without_chunks_is_checked_at_its_end() -> None:
    points = Points(2, streams=False)
    points.whole([Choice(0, "abcdé"), Choice(1, ""), Choice(2, "x")])
    assert ends(points.end(again=False)) == [(0, 5, None), (2, 1, None)]


def test_an_answer_without_text_has_no_checks() -> None:
    assert Points(2).end(again=True) == []
    assert Points(2).take(Chunks()) == []


def test_very_long_texts_are_checked_in_bounded_parts() -> None:
    chunks, points = Chunks(), Points(1)
    add(chunks, "é" * _MOST)
    points.take(chunks)
    add(chunks, "end")
    (check,) = points.take(chunks)
    window = points.window(check)
    assert not window.first
    assert len(window.text) <= _REACH // 2 + 3
    assert window.text.endswith("éend")
    assert len(points.text(check).encode()) <= _MOST


TEXTS = st.text(st.sampled_from("abc é🙂\n"), max_size=60)


@given(
    before=TEXTS, after=TEXTS, cuts=st.sets(st.integers(0, 140)), every=st.integers(1, 30), together=st.integers(1, 9)
)
def test_a_planted_word_is_found_at_the_right_chunk_for_any_cut(
    before: str, after: str, cuts: set[int], every: int, together: int
) -> None:
    """`together` chunks arrive in one read of the socket; it makes no difference."""
    text = before + WORD + after
    pieces = [text[a:b] for a, b in pairwise([0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)])]
    chunks, points, found = Chunks(), Points(every), []
    for at, piece in enumerate(pieces):
        add(chunks, piece)
        if at % together == together - 1 and len(chunks.utf8) >= points.due:
            found += points.take(chunks)
    found += points.take(chunks)
    found += points.end(again=True)

    # Straightforward: walk through the chunks, and check the whole text so far.
    expected, length, checked = None, 0, 0
    for at, piece in enumerate(pieces):
        length += len(piece)
        if length - checked >= every or at == len(pieces) - 1:
            checked = length
            if expected is None and WORD in text[:length]:
                expected = (0, length, at)

    by_text = [check for check in found if WORD in points.text(check)]
    by_pattern = [
        check for check, hit in zip(found, find([points.window(c) for c in found], [WORD]), strict=True) if hit
    ]
    assert ends(by_text)[0] == ends(by_pattern)[0] == expected
    assert found[-1].chars == len(text)
