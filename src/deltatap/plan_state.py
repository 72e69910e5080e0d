"""The folder of a plan: its parts, the attempts at them, and the rows that have landed.

Knows which attempt holds a part, and how a reader recognizes a complete record of landed rows. Leaves each access to
``files.py``, and what a part contains to ``driver/plan.py``.

    plan-<epoch>/
        parts/                  the owed requests, one file per capture task; the driver tells its workers their names
        claims/                 <part>-<number>-<uuid>: the attempts at a part; the greatest name holds the part
        landed/                 which rows of which parts are in captures, 8 bytes per row; a name has a checksum
"""

from __future__ import annotations

import errno
import time
import uuid
import zlib
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from deltatap.files import Files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LANDED = np.dtype([("part", "<i4"), ("row", "<i4")])
# Above this number, the files in landed/ are merged into one.
_MERGE_LANDED_ABOVE = 64


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a plan, as the driver tells its workers.

    Attributes:
        name: the file's path in the plan's folder.
        rows: how many requests it holds.
        size: its bytes.
    """

    name: str
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class PlanState:
    """The folder of one plan: its parts, the attempts at them, and the rows that have landed.

    Attributes:
        folder: the folder.
        written: the manifest: the parts that the driver wrote. None if the caller does not know it.
        files: the access to the files.
    """

    folder: Path
    written: tuple[Part, ...] | None = None
    files: Files = field(default_factory=Files, compare=False)

    @property
    def parts(self) -> Path:
        """The folder of the parts that Spark wrote. A write that was repeated has a number after this name."""
        return self.folder / "parts"

    def at_once(self) -> PlanState:
        """The same folder for messages; see :meth:`Files.messages`."""
        return replace(self, files=self.files.messages())

    def prepare(self) -> None:
        """Create the folders."""
        self.files.make(self.folder / "claims", self.folder / "landed")

    def part_files(self) -> list[Path]:
        """The files of the parts; a part's number is its index in this list."""
        if self.written is not None:
            return [self.folder / part.name for part in self.written]
        tries = [path for path in self.files.names(self.folder) if path.name.startswith(self.parts.name)]
        latest = max(tries, key=lambda path: (len(path.name), path.name), default=self.parts)
        return [path for path in self.files.names(latest, ".parquet") if path.name.startswith("part-")]

    def open_part(self, part: int) -> IO[bytes]:
        """A part for reading. A file that another node has written may take a while to appear.

        Raises:
            OSError: if the part does not appear, or stays incomplete.
        """
        return self.files.open(self.part_files()[part], None if self.written is None else self.written[part].size)

    def claims(self, part: int | str) -> list[str]:
        """The names of all attempts at a part; the last one holds the part."""
        part = f"{part:05d}-" if isinstance(part, int) else f"{part}-"
        return [path.name for path in self.files.names(self.folder / "claims") if path.name.startswith(part)]

    def claim(self, part: int, now_s: float | None = None) -> str:
        """Claim a part for a new attempt; returns the attempt's name.

        Its number is the time, so it is greater than the number of an older claim that a stale listing does not show.

        Args:
            part: the part's number.
            now_s: seconds since the epoch; None: now.
        """
        now_ms = int(1000 * (time.time() if now_s is None else now_s))
        numbers = [int(name.split("-")[1]) + 1 for name in self.claims(part)]
        name = f"{part:05d}-{max(now_ms, *numbers, 0):013d}-{uuid.uuid4().hex}"
        self.files.create(self.folder / "claims" / name)
        return name

    def holds(self, claim: str) -> bool:
        """Whether no newer attempt has claimed the part. If two numbers are equal, the greater uuid wins."""
        return max([*self.claims(claim.split("-", maxsplit=1)[0]), claim]) <= claim

    def landed(self) -> np.ndarray[Any, Any]:
        """The :data:`LANDED` pairs (part, row) that are in ``captures``.

        Raises:
            OSError: if a record cannot be read, or stays damaged.
        """

        def read() -> np.ndarray[Any, Any]:
            contents = self._read(self._landed_files())
            if None in contents:  # another process has merged the files meanwhile: list them again
                raise FileNotFoundError(errno.ENOENT, "merged", str(self.folder))
            return _pairs(contents)

        return self.files.repeat(read, must_exist=True)

    def landed_rows(self, part: int) -> np.ndarray[Any, Any]:
        """The rows of a part that are in ``captures``."""
        landed = self.landed()
        rows: np.ndarray[Any, Any] = landed["row"][landed["part"] == part]
        return rows

    def add_landed(self, pairs: np.ndarray[Any, Any]) -> None:
        """Record :data:`LANDED` pairs as landed: after the commit, and before their journal files are deleted."""
        self.files.make(self.folder / "landed")
        self._write(pairs.tobytes())
        files = self._landed_files()
        if len(files) > _MERGE_LANDED_ABOVE and None not in (contents := self._read(files)):
            self._write(_pairs(contents).tobytes())
            for path in files:
                self.files.delete(path)

    def _write(self, content: bytes) -> None:
        name = f"{uuid.uuid4().hex}-{len(content)}-{zlib.crc32(content):08x}.rows"
        self.files.write(self.folder / "landed" / name, content)

    def _read(self, paths: Sequence[Path]) -> list[bytes | None]:
        """The records; None for each that is not there."""
        return [self.files.load(path, lambda content, path=path: _whole(path, content)) for path in paths]  # type: ignore[misc]

    def _landed_files(self) -> list[Path]:
        return self.files.names(self.folder / "landed", ".rows")


def _pairs(contents: Sequence[bytes | None]) -> np.ndarray[Any, Any]:
    return np.unique(np.frombuffer(b"".join(content or b"" for content in contents), LANDED))


def _whole(path: Path, content: bytes) -> bytes:
    """The content of a record of landed rows, if it has the size and the checksum in its name."""
    _, *expected = path.stem.split("-")
    if (expected and expected != [str(len(content)), f"{zlib.crc32(content):08x}"]) or len(content) % LANDED.itemsize:
        raise ValueError(path.name)
    return content
