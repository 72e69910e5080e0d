"""The lock on a local captures table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deltatap.delta.lock import LOCK_FILE, locked, one_at_a_time

HOLD = """
import sys
from deltatap.delta.lock import locked
with locked(sys.argv[1]) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


def test_one_driver_holds_a_lock_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with locked(str(tmp_path)) as alone:
            assert not alone
        other.kill()
    with locked(str(tmp_path)) as alone, locked(str(tmp_path)) as again:
        assert (alone, again) == (True, False)
    assert (tmp_path / LOCK_FILE).exists()


def test_the_file_of_another_user_is_locked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK_FILE).touch()
    real = Path.open

    def read_only(path: Path, mode: str) -> object:
        if mode != "rb":
            raise PermissionError
        return real(path, mode)

    monkeypatch.setattr(Path, "open", read_only)
    with locked(str(tmp_path)) as alone, locked(str(tmp_path)) as again:
        assert (alone, again) == (True, False)


def test_without_a_local_folder_there_is_nothing_to_lock(tmp_path: Path) -> None:
    with locked(None) as alone, locked(str(tmp_path / "missing")) as missing:
        assert alone
        assert missing


def test_processes_work_in_a_folder_one_after_the_other(tmp_path: Path) -> None:
    folders = [str(tmp_path / "b" / "c"), str(tmp_path / "a")]
    second = f"""
from deltatap.delta.lock import one_at_a_time
print("asks", flush=True)
with one_at_a_time({folders[::-1]!r}):
    print("works", flush=True)
"""
    with one_at_a_time([*folders, folders[0]]):
        other = subprocess.Popen([sys.executable, "-c", second], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.3)
    assert other.communicate()[0] == "works\n"


def test_a_folder_that_cannot_be_created_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with one_at_a_time([str(tmp_path / "file" / "folder")]):
        pass
