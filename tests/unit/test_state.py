from __future__ import annotations

import errno
import os
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from deltatap.errors import ConfigError
from deltatap.files import Files, write_whole
from deltatap.messages import Control, Heartbeat, Permit
from deltatap.state import RunState, folder_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    made = RunState(tmp_path / "state" / "run-1")
    made.prepare()
    made.plan(1).prepare()
    return made


def test_messages_arrive_as_sent(state: RunState) -> None:
    assert state.control() is None
    control = Control(3, 7, {"a": 2}, 12.5, "stopped", 1.0)
    state.publish(control)
    assert state.control() == control
    limited = replace(control, permits={"a": Permit(3, 1, 50.0)}, mean_output_tokens=80.0)
    state.publish(limited)
    assert state.control() == limited
    beat = Heartbeat(3, "00002-000001-x", 1, open=2, rows={"completed": 1}, fatal="oh")
    state.beat(beat)
    assert state.heartbeats() == [beat]
    assert beat.part == "00002"


def test_a_reader_sees_a_whole_file_or_none(tmp_path: Path) -> None:
    path, over = tmp_path / "x", threading.Event()
    write_whole(path, b"a" * 10_000)

    def write() -> None:
        for at in range(40):
            write_whole(path, bytes([97 + at % 26]) * 10_000)
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not over.is_set():
        content = path.read_bytes()
        assert len(content) == 10_000
        assert len(set(content)) == 1
    thread.join()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_only_unreadable_files_remain_of_a_landed_run(state: RunState) -> None:
    state.publish(Control(1, 1))
    (state.aside / "broken.parquet").write_bytes(b"x")
    state.remove()
    assert [path.name for path in state.folder.rglob("*")] == ["aside", "broken.parquet"]
    (state.aside / "broken.parquet").unlink()
    state.remove()
    assert not state.folder.exists()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"state.dir: .*file: cannot be written: Not a directory"):
        RunState(tmp_path / "file" / "run").prepare()


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def observed(descriptor: int) -> None:
        assert not (tmp_path / "x").exists()
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", observed)
    write_whole(tmp_path / "x", b"abc")
    assert synced == [3], "flushed before it is synced"
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_a_request_to_stop_holds_until_it_is_discarded(state: RunState) -> None:
    assert not state.asked_to_stop(7)
    state.forget_stop()
    state.ask_to_stop()
    assert state.asked_to_stop(7)
    state.forget_stop()
    assert not state.asked_to_stop(7)


def test_a_request_to_stop_is_for_one_driver(state: RunState) -> None:
    """An old listing can show a request that was discarded."""
    state.ask_to_stop(6)
    assert not state.asked_to_stop(7)
    state.ask_to_stop(7)
    assert state.asked_to_stop(7)


def test_an_incomplete_message_is_not_used(state: RunState) -> None:
    state.publish(Control(3, 7, {"a": 2}))
    whole = (state.folder / "control.json").read_bytes()
    now = state.at_once()
    for size in range(len(whole)):
        (state.folder / "control.json").write_bytes(whole[:size])
        with pytest.raises(OSError, match="not whole"):
            now.control()
    now.beat(Heartbeat(3, "00000-1-a", 1))
    now.beat(Heartbeat(3, "00001-1-b", 1))
    (state.folder / "workers" / "00000-1-a.json").write_bytes(b'{"epoch": 3')
    assert [beat.claim for beat in now.heartbeats()] == ["00001-1-b"]


def test_a_journal_is_only_removed_if_no_capture_is_in_it(state: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    (state.journal / "a.parquet").touch()
    (state.journal / ".b.parquet.tmp").touch()
    monkeypatch.setattr(Files, "names", lambda *_: [])  # an old listing
    assert not state.remove_journal()
    assert (state.journal / "a.parquet").exists()
    monkeypatch.undo()
    (state.journal / "a.parquet").unlink()
    assert state.remove_journal()
    assert not state.journal.exists()


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", b"abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_id", ["run-1", "20261125T101112-0a1b2c", "1.2_3", "a..b", "x" * 128])
def test_a_safe_run_id_is_its_folder(run_id: str) -> None:
    assert folder_of(run_id) == run_id


ODD_IDS = [
    "nightly:2026-11-25", "a/b", "../../x", "..", ".", ".hidden", "_ignored", "-x", "it's", 'a"b', "back\\slash", "ü",
    "😀", "x" * 129, "é" * 300, "100%", "a%20b", "a#b", "a?b", "*", "[1]", "{a,b}", "a b", " ", "a~b", "${x}", "a+b",
]  # fmt: skip


@pytest.mark.parametrize("run_id", ODD_IDS)
def test_any_other_run_id_has_a_folder_whose_name_is_safe(run_id: str, tmp_path: Path) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*~[0-9a-f]{16}", folder_of(run_id))
    assert len(folder_of(run_id)) < 64
    state = RunState.of(tmp_path, run_id)
    state.prepare()
    assert state.folder.parent == tmp_path
    assert RunState(state.folder).name == run_id


def test_different_run_ids_have_different_folders() -> None:
    assert folder_of("\udcff") != folder_of("\udcfe")  # an argument that is not valid UTF-8
    alike = [*ODD_IDS, "nightly/2026-11-25", "nightly 2026-11-25", "nightly-2026-11-25", folder_of("a:b"), "a:b"]
    assert len({folder_of(run_id) for run_id in alike}) == len(alike)


def test_the_folder_of_an_older_version_gets_a_name_that_spark_can_read(tmp_path: Path) -> None:
    old = tmp_path / "nightly:1"
    (old / "journal").mkdir(parents=True)
    (old / "journal" / "nightly:1-00000-000001-ab.0.parquet").touch()
    (old / "journal" / "other.parquet").touch()
    state = RunState.of(tmp_path, "nightly:1")
    for _ in range(2):
        state.adopt()
        names = sorted(path.name for path in state.journal.iterdir())
        assert names == [f"{state.folder.name}-00000-000001-ab.0.parquet", "other.parquet"]
    assert not old.exists()


@pytest.mark.parametrize("run_id", ["../other", "other/journal", "."])
def test_no_folder_but_a_runs_own_is_renamed(run_id: str, tmp_path: Path) -> None:
    (tmp_path / "other" / "journal").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    RunState.of(tmp_path / "state", run_id).adopt()
    RunState.of(tmp_path, run_id).adopt()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["journal", "other", "state"]


def test_messages_of_another_version_are_read(tmp_path: Path) -> None:
    state = RunState(tmp_path / "run")
    state.prepare()
    (state.folder / "control.json").write_text(
        '{"epoch": 3, "beat": 1, "permits": {"c": {"requests": 2, "new": 1}}, "new": {}}'
    )
    found = state.control()
    assert found is not None
    assert (found.epoch, found.shares, found.permits) == (3, {}, {"c": Permit(2)})
    (state.folder / "workers/c.json").write_text(
        '{"epoch": 3, "claim": "c", "beat": 2, "new": 1, "parked": [{"refusal": {"type": "t", "message": "m", "model": "a", '
        '"request_id": "r", "new": 1}, "requests": 4, "new": 1}]}'
    )
    (beat,) = state.heartbeats()
    assert (beat.beat, beat.open, beat.parked[0].requests, beat.parked[0].refusal.model) == (2, 0, 4, "a")
    (state.folder / "control.json").write_text('{"epoch": 3, "beat": 1}')
    assert state.control() == Control(3, 1)
