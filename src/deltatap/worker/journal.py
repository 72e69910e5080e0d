"""The journal: small Parquet files that hold finished captures until they land.

A finished capture is in the journal within one flush interval; if its text is still being checked, see ``held.py``.

Knows when a file is written, and how to find out which rows the journal holds. A separate thread takes captures from
the engine, counts their tokens and writes them. Leaves landing to ``driver/landing.py``.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltatap.files import Files
from deltatap.http.faults import internal_error
from deltatap.model import INTERNAL_COMPLETE
from deltatap.tokens import token_sizes
from deltatap.worker import held
from deltatap.worker.counting import Context, Row, counted
from deltatap.worker.rows import JOURNAL_SCHEMA, journal_batch
from deltatap.worker.timing import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from deltatap.model import Capture

_RECENT = 256
# The maximum of captures, of chunks and of their bytes in one file. They bound memory: chunks are copied into Arrow's
# columns, and many long answers may end at the same time. An answer and its copies may exceed them.
_FLUSH_ROWS = 512
_FLUSH_CHUNKS = 25_000
_FLUSH_BYTES = 256 * 2**20
# How often the thread takes the finished captures. Waking it for each capture would cost the event loop more than
# everything else that the loop does at the end of a request.
_TAKE_S = 0.05
# How often, and for how long, a write that failed is retried.
_RETRY_S = 1.0
_GIVE_UP_S = 120.0
# Where a row belongs.
_PLACE = ("plan", "part", "row")
# The errors that pyarrow raises for a file that it cannot read; a KeyError for a column that is not there.
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


_ONCE = Files(patience_s=0.0)


class DamagedError(Exception):
    """A journal file is damaged or incomplete."""


class Totals:
    """The sums over a worker's captures. The journal's thread writes them; the heartbeat reads them at any time."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.uncalled = 0
        self.errors: Counter[str] = Counter()
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost_usd: float | None = None
        self._ttft_ms: deque[float] = deque(maxlen=_RECENT)

    def add(self, row: Row) -> None:
        """Count a row; never raises for one row."""
        try:
            self._add(row)
        except BaseException as error:  # noqa: BLE001 - raised again if it is not this row's trouble
            internal_error(error, row.capture.job.request.request_id, INTERNAL_COMPLETE, "add up the row")

    def _add(self, row: Row) -> None:
        self.rows[row.status] += 1
        self.uncalled += not row.capture.job.calls
        for call in row.capture.job.calls:
            if call.error is not None:
                self.errors[call.error.type] += 1
        if not row.capture.job.calls and row.error is not None:
            self.errors[row.error.type] += 1
        self.input_tokens += sum(bill.input_tokens for bill in row.bills)
        self.output_tokens += sum(bill.output_tokens for bill in row.bills)
        if row.cost.usd is not None:
            # Earlier calls are excluded, because another worker has counted them.
            self.cost_usd = (self.cost_usd or 0.0) + float(sum(bill.cost_usd or 0 for bill in row.bills))
        if row.last is not None and (ttft := Times.of(row.last.received.chunks).ttft_ms) is not None:
            self._ttft_ms.append(ttft)

    @property
    def ttft_ms(self) -> float | None:
        """The median of the latest captures; None when none had output."""
        recent = list(self._ttft_ms)
        return statistics.median(recent) if recent else None


