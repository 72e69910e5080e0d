"""Which storage errors are temporary, how long an operation is repeated, and how a reader handles an incomplete
file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.files import PASSING, Files, Pace, wait_after, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable


class Time:
    """A clock that only sleeping moves, and the sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def files(time: Time) -> Files:
    return Files(clock=time.clock, sleep=time.sleep)


def failing(call: Callable[..., Any], *numbers: int | None) -> Callable[..., Any]:
    """A function that fails with each of these errors, then succeeds. None stands for a success."""
    left = list(numbers)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if left and (number := left.pop(0)) is not None:
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return wrapped


@pytest.mark.parametrize(
    ("number", "must_exist", "since_s", "repeats"),
    [
        *((getattr(errno, name), False, 0.0, True) for name in ("EAGAIN", "EPERM", "EIO", "ESTALE", "ENOSYS", "EBUSY", "ETIMEDOUT")),
        (errno.EIO, False, 59.9, True),
        (errno.EIO, False, 60.0, False),
        (errno.ENOENT, False, 0.0, False),
        (errno.ENOENT, True, 0.0, True),
        (errno.ENOENT, True, 60.0, False),
        *((getattr(errno, name), True, 0.0, False) for name in ("EACCES", "EROFS", "ENOTDIR", "ENOSPC", "EINVAL", "EISDIR")),
    ],
)  # fmt: skip
def test_which_errors_are_temporary(number: int, must_exist: bool, since_s: float, repeats: bool) -> None:  # noqa: FBT001 - parameters
    wait_s = wait_after(OSError(number, "x"), 0, since_s, patience_s=60.0, must_exist=must_exist)
    assert (wait_s is not None) == repeats


def test_an_error_without_a_number_is_final() -> None:
    assert wait_after(OSError("x"), 0, 0.0, patience_s=60.0) is None


def test_waits_grow_up_to_a_second() -> None:
    waits = [wait_after(OSError(errno.EIO, "x"), tries, 0.0, patience_s=60.0) for tries in (0, 1, 2, 9, 10_000)]
    assert waits == [0.05, 0.1, 0.2, 1.0, 1.0]


def test_a_call_is_repeated_until_it_succeeds(files: Files, time: Time) -> None:
    assert files.repeat(failing(lambda: 7, errno.EAGAIN, errno.EPERM, errno.EIO)) == 7
    assert time.slept == [0.05, 0.1, 0.2]


def test_a_call_that_always_fails_ends_with_its_error(files: Files, time: Time) -> None:
    with pytest.raises(OSError, match="Stale file handle"):
        files.repeat(failing(lambda: 7, *[errno.ESTALE] * 1000))
    assert 60 <= time.now < 62


def test_a_message_is_not_repeated(files: Files, time: Time) -> None:
    with pytest.raises(OSError, match="Input/output"):
        files.at_once().repeat(failing(lambda: 7, errno.EIO))
    assert time.slept == []


@pytest.mark.parametrize("per_s", [1, 2, 5, 100])
def test_no_second_has_more_files_than_the_bound(per_s: int) -> None:
    pace, now, times = Pace(per_s), 0.0, []
    for at in range(60):
        now += 0.3 if at == 20 else 0.0
        now += pace.wait_s(now)
        times.append(now)
    assert max(sum(1 for other in times if at <= other < at + 1 - 1e-9) for at in times) <= per_s
    assert times[-1] <= 60 / per_s + 1, "no slower than the bound"


def test_messages_and_other_files_share_the_bound(tmp_path: Path, time: Time) -> None:
    files = Files(2, clock=time.clock, sleep=time.sleep)
    messages, journal = files.messages(), files.at_once()
    for at in range(6):
        (messages, files, journal)[at % 3].write(tmp_path / str(at), b"x")
    assert time.now == 2.0


def test_a_message_does_not_wait_for_other_files(tmp_path: Path, time: Time) -> None:
    files = Files(5, clock=time.clock, sleep=time.sleep)
    messages = files.messages()
    for at in range(9):
        files.write(tmp_path / str(at), b"x")
        if at % 3 == 2:
            now = time.now
            messages.write(tmp_path / "beat", b"x")
            messages.write(tmp_path / "control", b"x")
            assert time.now == now
    assert time.now == 2.0, "3 other files per second"


