"""Landing without Spark: what happens to the files of a batch that cannot be merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from deltatap.driver.landing import Landing
from deltatap.driver.merge import NewRows
from deltatap.state import RunState
from deltatap.worker.journal import write_journal
from tests.unit.worker.test_journal import batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

UNREAD = "[FAILED_READ_FILE.NO_HINT] Encountered error while reading file"


class Fake(Landing):
    """Commits nothing. Spark cannot read files with some names, and other files fail for another reason."""

    def _commit(self, files: Sequence[str], where: Any, *, new: bool) -> None:
        del where, new
        for name in files:
            if "unread" in name:
                raise RuntimeError(UNREAD)
            if "conflict" in name:
                raise RuntimeError("ConcurrentAppendException")


@pytest.fixture
def landing(tmp_path: Path) -> Landing:
    state = RunState(tmp_path / "state" / "run-1")
    state.prepare()
    return Fake(cast("Any", None), "t", state, keep_interrupted=False, new_rows=NewRows(state))


def write(landing: Landing, *names: str) -> None:
    for row, name in enumerate(names):
        write_journal(landing.state.journal, name, batch(row))


def waiting(landing: Landing) -> list[str]:
    return [path.stem for path in landing._waiting()]


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_file_that_only_spark_cannot_read_does_not_keep_the_others(landing: Landing, at: int) -> None:
    names = [*"abcdefg"]
    names[at] += "-unread"
    write(landing, *names)
    landing.drain()
    assert [path.stem for path in landing.set_aside] == [names[at]]
    assert (landing.files, waiting(landing)) == (6, [])
    assert landing.state.plan(1).landed_rows(0).tolist() == [row for row in range(7) if row != at]


def test_if_spark_can_read_no_file_none_is_set_aside(landing: Landing) -> None:
    write(landing, "a-unread", "b-unread", "c-unread")
    with pytest.raises(RuntimeError, match="FAILED_READ_FILE"):
        landing.drain()
    assert len(waiting(landing)) == 3
    assert landing.set_aside == []


def test_a_file_that_fails_for_another_reason_is_not_set_aside(landing: Landing) -> None:
    write(landing, "a-unread", "b-conflict", "c", "d")
    with pytest.raises(RuntimeError, match=r"FAILED_READ_FILE|Concurrent"):
        landing.drain()
    assert waiting(landing) == ["a-unread", "b-conflict"]
    assert landing.set_aside == []


def test_a_drain_lands_what_a_dead_worker_held(landing: Landing) -> None:
    write(landing, "a")
    write_journal(landing.state.journal, "b", batch(7), ".held")
    landing.tick()
    assert [path.name for path in landing.state.journal.iterdir()] == ["b.held"]
    landing.drain()
    assert list(landing.state.journal.iterdir()) == []
    assert landing.files == 2
