"""Access to the files of the state folder: :class:`Files` repeats an operation that fails temporarily.

The folder can be on a Databricks Volume or on another network file system. There, any operation can fail temporarily,
rename can be unsupported, a listing and the content of a replaced file can be old, and a file can be incomplete. The
pure function :func:`wait_after` knows which errors are temporary and how long to wait. Readers check that a file is
complete. Leaves the layout and the meaning of the files to ``state.py``. No function creates a folder as a side effect.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

_Result = TypeVar("_Result")

# How old a listing or the content of a replaced file may be. After a worker or a driver has died, its missing files
# count as missing only after this time.
OLD_S = 15.0
# How long a failing operation is repeated, and how long to wait between two tries.
PATIENCE_S = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
# The errors that a network file system reports during a temporary problem.
PASSING = frozenset(
    {
        errno.EAGAIN, errno.EPERM, errno.EIO, errno.ESTALE, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ENOSYS,
        errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED,
        errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EPIPE, errno.EPROTO, errno.ENOLCK, errno.EDEADLK,
        errno.ENFILE, errno.EMFILE, errno.ENOBUFS,
    }
)  # fmt: skip
_UNBOUNDED = 1_000_000
# Of the files that may be created per second, these are for messages: each process sends one every half second. If a
# message waited behind other files, permits would expire, and its requests would be counted too late towards the
# limits.
MESSAGES_PER_S = 2
# The errors of a file system that does not support rename.
_NO_RENAME = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def wait_after(
    error: OSError, tries: int, since_s: float, *, patience_s: float, must_exist: bool = False
) -> float | None:
    """Decide whether a failed operation is repeated: seconds to wait before, or None if the error is final.

    Args:
        error: of the latest try.
        tries: how many tries have failed before this one.
        since_s: seconds since the first try.
        patience_s: how long the operation may be repeated.
        must_exist: whether the file or its folder must exist, so that its absence is temporary.
    """
    passes = error.errno in PASSING or (must_exist and error.errno == errno.ENOENT)
    if not passes or since_s >= patience_s:
        return None
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(tries, 10))


class Pace:
    """Limits the creation of files to `per_s` per second. Reads no clock; thread-safe."""

    def __init__(self, per_s: int) -> None:
        self._latest: deque[float] = deque(maxlen=per_s)
        self._lock = threading.Lock()

    def wait_s(self, now: float) -> float:
        """Reserve the next creation; returns how long to wait for it, in seconds."""
        with self._lock:
            full = len(self._latest) == self._latest.maxlen
            at = max(now, self._latest[0] + 1) if full else now
            self._latest.append(at)
        return at - now


class Files:
    """Access to the files of a state folder."""

    def __init__(
        self,
        per_s: int = _UNBOUNDED,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        pace: Pace | None = None,
    ) -> None:
        """Access with a limit on file creations.

        Args:
            per_s: how many files may be created per second, including messages.
            patience_s: how long a failing operation is repeated.
            clock: monotonic seconds.
            sleep: as ``time.sleep``.
            pace: the limit to share with another access; None: a separate limit of `per_s`.
        """
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self._pace = pace or Pace(per_s - MESSAGES_PER_S if per_s > MESSAGES_PER_S else per_s)
        self._messages = Pace(MESSAGES_PER_S) if per_s > MESSAGES_PER_S else self._pace
        self._renames_from = clock()

    def at_once(self) -> Files:
        """The same access without repeating anything."""
        return Files(patience_s=0.0, clock=self._clock, sleep=self._sleep, pace=self._pace)

    def messages(self) -> Files:
        """Access for messages. Nothing is repeated, because the next message comes soon. None waits for files."""
        return Files(patience_s=0.0, clock=self._clock, sleep=self._sleep, pace=self._messages)

    def repeat(self, call: Callable[[], _Result], *, must_exist: bool = False) -> _Result:
        """Call a function until it succeeds; see :func:`wait_after`.

        Raises:
            OSError: the last error.
        """
        began, tries = self._clock(), 0
        while True:
            try:
                return call()
            except OSError as error:
                since_s = self._clock() - began
                wait_s = wait_after(error, tries, since_s, patience_s=self._patience_s, must_exist=must_exist)
                if wait_s is None:
                    raise
            self._sleep(wait_s)
            tries += 1

    def names(self, folder: Path, suffix: str = "") -> list[Path]:
        """The paths in a folder whose names have a suffix, sorted; none if there is no such folder."""
        try:
            found = self.repeat(lambda: list(folder.iterdir()))
        except FileNotFoundError:
            return []
        return sorted(path for path in found if path.name.endswith(suffix))

    def exists(self, path: Path) -> bool:
        """Whether a file or folder exists."""
        try:
            self.repeat(path.stat)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def load(self, path: Path, decode: Callable[[bytes], _Result], *, must_exist: bool = False) -> _Result | None:
        """The decoded content of a small file; None if there is no such file.

        Args:
            path: of the file.
            decode: raises a ValueError if the content is incomplete; then the file is read again.
            must_exist: whether the file must exist.

        Raises:
            OSError: if the file cannot be read, or stays damaged.
        """

        def whole() -> _Result:
            content = path.read_bytes()
            try:
                return decode(content)
            except ValueError as error:
                raise OSError(errno.EIO, "the file is not whole", str(path)) from error

        try:
            return self.repeat(whole, must_exist=must_exist)
        except FileNotFoundError:
            if must_exist:
                raise
            return None

    def open(self, path: Path, size: int | None = None) -> IO[bytes]:
        """A file for random access; a read that fails or is short is repeated.

        Args:
            path: of the file, which must exist if its size is given.
            size: the expected number of bytes.
        """
        return io.BufferedReader(_Reading(self, path, size), buffer_size=1 << 16)

    def write(self, path: Path, content: bytes | pa.Buffer) -> None:
        """Create or replace a file in an existing folder, atomically if the file system supports rename.

        Without rename, a reader can see an incomplete file. Each reader checks that a file is complete.
        """

        def once() -> None:
            self.turn()
            if self._clock() < self._renames_from:
                _write_synced(path, content)
                return
            try:
                write_whole(path, content)
            except OSError as error:
                if error.errno not in _NO_RENAME:
                    raise
                self.turn()
                _write_synced(path, content)
                self._renames_from = self._clock() + PATIENCE_S

        self.repeat(once, must_exist=True)

    def create(self, path: Path) -> None:
        """Create an empty file in an existing folder."""

        def once() -> None:
            self.turn()
            path.touch()

        self.repeat(once, must_exist=True)

    def make(self, *folders: Path) -> None:
        """Create folders, with their parents. Only the driver does this."""
        for folder in folders:
            self.repeat(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]

    def move(self, source: Path, target: Path) -> None:
        """Rename a file, or copy it if the file system does not support rename."""

        def once() -> None:
            try:
                source.replace(target)
            except OSError as error:
                if error.errno not in _NO_RENAME or not source.is_file():
                    raise
                _write_synced(target, source.read_bytes())
                source.unlink()

        self.repeat(once)

    def delete(self, path: Path) -> None:
        """Delete a file, if it exists."""
        self.repeat(lambda: path.unlink(missing_ok=True))

    def delete_folder(self, folder: Path) -> None:
        """Delete a folder and everything in it, if it exists."""

        def once() -> None:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

        self.repeat(once)

    def delete_empty(self, folder: Path) -> bool:
        """Delete a folder if it is empty. The file system decides whether it is empty, because a listing may be old."""
        try:
            self.repeat(folder.rmdir)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Wait before another look."""
        self._sleep(seconds)

    def turn(self) -> None:
        """Wait until another file may be created."""
        if (wait_s := self._pace.wait_s(self._clock())) > 0:
            self._sleep(wait_s)


