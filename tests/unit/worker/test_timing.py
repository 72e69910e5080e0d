from __future__ import annotations

import pytest

from deltatap.model import KINDS, Chunks
from deltatap.worker.timing import Times, tpot_ms


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
