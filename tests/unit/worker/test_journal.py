from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap import tokens
from deltatap.model import Call, Capture, CaptureError, Choice, Chunks, Job, Received, Request, Usage, Wire
from deltatap.prices import Prices
from deltatap.worker import counting
from deltatap.worker import journal as journaling
from deltatap.worker.counting import Context, counted
from deltatap.worker.journal import JournalWriter, Totals, has_output, journaled_rows, readable, write_journal
from deltatap.worker.rows import journal_batch

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


def batch(*rows: int, plan: int = 1, part: int = 0) -> list[pa.RecordBatch]:
    return [journal_batch([counted(capture(row), CONTEXT) for row in rows], CONTEXT, plan=plan, part=part)]


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


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "zeros in the footer", "zeros in the pages", "flipped", "another name"]
)
def test_a_damaged_file_does_not_end_an_attempt(tmp_path: Path, damage: str) -> None:
    write_journal(tmp_path, "[a] {b} %20", batch(1))
    path = write_journal(tmp_path, "b", batch(2))
    whole = path.read_bytes()
    size = len(whole)
    footer = size - 8 - int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-9],
            "zeros in the footer": whole[:footer] + bytes(100) + whole[footer + 100 :],
            "zeros in the pages": whole[:4] + bytes(size // 3) + whole[4 + size // 3 :],
            "another name": whole.replace(b"part", b"p\xffrt"),
            "flipped": whole[: size - 8] + whole[: size - 9 : -1],
        }[damage]
    )
    assert not readable(path)
    assert 1 in journaled_rows(tmp_path, 1, 0)
    assert has_output(tmp_path)


def test_other_things_in_the_journal_cannot_be_landed(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    pq.write_table(pa.table({"plan": [None], "part": [1], "row": [2]}), tmp_path / "nulls.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    assert [readable(path) for path in tmp_path.iterdir()] == [False] * 3
    (tmp_path / "folder.parquet").rmdir()
    pq.write_table(pa.table({"plan": ["a"], "part": [1], "row": [2]}), tmp_path / "texts.parquet")
    assert journaled_rows(tmp_path, 1, 0).tolist() == []
    assert not has_output(tmp_path)


def test_a_file_that_the_storage_cannot_read_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_journal(tmp_path, "a", batch(1))

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "read_table", failing)
    assert readable(path), "its captures are paid for"
    for read in (lambda: journaled_rows(tmp_path, 1, 0), lambda: has_output(tmp_path)):
        with pytest.raises(OSError, match="Input/output"):
            read()


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


@pytest.mark.parametrize("taken", ["put", "hold"])
def test_an_answer_and_its_copies_are_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    """A kill between two files would leave identical requests owed, and their answer would be paid for again."""
    monkeypatch.setattr(journaling, "_FLUSH_ROWS", 2)
    answer, failed = capture(0), capture(8, call(DOWN))
    answer.job.alike.extend(Job(capture(row).job.request, None, "stream", row, [], 0.0) for row in range(1, 8))
    failed.job.alike.append(Job(capture(9).job.request, None, "stream", 9, [], 0.0))
    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=0.0) as journal:
        for each in (answer, failed):
            getattr(journal, taken)(each)
    files = [pq.ParquetFile(path) for path in tmp_path.iterdir()]
    (whole,) = (file for file in files if file.metadata.num_rows > 1)
    sizes = [whole.metadata.row_group(group).num_rows for group in range(whole.metadata.num_row_groups)]
    assert max(sizes) == 2, "batches stay small"
    rows = [row for row in whole.read().to_pylist() if row["status"] == "completed"]
    assert [row["row"] for row in rows if row["reused_from"]] == list(range(1, 8))
    assert {row["text"] for row in rows} == {"Hi"}
    assert journaled_rows(tmp_path, 1, 0).tolist() == list(range(9)), (
        "the next of the failed ones is still to be called"
    )
    assert all(readable(path) for path in tmp_path.iterdir())


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


def test_the_journal_is_failing_until_a_retry_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, seen = journaling.write_journal, list[bool]()

    def once_refused(*arguments: Any) -> Path:
        seen.append(journal.failing)
        if len(seen) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(journaling, "_RETRY_S", 0.0)
    monkeypatch.setattr(journaling, "write_journal", once_refused)
    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=0.0) as journal:
        journal.put(capture(1))
    assert seen == [False, True]
    assert not journal.failing


def test_totals_sum_all_calls() -> None:
    totals = Totals()
    totals.add(counted(capture(1, call(DOWN), call(ttft_ms=100.0)), CONTEXT))
    totals.add(counted(capture(2, call(ttft_ms=300.0)), CONTEXT))
    totals.add(counted(capture(3, call(DOWN)), CONTEXT))
    bad = Capture(Job(Request("b", "", None, None, None, "bad"), None, "stream", 4, [], 0.0), CaptureError("invalid_request", None, "bad"))  # fmt: skip
    totals.add(counted(bad, CONTEXT))
    assert (totals.rows, totals.uncalled) == ({"completed": 2, "failed": 2}, 1), "the invalid prompt took no call"
    assert totals.errors == {"server": 2, "invalid_request": 1}
    assert (totals.input_tokens, totals.output_tokens, totals.cost_usd) == (20, 10, None)
    assert totals.ttft_ms == 200.0


class PanicException(BaseException):
    """As pyo3 raises it."""


