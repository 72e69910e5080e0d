from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.model import Call, Capture, CaptureError, Choice, Chunks, Job, Received, Request, Usage, Wire
from deltatap.prices import Prices
from deltatap.worker import journal as journaling
from deltatap.worker.journal import JournalWriter, Totals, journaled_rows, readable, write_journal
from deltatap.worker.rows import Context, counted, journal_batch

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = Context("run-1", "sim", "chat", "host/3", "o200k_base", Prices())
DOWN = CaptureError("server", None, "x", 500)


def call(error: CaptureError | None = None, ttft_ms: float = 100.0) -> Call:
    chunks = Chunks()
    if error is None:
        chunks.append(ttft_ms, float("nan"), "Hi", 1, 0, 0, 0)
    usage = None if error else Usage(10, 5)
    received = Received(chunks, () if error else (Choice(0, "Hi"),), usage, output=error is None)
    return Call(0, 0, 0, 0, 0, 0, None, received, "failed" if error else "completed", error, 200)


def capture(row: int, *calls: Call) -> Capture:
    request = Request(f"r{row}", "h", "m", "{}", None, None)
    wire = Wire('{"model":"m","messages":[]}', "m", "stream", 1)
    return Capture(Job(request, wire, "stream", row, [], 0.0, calls=list(calls or [call()])))


def batch(*rows: int, plan: int = 1, part: int = 0) -> pa.RecordBatch:
    return journal_batch([counted(capture(row), CONTEXT) for row in rows], CONTEXT, plan=plan, part=part)


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def observed(descriptor: int) -> None:
        assert not list(tmp_path.glob("*.parquet"))
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", observed)
    path = write_journal(tmp_path, "x", batch(1, 2))
    assert synced == [(path.stat().st_ino, path.stat().st_size)], "the whole file was synced"
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


def test_the_rows_of_a_part(tmp_path: Path) -> None:
    write_journal(tmp_path, "a", batch(5, 3))
    write_journal(tmp_path, "b", batch(3, 9))
    write_journal(tmp_path, "other-part", batch(1, part=1))
    write_journal(tmp_path, "other-plan", batch(2, plan=2))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / ".temporary.tmp").write_bytes(b"")
    assert journaled_rows(tmp_path, 1, 0).tolist() == [3, 5, 9]
    assert journaled_rows(tmp_path, 7, 0).dtype == np.int32


def test_a_damaged_file_is_not_readable(tmp_path: Path) -> None:
    path = write_journal(tmp_path, "a", batch(1))
    assert readable(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert not readable(path)
    path.unlink()
    assert readable(path), "a deleted file has landed"


def test_captures_are_written_within_the_flush_interval_and_on_exit(tmp_path: Path) -> None:
    def rows() -> list[int]:
        return [row for path in tmp_path.glob("*.parquet") for row in pq.read_table(path)["row"].to_pylist()]

    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=0.0) as journal:
        journal.put(capture(1))
        while not rows():
            threading.Event().wait(0.005)
        assert journal.waiting == 0
        journal.put(capture(2))
        journal.put(Capture(capture(3).job, CaptureError("cancelled", None, "stopped")))
    assert sorted(rows()) == [1, 2], "a cancelled request is not a row"
    assert journal.totals.rows == {"completed": 2}


def test_one_file_holds_a_bounded_number_of_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaling, "_FLUSH_ROWS", 2)
    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=60.0) as journal:
        for row in range(5):
            journal.put(capture(row))
    assert sorted(len(pq.read_table(path)) for path in tmp_path.glob("*.parquet")) == [1, 2, 2]


def test_a_folder_that_cannot_be_written_for_too_long_fails_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Any] = []

    def refuse(*write: Any) -> Path:
        writes.append(write)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journaling, "_RETRY_S", 0.0)
    monkeypatch.setattr(journaling, "_GIVE_UP_S", 0.05)
    monkeypatch.setattr(journaling, "write_journal", refuse)
    with (
        pytest.raises(OSError, match="No space left"),
        JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=0.0) as journal,
    ):
        journal.put(capture(1))
    assert isinstance(journal.failure, OSError)
    assert len({write[1] for write in writes}) == 1 < len(writes), "the same file, again and again"


def test_totals_sum_all_calls() -> None:
    totals = Totals()
    totals.add(counted(capture(1, call(DOWN), call(ttft_ms=100.0)), CONTEXT))
    totals.add(counted(capture(2, call(ttft_ms=300.0)), CONTEXT))
    totals.add(counted(capture(3, call(DOWN)), CONTEXT))
    bad = Capture(Job(Request("b", "", None, None, None, "bad"), None, "stream", 4, [], 0.0), CaptureError("invalid_request", None, "bad"))  # fmt: skip
    totals.add(counted(bad, CONTEXT))
    assert totals.rows == {"completed": 2, "failed": 2}
    assert totals.errors == {"server": 2, "invalid_request": 1}
    assert (totals.input_tokens, totals.output_tokens, totals.cost_usd) == (20, 10, None)
    assert totals.ttft_ms == 200.0