class JournalWriter:
    """Writes captures as they finish: one file per flush interval, and the last one on exit.

    Attributes:
        totals: of the captures that are on disk.
        failing: whether the last write failed and is being retried.
        failure: why the writer has given up; None while it works.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        context: Context,
        *,
        plan: int,
        part: int,
        flush_s: float,
        written: Callable[[Sequence[Capture]], None] | None = None,
        files: Files | None = None,
    ) -> None:
        """The writer starts when it is entered.

        Args:
            folder: the journal.
            prefix: of the file names; names run, part and attempt, so that attempts never overwrite each other's files.
            context: what all rows share.
            plan: the plan's epoch.
            part: the part of the plan.
            flush_s: the maximum time from a capture's end to the start of its write, in seconds.
            written: called with captures when they are on disk; None if nobody needs that.
            files: the access to the folder; the writer itself repeats a write that failed.
        """
        self._files = (files or Files()).at_once()
        self._folder, self._prefix, self._context = folder, prefix, context
        self._plan, self._part, self._flush_s = plan, part, flush_s
        self._written = written
        # With each capture, whether it is held.
        self._queue: queue.SimpleQueue[tuple[Capture, bool] | None] = queue.SimpleQueue()
        self._held, self._to_hold = held.HeldFiles(self._files), list[Row]()
        self._thread = threading.Thread(target=self._main, name="deltatap-journal", daemon=True)
        self.totals = Totals()
        self.failing = False
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if self.failure is not None and error is None:
            raise self.failure

    @property
    def waiting(self) -> int:
        """The number of captures in the queue."""
        return self._queue.qsize()

    def put(self, capture: Capture) -> None:
        """Take a capture; never blocks. A capture that was cancelled before anything arrived is not a row."""
        if capture.error is None or capture.error.type != "cancelled":
            self._queue.put((capture, False))

    def hold(self, capture: Capture) -> None:
        """Take a capture that :meth:`put` will get again with its results; never blocks."""
        self._queue.put((capture, True))

    def _main(self) -> None:
        try:
            while self._flush():
                pass
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it
            self.failure = error

    def _flush(self) -> bool:
        """Write the captures of one flush interval; False at the end."""
        taken = self._queue.get()
        due = time.monotonic() + self._flush_s
        rows, chunks, size = list[Row](), 0, 0
        while taken is not None:
            capture, is_held = taken
            # An answer and its copies are in one file. Otherwise, a kill could leave some of the identical requests
            # owed, and a new attempt would pay for their answer again.
            these = [counted(each, self._context) for each in capture.with_copies]
            if is_held:
                self._to_hold += these
            else:
                rows += these
                more = _size(capture)
                chunks, size = chunks + more[0], size + more[1]
            if len(rows) >= _FLUSH_ROWS or chunks >= _FLUSH_CHUNKS or size >= _FLUSH_BYTES:
                break
            try:
                taken = self._next(due)
            except queue.Empty:
                break
        self._hold()
        if rows:
            self._held.release(self._write(rows))
            if self._written is not None:
                self._written([row.capture for row in rows])
        for row in rows:
            self.totals.add(row)
        return taken is not None

    def _next(self, due: float) -> tuple[Capture, bool] | None:
        """The next capture before a time, or the end. Writes held captures before it waits.

        Raises:
            queue.Empty: there is none.
        """
        while True:
            try:
                return self._queue.get_nowait()
            except queue.Empty:
                self._hold()
                if (left := due - time.monotonic()) <= 0:
                    raise
                time.sleep(min(left, _TAKE_S))

    def _hold(self) -> None:
        """Write a file that lands only if this worker dies. If that fails, the captures still come to :meth:`put`."""
        if not self._to_hold:
            return
        rows, self._to_hold = self._to_hold, []
        self._files.turn()
        with suppress(OSError):
            name = f"{self._prefix}-{uuid.uuid4().hex}"
            path = write_journal(self._folder, name, self._batches(rows), held.SUFFIX)
            self._held.add(path, (row.capture.job.row for row in rows))

    def _write(self, rows: Sequence[Row]) -> list[int]:
        """Write a file; returns its rows. Retry while the write fails, because these captures are paid for."""
        name = f"{self._prefix}-{uuid.uuid4().hex}"
        give_up = time.monotonic() + _GIVE_UP_S
        while True:
            self._files.turn()
            try:
                write_journal(self._folder, name, self._batches(rows))
            except OSError:
                if time.monotonic() > give_up:
                    raise
                self.failing = True
                time.sleep(_RETRY_S)
            else:
                self.failing = False
                return [row.capture.job.row for row in rows]

    def _batches(self, rows: Sequence[Row]) -> Iterator[pa.RecordBatch]:
        """The rows of a file, in batches that bound memory: an answer may have any number of copies."""
        batch, size = list[Row](), 0
        for row in rows:
            batch.append(row)
            size += _size(row.capture)[1]
            if len(batch) >= _FLUSH_ROWS or size >= _FLUSH_BYTES:
                yield journal_batch(batch, self._context, plan=self._plan, part=self._part)
                batch, size = [], 0
        if batch:
            yield journal_batch(batch, self._context, plan=self._plan, part=self._part)


def _size(capture: Capture) -> tuple[int, int]:
    """The number of chunks of a capture, and about how many bytes it takes."""
    if capture.reused is not None:
        return 0, _size(capture.reused)[1]
    received = [call.received for call in capture.job.calls]
    raw = sum(len(data) for got in received for _, data in got.raw or ())
    return sum(len(got.chunks) for got in received), raw + sum(len(got.chunks.utf8) for got in received)


def warm_up(context: Context) -> None:
    """Load the vocabulary and pyarrow's lazy imports now; later they would block the event loop for a second."""
    token_sizes(context.fallback_encoding)
    with pq.ParquetWriter(pa.BufferOutputStream(), JOURNAL_SCHEMA, compression="zstd", use_dictionary=False) as writer:
        writer.write_batch(journal_batch([], context, plan=0, part=0))


