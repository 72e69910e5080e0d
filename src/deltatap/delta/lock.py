"""Locks of the operating system on local tables.

Runs rely on Delta's commits. On a local disk, two processes can replace each other's commit, because Spark renames a
file over another one. So a run holds a lock on its captures table, in addition to the lease. Processes create tables
in a folder one after the other. The kernel releases the locks of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Delta and Spark ignore names that begin with an underscore.
LOCK_FILE = "_deltatap.lock"


@contextmanager
def locked(folder: str | None) -> Iterator[bool]:
    """Hold the lock on a table's folder.

    Args:
        folder: None for a table that is not local.

    Yields:
        Whether no other driver holds it. True if there is nothing to lock, or the file system has no locks.
    """
    with ExitStack() as held:
        yield folder is None or _try_lock(Path(folder) / LOCK_FILE, held)


def _try_lock(file: Path, held: ExitStack) -> bool:
    """Create a file and lock it until the stack is closed; False if another process has locked it."""
    try:
        fcntl.flock(held.enter_context(_opened(file)), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _opened(file: Path) -> IO[bytes]:
    """Open a file for its lock.

    NFS locks only files that are open for writing, but another user's file may be read-only.
    """
    try:
        return file.open("ab")
    except PermissionError:
        return file.open("rb")


@contextmanager
def one_at_a_time(folders: Iterable[str]) -> Iterator[None]:
    """Lock these folders, creating them if needed, and wait for other processes. Without file locks, do not wait."""
    with ExitStack() as held:
        # Always in the same order, so that no two processes wait for each other.
        for folder in sorted(set(folders)):
            with suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY)
                held.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