class _Reading(io.RawIOBase):
    """A file that is opened again when a read fails."""

    def __init__(self, files: Files, path: Path, size: int | None) -> None:
        super().__init__()
        self._files, self._path, self._expected = files, path, size
        self._descriptor, self._at, self._size = -1, 0, 0
        files.repeat(self._open, must_exist=size is not None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a buffer
        wanted = min(len(buffer), max(0, self._size - self._at))
        read = self._files.repeat(lambda: self._read(wanted), must_exist=True) if wanted else b""
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size
        if self._expected not in (None, self._size):
            self._drop()
            why = f"the file has {self._size} of {self._expected} bytes"
            raise OSError(errno.EIO, why, str(self._path))

    def _read(self, wanted: int) -> bytes:
        try:
            if self._descriptor < 0:
                self._open()
            return self._read_all(wanted)
        except OSError:
            self._drop()
            raise

    def _read_all(self, wanted: int) -> bytes:
        pieces, left = [], wanted
        while left and (piece := os.pread(self._descriptor, left, self._at + wanted - left)):
            pieces.append(piece)
            left -= len(piece)
        if left:
            raise OSError(errno.EIO, "the file is not whole", str(self._path))
        return b"".join(pieces)

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file atomically, even if the process crashes: sync it to disk, then rename it.

    Spark ignores the temporary name, because it begins with a dot.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_synced(temporary, content)
        temporary.replace(path)
    except OSError:  # on a full disk, leave the space to the next attempt
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_synced(path: Path, content: bytes | pa.Buffer) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
