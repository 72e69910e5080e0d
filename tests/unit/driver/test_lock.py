"""The lock on a local captures table."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from deltatap.driver.lock import NAME, locked

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from deltatap.driver.lock import locked
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
    assert (tmp_path / NAME).exists()


def test_without_a_local_folder_there_is_nothing_to_lock(tmp_path: Path) -> None:
    with locked(None) as alone, locked(str(tmp_path / "missing")) as missing:
        assert alone
        assert missing
