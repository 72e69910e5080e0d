"""A folder with file system faults, which are injected into the system calls of every process that a test starts.

Compiles ``storage.c``, a library for LD_PRELOAD. It affects the driver, the JVM and the workers alike.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import time
from enum import IntEnum
from pathlib import Path

PASSED = (errno.EAGAIN, errno.EPERM, errno.EIO, errno.ENOSYS, errno.ESTALE)


class Call(IntEnum):
    """The kinds of calls, as in ``storage.c``."""

    CREATE = 0
    OPEN = 1
    READ = 2
    WRITE = 3
    SYNC = 4
    RENAME = 5
    UNLINK = 6
    MKDIR = 7
    LIST = 8
    STAT = 9


class Mode(IntEnum):
    """The outcomes of a call, as in ``storage.c``."""

    NONE = 0
    ONCE = 1
    FAIL = 2
    STALE = 3
    HALF = 4


PROCESSES = ("driver", "JVM", "worker")
_RULE = struct.Struct("<6i2d")


class Storage:
    """The rules of a folder with faults. They can be changed at any time."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        """Prepare; no call fails yet.

        Args:
            folder: the folder with faults.
            scratch: where the library and the rules are stored.
        """
        library, rules = scratch / "storage.so", scratch / "rules"
        source = Path(__file__).with_name("storage.c")
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        rules.write_bytes(bytes(_RULE.size * len(Call)))
        with rules.open("r+b") as file:
            self._rules = mmap.mmap(file.fileno(), 0)
        self.env = {"LD_PRELOAD": str(library), "FAULTS_FOLDER": str(folder), "FAULTS_RULES": str(rules)}
        self._generation = 0

    def set(self, call: Call, mode: Mode, error: int = errno.EIO, for_s: float = 0.0, after_s: float = 0.0) -> None:
        """Set the rule of a kind of call.

        Args:
            call: the kind.
            mode: what happens.
            error: of a call that fails.
            for_s: how long, except for ONCE.
            after_s: when that begins.
        """
        self._generation += 1
        begin = time.clock_gettime(time.CLOCK_MONOTONIC) + after_s
        hits = self._hits(call)
        _RULE.pack_into(self._rules, call * _RULE.size, mode, error, self._generation, *hits, begin, begin + for_s)

    def hits(self, call: Call) -> dict[str, int]:
        """How many calls of a kind were affected, by process."""
        return dict(zip(PROCESSES, self._hits(call), strict=True))

    def _hits(self, call: Call) -> tuple[int, ...]:
        return tuple(_RULE.unpack_from(self._rules, call * _RULE.size)[3:6])


def errors() -> dict[Call, int]:
    """A temporary error for each kind of call; rename is not supported."""
    found = {call: PASSED[call % len(PASSED)] for call in Call}
    return {**found, Call.RENAME: errno.ENOSYS}


def environment(storage: Storage) -> dict[str, str]:
    """The variables of a process whose calls are affected."""
    return {**os.environ, **storage.env}
