"""A lock of the operating system on a local captures table, beside the lease.

The lease relies on Delta's commits. On a local disk, two processes can replace each other's commit, because Spark
renames a file over another one. The kernel releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Delta and Spark ignore names that begin with an underscore.
NAME = "_deltatap.lock"


@contextmanager
def locked(folder: str | None) -> Iterator[bool]:
    """Hold the lock of a table's folder.

    Args:
        folder: None for a table that is not local.

    Yields:
        Whether no other driver holds it. True if there is nothing to lock, or the file system has no locks.
    """
    if folder is None:
        yield True
        return
    try:
        file = (Path(folder) / NAME).open("ab")
    except OSError:
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:
            yield True
        else:
            yield True
