"""How long it takes until Spark's workers see what the driver writes to the state folder, for ``deltatap check``.

The driver creates a file and replaces another one that the workers have read before. Then a Spark task in each slot
looks for both changes. :func:`judged` decides what the delays mean. Leaves the rest of the checks to ``check.py``.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from deltatap.delta import columns
from deltatap.files import OLD_S, Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pyspark.sql import SparkSession

# A longer delay is unusual. With a delay above OLD_S, a run can pay twice for a request after a worker has died.
WARN_S = 5.0
_GIVE_UP_S = 30.0
_LOOK_S = 0.05
_SEEN = (
    columns.Column("host", columns.STRING, ""),
    columns.Column("created_s", columns.DOUBLE, ""),
    columns.Column("replaced_s", columns.DOUBLE, ""),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """When a task saw the new file and the new content, in seconds after its first look; None: not within 30 s."""

    host: str
    created_s: float | None
    replaced_s: float | None


@dataclass(frozen=True, slots=True)
class Marks:
    """The two files: `replaced` exists before the workers look for the first time, and `created` does not."""

    replaced: Path
    created: Path

    @classmethod
    def of(cls, replaced: Path) -> Marks:
        """The two files, next to each other."""
        return cls(replaced, replaced.with_name(f"{replaced.name}-new"))

    def look(self) -> tuple[bool, bool]:
        """Whether the new file is in the listing of its folder and can be read, and whether the new content is seen."""
        created = replaced = False
        with suppress(OSError):
            created = self.created in list(self.created.parent.iterdir()) and self.created.read_bytes() == b"new"
        with suppress(OSError):
            replaced = self.replaced.read_bytes() == b"new"
        return created, replaced


def measure(
    spark: SparkSession, marks: Marks, slots: int, files: Files
) -> tuple[Literal["ok", "warning", "problem"], str]:
    """Write both files and let a task in each slot look for them; see :func:`judged`."""
    began = time.perf_counter()
    files.write(marks.created, b"new")
    created = time.perf_counter()
    files.write(marks.replaced, b"new")
    replaced = time.perf_counter()
    rows = spark.range(0, slots, 1, slots).mapInArrow(looking(marks), columns.spark_schema(_SEEN)).collect()
    return judged([Seen(**row.asDict()) for row in rows], created - began, replaced - created)


def judged(seen: Sequence[Seen], create_s: float, replace_s: float) -> tuple[Literal["ok", "warning", "problem"], str]:
    """The level and the text of the result.

    Args:
        seen: by the tasks.
        create_s: how long the driver took to create a file.
        replace_s: how long it took to replace a file.
    """
    wrote = f"a file is created in {create_s:.2g} s and replaced in {replace_s:.2g} s"
    missing = sorted({each.host for each in seen if each.created_s is None or each.replaced_s is None})
    if missing:
        return "problem", f"{', '.join(missing)}: the driver's files are not visible after {_GIVE_UP_S:g} s"
    delays = [delay for each in seen for delay in (each.created_s, each.replaced_s) if delay is not None]
    slowest = max(delays, default=0.0)
    text = f"{wrote}; seen by {len(seen)} tasks after at most {slowest:.1f} s"
    if slowest <= WARN_S:
        return "ok", text
    return "warning", f"{text}: expected at most {WARN_S:g} s; deltatap relies on at most {OLD_S:g} s"


def looking(
    marks: Marks, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function of a task: it looks until it has seen both files."""

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                seen = look_for(marks, clock=clock, sleep=sleep)
                yield pa.RecordBatch.from_pylist([asdict(seen)], columns.arrow_schema(_SEEN))

    return work


def look_for(marks: Marks, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> Seen:
    """Look until both files are seen, or for 30 s."""
    began = clock()
    created_s: float | None = None
    replaced_s: float | None = None
    while True:
        created, replaced = marks.look()
        waited_s = clock() - began
        created_s = waited_s if created and created_s is None else created_s
        replaced_s = waited_s if replaced and replaced_s is None else replaced_s
        if (created_s is not None and replaced_s is not None) or waited_s >= _GIVE_UP_S:
            return Seen(socket.gethostname(), created_s, replaced_s)
        sleep(_LOOK_S)
