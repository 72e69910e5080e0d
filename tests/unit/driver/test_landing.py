"""Landing without Spark: what happens to the files of a batch that cannot be merged."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from deltatap.driver.landing import Landing
from deltatap.driver.merge import NewRows
from deltatap.files import Files
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
def landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Landing:
    monkeypatch.setattr("deltatap.driver.landing._GIVE_UP_S", 0.0)
    state = RunState(tmp_path / "state" / "run-1")
    state.prepare()
    return Fake(cast("Any", None), "t", state, keep_interrupted=False, new_rows=NewRows(state), doubt_s=0.0)


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


def test_a_drain_lands_the_held_captures_of_a_dead_worker(landing: Landing) -> None:
    write(landing, "a")
    write_journal(landing.state.journal, "b", batch(7), ".held")
    landing.tick()
    assert [path.name for path in landing.state.journal.iterdir()] == ["b.held"]
    landing.drain()
    assert list(landing.state.journal.iterdir()) == []
    assert landing.files == 2


@pytest.fixture
def patient(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> Landing:
    """A landing whose files count as damaged after 15 s. Only waiting moves the clock."""
    now = [0.0]
    monkeypatch.setattr("deltatap.driver.landing._GIVE_UP_S", 120.0)
    monkeypatch.setattr("deltatap.driver.landing.time.monotonic", lambda: now[0])
    monkeypatch.setattr("deltatap.driver.landing.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    landing.doubt_s = 15.0
    return landing


def test_an_incomplete_file_lands_when_it_is_complete(patient: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    write(patient, "a", "b")
    path = patient.state.journal / "b.parquet"
    content, slept = path.read_bytes(), time.sleep
    path.write_bytes(content[: len(content) // 2])

    def sleep(seconds: float) -> None:
        slept(seconds)
        if time.monotonic() >= 10:
            path.write_bytes(content)

    monkeypatch.setattr("deltatap.driver.landing.time.sleep", sleep)
    patient.drain()
    assert (patient.files, patient.set_aside) == (2, [])
    assert patient.state.plan(1).landed_rows(0).tolist() == [0, 1]


def test_a_file_that_stays_incomplete_is_set_aside(patient: Landing) -> None:
    write(patient, "a", "b")
    path = patient.state.journal / "b.parquet"
    path.write_bytes(path.read_bytes()[:50])
    patient.tick()
    assert (patient.files, waiting(patient), patient.set_aside) == (1, ["b"], [])
    patient.drain()
    assert time.monotonic() >= 15
    assert [path.name for path in patient.set_aside] == ["b.parquet"]


def test_a_file_that_spark_cannot_read_for_ten_seconds_is_not_set_aside(patient: Landing) -> None:
    write(patient, "a-unread", "b")
    patient._commit = lambda files, where, *, new: (  # type: ignore[method-assign]
        None if time.monotonic() >= 10 else Fake._commit(cast("Any", patient), files, where, new=new)
    )
    patient.drain()
    assert (patient.files, patient.set_aside) == (2, [])


def test_landing_in_the_background_survives_a_fault_of_two_minutes(
    patient: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(patient, "a")
    monkeypatch.setattr("deltatap.driver.landing._INTERVAL_S", 0.0)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "names", failing)
        for _ in range(120):
            patient.keep()
            time.sleep(1)
        time.sleep(1)
        with pytest.raises(OSError, match="Input/output"):
            patient.keep()
    patient.keep()
    assert patient.files == 1


def test_landed_files_are_kept_until_every_worker_can_see_their_record(
    patient: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(patient, "a")
    monkeypatch.setattr("deltatap.driver.landing._INTERVAL_S", 0.0)
    patient.keep()
    path = patient.state.journal / "a.parquet"
    assert (patient.files, waiting(patient), patient.kept(), path.exists()) == (1, [], 1, True)
    time.sleep(14.9)
    patient.keep()
    assert path.exists()
    time.sleep(0.2)
    patient.keep()
    assert (patient.files, patient.kept(), path.exists()) == (1, 0, False)


def test_a_capture_that_an_old_listing_hides_is_not_deleted(patient: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    write(patient, "a")
    names = Files.names

    def old(files: Files, folder: Path, suffix: str = "") -> list[Path]:
        return [] if folder == patient.state.journal and time.monotonic() < 10 else names(files, folder, suffix)

    monkeypatch.setattr(Files, "names", old)
    patient.finish()
    assert (patient.files, patient.state.journal.exists()) == (1, False)
    assert time.monotonic() >= 10
