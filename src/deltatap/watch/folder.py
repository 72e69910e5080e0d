"""Reads a run's state folder for the page: control, heartbeats, the size of the plan, new files of the journal.

Reads only. A file can disappear at any moment, because landing deletes the journal and a run that ends deletes the
folder. ``board.py`` interprets the content.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from deltatap.delta import columns
from deltatap.model import RunStatus
from deltatap.state import RunState
from deltatap.watch.board import DEAD_S, Finished, Seen, of_epoch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deltatap.messages import Control

# A worker writes one file per second. A slow reader skips files, and the texts of large files.
_FILES, _ROWS, _TEXT_FILE_BYTES = 16, 12, 2 * 2**20
_TEXT, _ERROR = 300, 200
_COLUMNS = ("request_id", "mode", "status", "request_model", "ttft_ms", "e2e_ms", "error")
_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


@dataclass(slots=True)
class Folder:
    """The state folder, or one run in it.

    Attributes:
        folder: the state folder of the settings.
        run_id: the run to follow; None follows the run that is active, once there is one.
    """

    folder: Path
    run_id: str | None = None
    _state: RunState | None = None
    _read: set[str] = field(default_factory=set)
    _owed: tuple[int, int] = (-1, 0)
    _last: Seen = field(default_factory=Seen)

    def active(self) -> list[str]:
        """The runs whose driver has sent a message lately, the latest one last.

        A killed or failed run leaves its folder. A later run lands what is left in it, and then removes it.
        """
        found, since = [], time.time() - DEAD_S
        for path in self.folder.glob("*/control.json"):
            state = RunState(path.parent).at_once()
            with suppress(OSError):
                control = state.control()
                # A command that waits for the next round of capture.follow_s publishes `completed`.
                if control is not None and control.stop not in ("ended", RunStatus.COMPLETED):
                    found.append((path.stat().st_mtime, state.name))
        return [name for at, name in sorted(found) if at >= since]

    def look(self) -> Seen | None:
        """The content now; None if the driver's message is gone: a run that ends removes its folder.

        While the folder cannot be read, this returns the content that was read last. The board notices that the driver
        is silent.
        """
        try:
            seen = self._look()
        except _FAILURES:
            return replace(self._last, finished=())
        if seen is not None:
            self._last = seen
        return seen

    def _look(self) -> Seen | None:
        if self._state is None:
            active = [self.run_id] if self.run_id is not None else self.active()
            # The page cannot wait: files that cannot be read now are read at the next look.
            state = RunState.of(self.folder, active[-1]).at_once() if active else None
            if state is None or state.control() is None:
                return Seen()
            self._state = state
            # The journal may already have many files.
            self._read = {path.name for path in self._journal(state)[:-_FILES]}
        state = self._state
        control = state.control()
        if control is None:
            return None
        beats = of_epoch(state.heartbeats(), control)
        owed = self._planned(state, control, complete=bool(beats))
        return Seen(state.name, control, beats, owed, tuple(self._finished(state)))

    def _planned(self, state: RunState, control: Control, *, complete: bool) -> int:
        """How many requests the plan has. Its files change only until the plan is complete, and workers start."""
        if self._owed[0] == control.epoch:
            return self._owed[1]
        owed = 0
        for path in state.plan(control.epoch).part_files():
            with suppress(FileNotFoundError):  # Spark writes the plan again, or the run ends now
                owed += pq.read_metadata(path).num_rows
        if complete and owed:
            self._owed = control.epoch, owed
        return owed

    def _journal(self, state: RunState) -> list[Path]:
        """The journal's files, the oldest first."""
        aged = []
        for path in state.journal.glob("*.parquet"):
            try:
                aged.append((path.stat().st_mtime, path))
            except FileNotFoundError:
                continue
        return [path for _, path in sorted(aged)]

    def _finished(self, state: RunState) -> Iterator[Finished]:
        """The rows of new files."""
        files = self._journal(state)
        new = [path for path in files if path.name not in self._read]
        self._read = {path.name for path in files}
        for path in new[-_FILES:]:
            try:
                yield from _rows(path)
            except _FAILURES:  # landed meanwhile, or damaged
                continue


def _rows(path: Path) -> Iterator[Finished]:
    names = (*_COLUMNS, "text") if path.stat().st_size <= _TEXT_FILE_BYTES else _COLUMNS
    schema = pa.schema([columns.arrow_schema(columns.JOURNAL).field(name) for name in names])
    for row in pq.read_table(path, schema=schema, partitioning=None).slice(0, _ROWS).to_pylist():
        error = row["error"]
        said = None if error is None else f"{error['type']}: {error['message']}"[:_ERROR]
        text = (row.get("text") or "")[:_TEXT]
        model = row["request_model"] or ""
        yield Finished(row["request_id"], row["mode"], row["status"], model, row["ttft_ms"], row["e2e_ms"], said, text)