def odd(row: int, status: Any = "completed", error: CaptureError | None = None, **fields: Any) -> Capture:
    """A capture whose last call has odd values."""
    usual = call()
    received = replace(usual.received, **{key: value for key, value in fields.items() if hasattr(usual.received, key)})
    ofcall = {key: value for key, value in fields.items() if not hasattr(usual.received, key)}
    return capture(row, replace(usual, received=received, status=status, error=error, **ofcall))


def broken(chunks: bytes) -> Chunks:
    made = Chunks()
    made.append(1.0, 0.0, "Hi", 1, 0, 0, 0)
    made.end.append(9)  # a column that is longer than the others
    made.utf8 += chunks
    return made


# Values that no column can hold, and that nothing before the journal has refused.
ODD: dict[str, dict[str, Any]] = {
    "a count above int64": {"usage": Usage(2**70, 1)},
    "a count above int64 in the output": {"usage": Usage(1, 2**64)},
    "a count that is text": {"usage": Usage(1, 1, total_tokens="many")},  # type: ignore[arg-type]
    "a lone surrogate in the text": {"choices": (Choice(0, "a\ud800b"),)},
    "a lone surrogate in an id": {"response_id": "\udfff"},
    "a lone surrogate in the request id": {"server_request_id": "\ud800"},
    "a choice beyond int32": {"choices": (Choice(2**40, "Hi"), Choice(0, "Hi"))},
    "an id that is no text": {"response_id": {"a": 1}},
    "a status beyond int32": {"http_status": 2**40},
    "chunks that do not fit together": {"chunks": broken(b"x")},
    "log probabilities that are no text": {"logprobs": [1]},
}


def written(folder: Path, *captures: Capture) -> dict[str, dict[str, Any]]:
    with JournalWriter(folder, "p", CONTEXT, plan=1, part=0, flush_s=0.1) as journal:
        for one in captures:
            journal.put(one)
    tables = [pq.read_table(path) for path in folder.glob("*.parquet")]
    return {row["request_id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_a_row_that_cannot_be_stored_touches_no_other(tmp_path: Path, values: dict[str, Any]) -> None:
    rows = written(tmp_path, capture(1), odd(2, **values), capture(3))
    assert [rows[name]["status"] for name in ("r1", "r3")] == ["completed"] * 2
    assert [rows[name]["text"] for name in ("r1", "r3")] == ["Hi", "Hi"]
    if "http_status" not in values:  # it is no column of the last call
        assert rows["r2"]["status"] == "interrupted"
        assert (rows["r2"]["error"]["type"], rows["r2"]["error"]["code"]) == ("internal", "complete")
    assert "\ud800" not in str(rows["r2"])
    assert rows["r2"]["request_hash"] == "h"
    assert rows["r2"]["text"] in ("Hi", "a\ufffdb")
    assert (rows["r2"]["plan"], rows["r2"]["part"], rows["r2"]["row"]) == (1, 0, 2)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("completed", None, ("interrupted", "internal", "complete")),
        ("interrupted", CaptureError("stream_error", None, "x"), ("interrupted", "internal", "cut")),
        ("failed", DOWN, ("failed", "server", None)),
    ],
)
def test_the_error_of_a_row_that_cannot_be_stored(
    tmp_path: Path, status: str, error: CaptureError | None, expected: tuple[str, str, str | None]
) -> None:
    row = written(tmp_path, odd(2, status, error, response_id="\ud800"))["r2"]
    assert (row["status"], row["error"]["type"], row["error"]["code"]) == expected


@pytest.mark.parametrize("fault", [PanicException("regex"), OverflowError("big"), RecursionError(), KeyError("sk-key")])
def test_a_row_that_cannot_be_counted_touches_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    count = tokens.token_ends

    def fail(text: str, encoding: str) -> np.ndarray[Any, Any]:
        if text == "bad":
            raise fault
        return count(text, encoding)

    monkeypatch.setattr(counting, "token_ends", fail)
    rows = written(tmp_path, capture(1), odd(2, choices=(Choice(0, "bad"),)), capture(3))
    assert [rows[name]["status"] for name in ("r1", "r3")] == ["completed"] * 2
    bad = rows["r2"]
    assert (bad["status"], bad["error"]["code"], bad["text"]) == ("interrupted", "complete", "bad")
    assert bad["usage_reported"]["output_tokens"] == 5, "what it used is kept"
    assert bad["error"]["message"] == f"deltatap could not handle the answer: {type(fault).__name__} in fail"
    assert "request r2" in caplog.text
    assert "sk-key" not in caplog.text


def test_running_out_of_memory_is_not_one_row_s_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(counting, "token_ends", fail)
    with pytest.raises(MemoryError):
        written(tmp_path, capture(1))


def test_one_file_holds_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaling, "_FLUSH_BYTES", 100)
    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=60.0) as journal:
        for row in range(3):
            journal.put(odd(row, raw=(("", b"x" * 60),)))
    assert sorted(len(pq.read_table(path)) for path in tmp_path.glob("*.parquet")) == [1, 2]


def test_a_row_that_cannot_be_added_up_does_not_stop_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PanicException

    monkeypatch.setattr(Totals, "_add", fail)
    with JournalWriter(tmp_path, "p", CONTEXT, plan=1, part=0, flush_s=0.0) as journal:
        journal.put(capture(1))
    assert [row["request_id"] for path in tmp_path.glob("*.parquet") for row in pq.read_table(path).to_pylist()] == ["r1"]  # fmt: skip


def test_odd_values_do_not_stop_the_totals() -> None:
    totals = Totals()
    for values in ODD.values():
        totals.add(counted(odd(1, **values), CONTEXT))
    assert sum(totals.rows.values()) == len(ODD)
