"""Captures whose texts are still being checked, in journal files that land only if their worker dies.

A capture that has ended must be in the journal within one flush interval, but its checks can take longer. So it is
written twice: first to a held file, which landing ignores, then with the results of its checks to a normal file. After
a kill, a new attempt does not send the request again, and the driver lets the held file land.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from deltatap.files import Files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SUFFIX = ".held"


class HeldFiles:
    """The held files of one worker. For each file, the rows that are not in a normal file yet."""

    def __init__(self, files: Files | None = None) -> None:
        """Nothing is held yet; `files` is the access to the journal."""
        self._files = files or Files()
        self._left: dict[Path, set[int]] = {}

    def add(self, path: Path, rows: Iterable[int]) -> None:
        """A file with these rows has been written."""
        self._left[path] = set(rows)

    def release(self, rows: Iterable[int]) -> None:
        """These rows are in a normal file. Delete the held files that have no other rows."""
        written = set(rows) if self._left else set()
        for path in list(self._left):
            self._left[path] -= written
            if not self._left[path]:
                with suppress(OSError):  # the next release deletes it
                    self._files.delete(path)
                    del self._left[path]


def promote(journal: Path, files: Files | None = None) -> None:
    """Let the held files of a journal land, since their workers have ended."""
    files = files or Files()
    for path in files.names(journal, SUFFIX):
        with suppress(FileNotFoundError):  # its worker has deleted it
            files.move(path, path.with_suffix(".parquet"))
