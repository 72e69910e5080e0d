"""How long workers take to see the driver's files, and the level of this finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.driver.visibility import Marks, Seen, judged, look_for

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("seen", "level", "text"),
    [
        ([Seen("a", 0.0, 0.0)], "ok", "a file is created in 0.012 s and replaced in 0.25 s; seen by 1 tasks after at most 0.0 s"),
        ([Seen("a", 0.1, 5.0), Seen("b", 0.0, 0.2)], "ok", "seen by 2 tasks after at most 5.0 s"),
        ([Seen("a", 0.1, 5.1), Seen("b", 0.0, 0.2)], "warning", "after at most 5.1 s: expected at most 5 s; deltatap relies on at most 15 s"),
        ([Seen("a", 6.0, 0.0)], "warning", "after at most 6.0 s"),
        ([Seen("b", None, 0.1), Seen("a", 0.0, None)], "problem", "a, b: the driver's files are not visible after 30 s"),
    ],
)  # fmt: skip
def test_the_result_of_the_measurement(seen: list[Seen], level: str, text: str) -> None:
    found = judged(seen, 0.0121, 0.25)
    assert found[0] == level
    assert text in found[1]


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    made = Marks.of(tmp_path / "mark")
    made.replaced.write_bytes(b"old")
    return made


@pytest.mark.parametrize(
    ("created_s", "replaced_s", "expected"), [(0, 0, (0, 0)), (2, 7, (2, 7)), (99, 3, (None, 3)), (1, 99, (1, None))]
)
def test_a_task_looks_until_it_sees_both_files(
    marks: Marks, created_s: float, replaced_s: float, expected: tuple[float | None, float | None]
) -> None:
    now = 0.0

    def sleep(_: float) -> None:
        nonlocal now
        now += 1
        happen()

    def happen() -> None:
        if now >= created_s:
            marks.created.write_bytes(b"new")
        if now >= replaced_s:
            marks.replaced.write_bytes(b"new")

    happen()
    seen = look_for(marks, clock=lambda: now, sleep=sleep)
    assert (seen.created_s, seen.replaced_s) == expected
