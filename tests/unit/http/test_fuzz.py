"""A short run of tests/fuzz: arbitrary answers become one correct row each, and harm no stream beside them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutated, seeds
from tests.fuzz.running import Input, run
from tests.fuzz.search import read, write

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = seeds()
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=SLOW)
@given(st.randoms(use_true_random=False))
def test_any_mutation_becomes_one_row(chosen: random.Random) -> None:
    answer = mutated(chosen, KNOWN)
    assert run([answer], beside=1) == [None], answer


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=SLOW)
@given(head=st.binary(max_size=60), body=st.binary(max_size=200), cuts=st.lists(st.integers(1, 250), max_size=9))
def test_any_bytes_become_one_row(head: bytes, body: bytes, cuts: list[int]) -> None:
    answers = [
        Input("chat", "stream", head + body, tuple(cuts)),
        Input("chat", "stream", b"HTTP/1.1 200 OK\r\n\r\n" + body, tuple(cuts)),
        Input("responses", "complete", b"HTTP/1.1 500 Oh\r\n" + head + b"\r\n\r\n" + body, tuple(cuts), reset=True),
    ]
    assert run(answers, beside=1) == [None] * 3


def test_many_answers_harm_no_stream_beside_them() -> None:
    chosen = random.Random(15)  # noqa: S311
    answers = [mutated(chosen, KNOWN) for _ in range(300)]
    assert [failure for failure in run(answers) if failure] == []


def test_a_failing_answer_can_be_replayed(tmp_path: Path) -> None:
    answer = Input("chat", "stream", b"HTTP/1.1 200 OK\r\n\r\n\xff", (3, 9), reset=True)
    assert read(write(answer, tmp_path)) == answer
