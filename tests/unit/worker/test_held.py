"""Captures whose texts are still being checked: in the journal, but not landed while their worker lives."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from deltatap.worker import journal as journaling
from deltatap.worker.held import HeldFiles, promote
from deltatap.worker.journal import JournalWriter, has_output, journaled_rows, write_journal
from tests.unit.worker.test_journal import CONTEXT, batch, capture

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def writer(folder: Path, flush_s: float = 0.01) -> JournalWriter:
    return JournalWriter(folder, "run-1-claim", CONTEXT, plan=1, part=0, flush_s=flush_s)


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".tmp")


def wait_for(folder: Path, *suffixes: str) -> None:
    until = time.monotonic() + 20
    while names(folder) != sorted(suffixes):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_held_capture_is_known_to_a_new_attempt_and_does_not_land(tmp_path: Path) -> None:
    with writer(tmp_path) as journal:
        journal.hold(capture(3))
        wait_for(tmp_path, ".held")
        assert journaled_rows(tmp_path, 1, 0).tolist() == [3]
        assert has_output(tmp_path)
        assert dict(journal.totals.rows) == {}
        journal.put(replace(capture(3), partial_moderation="[]"))
        wait_for(tmp_path, ".parquet")
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_table(path, partitioning=None)["partial_moderation"].to_pylist() == ["[]"]
    assert dict(journal.totals.rows) == {"completed": 1}


def test_after_a_kill_a_held_capture_lands(tmp_path: Path) -> None:
    with writer(tmp_path) as journal:
        journal.hold(capture(3))
        journal.hold(capture(4))
        journal.put(capture(4))
        journal.put(capture(5))
    assert ".held" in names(tmp_path), "row 3 was never put"
    promote(tmp_path)
    assert set(names(tmp_path)) == {".parquet"}
    assert journaled_rows(tmp_path, 1, 0).tolist() == [3, 4, 5]
    promote(tmp_path)


def test_a_held_file_is_written_before_the_flush_interval_ends(tmp_path: Path) -> None:
    with writer(tmp_path, flush_s=30) as journal:
        journal.put(capture(1))
        journal.hold(capture(2))
        wait_for(tmp_path, ".held")
        journal.put(capture(2))
    wait_for(tmp_path, ".parquet")


def test_a_held_file_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = write_journal

    def full(folder: Path, name: str, rows: Any, suffix: str = ".parquet") -> Path:
        if suffix != ".parquet":
            raise OSError(28, "no space left")
        return real(folder, name, rows)

    monkeypatch.setattr(journaling, "write_journal", full)
    with writer(tmp_path) as journal:
        journal.hold(capture(1))
        journal.put(capture(1))
    assert names(tmp_path) == [".parquet"]


def test_a_held_file_stays_until_all_its_rows_are_written(tmp_path: Path) -> None:
    path = write_journal(tmp_path, "x", batch(1, 2), ".held")
    files = HeldFiles()
    files.release([1, 2])
    files.add(path, [1, 2])
    files.release([2, 7])
    assert path.exists()
    files.release([1])
    assert not path.exists()
    files.release([1])
