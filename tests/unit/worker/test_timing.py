from __future__ import annotations

import numpy as np
import pytest

from deltatap.model import KINDS, Chunks
from deltatap.worker.timing import Times, itl_ms, tpot_ms


def chunks(*elements: tuple[str, float]) -> Chunks:
    made = Chunks()
    for at, (kind, ms) in enumerate(elements):
        made.append(ms, 0.0, "x", KINDS.index(kind), 0, at, at)
    return made


def test_the_times_of_a_stream_with_reasoning() -> None:
    times = Times.of(
        chunks(("role", 50), ("reasoning", 100), ("reasoning", 150), ("content", 300), ("content", 340), ("finish", 341), ("usage", 342))
    )  # fmt: skip
    assert times == Times(first_chunk_ms=50, ttft_ms=100, ttfot_ms=300, last_chunk_ms=340)


def test_a_stream_without_output_has_only_a_first_chunk() -> None:
    assert Times.of(chunks(("role", 50), ("finish", 60))) == Times(first_chunk_ms=50)
    assert Times.of(Chunks()) == Times()


@pytest.mark.parametrize(
    ("ttft", "last", "tokens", "expected"),
    [
        (100.0, 340.0, 5, 60.0),
        (100.0, 340.0, 2, 240.0),
        (100.0, 100.0, 1, None),
        (100.0, 340.0, None, None),
        (None, None, 5, None),
    ],
)
def test_time_per_output_token(
    ttft: float | None, last: float | None, tokens: int | None, expected: float | None
) -> None:
    assert tpot_ms(ttft, last, tokens) == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        # kind, ms, socket read, tokens
        pytest.param([("content", 100, 0, 1), ("content", 130, 1, 2), ("content", 160, 2, 3)], 60 / 5, id="by hand"),
        pytest.param([("content", 100, 0, 4), ("content", 130, 1, 1)], 30.0, id="the first chunk took no time"),
        pytest.param(
            [("content", 100, 0, 1), ("content", 100, 0, 2), ("content", 160, 1, 3), ("content", 160, 1, 1)],
            60 / 4,
            id="chunks of one read: those of the first do not count, those of the last do",
        ),
        pytest.param(
            [("role", 90, 0, 0), ("reasoning", 100, 1, 1), ("content", 150, 2, 4), ("finish", 400, 3, 0)],
            50 / 4,
            id="reasoning counts, what is not output does not",
        ),
        pytest.param([("content", 100, 0, 1), ("content", 130, 1, 0)], None, id="no token after the first read"),
        pytest.param([("content", 100, 0, 2), ("content", 100, 0, 2)], None, id="one read"),
        pytest.param([("content", 100, 0, 9)], None, id="one chunk"),
        pytest.param([("role", 90, 0, 0), ("finish", 100, 1, 0)], None, id="no output"),
        pytest.param([], None, id="a whole answer"),
    ],
)
def test_time_per_token(elements: list[tuple[str, float, int, int]], expected: float | None) -> None:
    made = Chunks()
    for at, (kind, ms, read, _) in enumerate(elements):
        made.append(ms, 0.0, "x", KINDS.index(kind), 0, at, read)
    tokens = np.array([tokens for *_, tokens in elements], np.int32)
    assert itl_ms(made, tokens, Times.of(made)) == expected