def test_listings_that_fail_are_never_empty(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Path.glob` returns nothing for a folder that it may not read."""
    (tmp_path / "a.x").touch()
    (tmp_path / "b.y").touch()
    monkeypatch.setattr(Path, "iterdir", failing(Path.iterdir, errno.EPERM, errno.EAGAIN))
    assert files.names(tmp_path, ".x") == [tmp_path / "a.x"]
    monkeypatch.setattr(Path, "iterdir", failing(Path.iterdir, *[errno.EPERM] * 1000))
    with pytest.raises(PermissionError):
        files.names(tmp_path)
    with pytest.raises(PermissionError):
        files.at_once().names(tmp_path)


def test_a_folder_that_does_not_exist_is_empty(files: Files, tmp_path: Path) -> None:
    assert files.names(tmp_path / "none") == []
    assert not files.exists(tmp_path / "none")


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_a_write_is_repeated_and_leaves_one_file(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    errors = (errno.EAGAIN, errno.EPERM, errno.EIO)
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", failing(os.fsync, *errors))
    else:
        monkeypatch.setattr(Path, where, failing(getattr(Path, where), *errors))
    files.write(tmp_path / "x", b"abc")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"abc")]


def test_a_folder_that_appears_late_is_waited_for(tmp_path: Path) -> None:
    time = Time()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.now > 3:
            (tmp_path / "folder").mkdir(exist_ok=True)

    Files(clock=time.clock, sleep=sleep).write(tmp_path / "folder" / "x", b"abc")
    assert (tmp_path / "folder" / "x").read_bytes() == b"abc"
    assert time.now > 3


def test_without_a_rename_the_file_is_written_in_place(
    files: Files, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames: list[None] = []

    def missing(*_: object) -> None:
        renames.append(None)
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", missing)
        for content in (b"abc", b"de"):
            files.write(tmp_path / "x", content)
            assert (tmp_path / "x").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert len(renames) == 1, "it is not tried again at once"
    time.now += 61
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: missing())
        files.write(tmp_path / "x", b"f")
    assert len(renames) == 2
    assert (tmp_path / "x").read_bytes() == b"f"


def test_a_full_disk_is_not_waited_for(
    files: Files, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "x", b"abc")
    assert (time.slept, list(tmp_path.iterdir())) == ([], [])


def test_a_file_is_read_again_until_it_is_complete(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    halves = iter([b"12", b"", b"1234"])
    monkeypatch.setattr(Path, "read_bytes", lambda _: next(halves))

    def whole(content: bytes) -> int:
        if len(content) != 4:
            raise ValueError(content)
        return int(content)

    assert files.load(tmp_path / "x", whole) == 1234


def test_a_file_that_stays_damaged_is_an_error_and_a_missing_one_is_none(
    files: Files, time: Time, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"?")
    with pytest.raises(OSError, match="the file is not whole"):
        files.load(tmp_path / "x", int)
    assert time.now >= 60
    assert files.load(tmp_path / "y", int) is None
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "y", int, must_exist=True)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"a": list(range(5000)), "b": ["x"] * 5000}), tmp_path / "t.parquet", row_group_size=500)
    return tmp_path / "t.parquet"


def test_reads_that_fail_or_are_short_are_repeated(files: Files, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, calls = os.pread, 0

    def poor(descriptor: int, size: int, at: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(descriptor, max(1, size // 2) if calls % 3 == 1 else size, at) if calls % 7 else b""

    monkeypatch.setattr(os, "pread", poor)
    with files.open(table) as file:
        assert pq.ParquetFile(file).read()["a"].to_pylist() == list(range(5000))
    assert calls > 3


def test_an_incomplete_file_is_not_used(files: Files, time: Time, table: Path) -> None:
    content = table.read_bytes()
    table.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=f"has {len(content) // 2} of {len(content)} bytes"):
        files.open(table, len(content))
    assert time.now >= 60


def test_a_file_whose_size_is_known_is_waited_for(tmp_path: Path, table: Path) -> None:
    time, content = Time(), table.read_bytes()
    table.unlink()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.now > 10:
            (tmp_path / "t.parquet").write_bytes(content)

    with Files(clock=time.clock, sleep=sleep).open(table, len(content)) as file:
        assert file.read() == content
    with pytest.raises(FileNotFoundError):
        Files().open(tmp_path / "none")


def test_the_file_system_says_whether_a_folder_is_empty(files: Files, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").touch()
    assert not files.delete_empty(tmp_path / "f")
    (tmp_path / "f" / "x").unlink()
    assert files.delete_empty(tmp_path / "f")
    assert files.delete_empty(tmp_path / "f"), "it is gone"


def test_a_move_without_a_rename_is_a_copy(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    monkeypatch.setattr(Path, "replace", failing(Path.replace, *[errno.ENOSYS] * 9))
    files.move(tmp_path / "x", tmp_path / "y")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("y", b"abc")]


def test_permission_denied_is_not_a_temporary_error() -> None:
    """So that a wrong state.dir is reported at once."""
    assert errno.EACCES not in PASSING


def test_a_temporary_file_that_cannot_be_deleted_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO))
    monkeypatch.setattr(Path, "unlink", failing(Path.unlink, errno.EPERM))
    with pytest.raises(OSError, match="Input/output"):
        write_whole(tmp_path / "x", b"abc")