def write_journal(folder: Path, name: str, batches: Iterable[pa.RecordBatch], suffix: str = ".parquet") -> Path:
    """Write a file of the journal. Few values repeat, so dictionaries would make it larger and slower."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, JOURNAL_SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for batch in batches:
            writer.write_batch(batch)
    path = folder / f"{name}{suffix}"
    _ONCE.write(path, sink.getvalue())
    return path


def journaled_rows(
    folder: Path, plan: int, part: int, files: Files | None = None, *, doubt_s: float = 0.0
) -> np.ndarray[Any, Any]:
    """The rows of a part that are in the journal, including held ones.

    Skips files that landing deletes meanwhile. Landing records their rows before it deletes them, so read the landed
    rows after the journal. Skips damaged files, too: their requests are owed again.

    Args:
        folder: the journal.
        plan: the plan's epoch.
        part: the part of the plan.
        files: the access to the folder.
        doubt_s: a file is damaged only if it cannot be read for this long. Until then, it may be incomplete.
    """
    files = files or _ONCE
    found: dict[Path, pa.Table | None] = {}
    began = time.monotonic()
    while True:
        doubted = False
        for path in _names(folder, files):
            if path in found:
                continue
            try:
                found[path] = _columns(path, files, *_PLACE)
            except DamagedError:
                doubted = True
        if not doubted or time.monotonic() - began >= doubt_s:
            break
        time.sleep(_RETRY_S)
    rows = [np.empty(0, np.int32)]
    for table in found.values():
        if table is not None:
            here = table.filter((pa.compute.field("plan") == plan) & (pa.compute.field("part") == part))
            rows.append(here["row"].to_numpy())
    return np.unique(np.concatenate(rows))


def _names(folder: Path, files: Files) -> Iterator[Path]:
    """The files, held ones first: a held file is deleted after its rows have been written to a normal one."""
    for suffix in (held.SUFFIX, ".parquet"):
        yield from files.names(folder, suffix)


def has_output(folder: Path, files: Files | None = None) -> bool:
    """Whether the journal holds an answer, complete or not; skips landed and damaged files."""
    files = files or _ONCE
    for path in _names(folder, files):
        with suppress(DamagedError):
            table = _columns(path, files, "status")
            if table is not None and set(table["status"].to_pylist()) - {"failed", None}:
                return True
    return False


def readable(path: Path, files: Files | None = None) -> bool:
    """Whether a file can be landed.

    False if it is damaged or does not belong to the journal. True if it has been deleted. Also True if the storage
    fails now, because the captures in the file are paid for.
    """
    try:
        if path.is_dir():
            return False
        with (files or _ONCE).open(path) as file:
            whole = pq.ParquetFile(file, page_checksum_verification=True)
            # One batch at a time bounds memory. Spark cannot read a file without these columns, either.
            groups = (whole.read_row_group(number) for number in range(whole.num_row_groups))
            return not any(group[name].null_count for group in groups for name in _PLACE)
    except FileNotFoundError:
        return True
    except _FAILURES as error:
        return not _damaged(error)


def read_columns(path: Path, schema: pa.Schema, files: Files) -> pa.Table:
    """Some columns of a file of the journal.

    Raises:
        DamagedError: if the file is damaged or incomplete.
        OSError: if it cannot be read now; FileNotFoundError if it has been deleted.
    """
    try:
        with files.open(path) as file:
            return pq.read_table(file, schema=schema, partitioning=None, page_checksum_verification=True)
    except _FAILURES as error:
        if not isinstance(error, IsADirectoryError) and not _damaged(error):
            raise
        raise DamagedError(str(path)) from error


def _columns(path: Path, files: Files, *names: str) -> pa.Table | None:
    """Some columns of a file; None if the file has been deleted."""
    try:
        return read_columns(path, pa.schema([JOURNAL_SCHEMA.field(name) for name in names]), files)
    except FileNotFoundError:
        return None


def _damaged(error: Exception) -> bool:
    """Whether an error of pyarrow is about the content of a file. Storage errors have an errno."""
    return not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)
