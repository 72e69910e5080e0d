from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import pytest

from tools import setup

if TYPE_CHECKING:
    from pathlib import Path


def test_kept_files_are_intact_until_one_is_damaged_or_missing(tmp_path: Path) -> None:
    files = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    fetched, folder = tmp_path / "fetched", tmp_path / "folder"
    fetched.mkdir()
    for name in files:
        (fetched / name).write_bytes(name.encode())
    assert not setup.intact(folder, files)
    setup.keep(fetched, folder, files)
    assert setup.intact(folder, files)
    (folder / "two").write_bytes(b"damaged")
    assert not setup.intact(folder, files)
    (folder / "two").unlink()
    assert not setup.intact(folder, files)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jar").write_bytes(b"forged")
    with pytest.raises(SystemExit, match=r"jar has sha256 .* not the pinned 00ff"):
        setup.keep(tmp_path, tmp_path / "folder", {"jar": "00ff"})
    assert not (tmp_path / "folder/jar").exists()


def test_a_stamp_is_valid_while_the_pins_and_the_python_exist_unchanged(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("uv==1")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert not setup.stamped(tmp_path / "venv", pins)
    setup.stamp(tmp_path / "venv", pins)
    assert setup.stamped(tmp_path / "venv", pins)
    pins.write_text("uv==2")
    assert not setup.stamped(tmp_path / "venv", pins)
    setup.stamp(tmp_path / "venv", pins)
    python.unlink()
    python.symlink_to(tmp_path / "removed")
    assert not setup.stamped(tmp_path / "venv", pins)


def test_a_failing_command_shows_its_output_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    setup.run([sys.executable, "-c", "print('quiet')"], "it failed", "do this")
    with pytest.raises(SystemExit, match="setup: it failed\nsetup: do this"):
        setup.run([sys.executable, "-c", "import sys; sys.exit('why')"], "it failed", "do this")
    assert capsys.readouterr() == ("", "why\n")
