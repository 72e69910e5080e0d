"""The content of a state folder for a watcher, while files appear and disappear."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from deltatap.messages import Control, Heartbeat, OpenStream
from deltatap.plan_state import PlanState
from deltatap.state import RunState
from deltatap.watch.board import DEAD_S, Seen
from deltatap.watch.folder import Folder
from deltatap.worker.rows import JOURNAL_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def prepared(folder: Path, run_id: str = "run", epoch: int = 1) -> RunState:
    state = RunState.of(folder, run_id)
    state.prepare()
    state.publish(Control(epoch, 1))
    return state


def journaled(state: RunState, name: str, *texts: str) -> Path:
    rows = [
        {"request_id": text, "mode": "stream", "status": "completed", "text": text, "ttft_ms": 5.0} for text in texts
    ]
    path = state.journal / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, JOURNAL_SCHEMA), path)
    return path


def found(folder: Folder) -> Seen:
    seen = folder.look()
    assert seen is not None
    return seen


def test_it_waits_for_a_run_and_ends_with_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert found(folder) == Seen()
    state = prepared(tmp_path, "späte Läufe: 1")
    assert found(folder).run_id == "späte Läufe: 1"
    state.remove()
    assert folder.look() is None


def test_each_row_is_shown_once_and_damaged_files_are_skipped(tmp_path: Path) -> None:
    state, folder = prepared(tmp_path), Folder(tmp_path)
    first = journaled(state, "a", "one", "two")
    assert [row.request_id for row in found(folder).finished] == ["one", "two"]
    (state.journal / "broken.parquet").write_bytes(b"PAR1")
    journaled(state, "b", "three")
    assert [row.text for row in found(folder).finished] == ["three"]
    first.unlink()
    assert found(folder).finished == ()


def test_a_heartbeat_brings_its_open_streams(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    stream = OpenStream("r", "m", "stream", 1.0, 2, "Hi")
    state.beat(Heartbeat(1, "00000-000001-a", 1, streams=(stream,)))
    (beat,) = found(Folder(tmp_path)).heartbeats
    assert beat.streams == (stream,)


def test_the_folder_of_a_killed_run_is_not_watched(tmp_path: Path) -> None:
    old = prepared(tmp_path, "dead")
    past = time.time() - DEAD_S - 60
    os.utime(old.folder / "control.json", (past, past))
    assert found(Folder(tmp_path)) == Seen()
    prepared(tmp_path, "alive")
    # The next driver lands its journal under its own epoch, and removes the folder.
    old.beat(Heartbeat(1, "00000-000001-a", 1))
    old.publish(Control(2, 1, stop="ended"))
    prepared(tmp_path, "waiting").publish(Control(2, 0, stop="completed"))  # for the next round of capture.follow_s
    assert Folder(tmp_path).active() == ["alive"]
    assert found(Folder(tmp_path)).run_id == "alive"


def test_a_resumed_run_is_watched_before_its_new_workers_start(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    state.beat(Heartbeat(1, "00000-000001-a", 1))
    state.publish(Control(2, 1))
    seen = found(Folder(tmp_path))
    assert (seen.run_id, list(seen.heartbeats)) == ("run", [])


def test_a_heartbeat_of_an_older_version_has_no_streams(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    (state.folder / "workers" / "x.json").write_text('{"epoch": 1, "claim": "00000-000001-x", "beat": 1}')
    assert found(Folder(tmp_path)).heartbeats[0].streams == ()


def test_a_part_that_is_not_whole_yet_does_not_end_the_page(tmp_path: Path) -> None:
    state, folder = prepared(tmp_path), Folder(tmp_path)
    plan = state.plan(1)
    plan.parts.mkdir(parents=True)
    part = plan.parts / "part-00000-a.parquet"
    part.write_bytes(b"PAR1")
    assert found(folder) == Seen()
    pq.write_table(pa.table({"x": [1, 2, 3]}), part)
    assert found(folder).owed == 3


def test_a_part_that_vanishes_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark can fail to write a plan, and write it again."""
    state, folder = prepared(tmp_path), Folder(tmp_path)
    state.plan(1).parts.mkdir(parents=True)
    listed = [state.plan(1).parts / f"part-0000{at}-a.parquet" for at in range(2)]
    pq.write_table(pa.table({"x": [1, 2, 3]}), listed[0])
    monkeypatch.setattr(PlanState, "part_files", lambda _: listed)
    journaled(state, "a", "one")
    seen = found(folder)
    assert (seen.run_id, seen.owed, [row.text for row in seen.finished]) == ("run", 3, ["one"])
    pq.write_table(pa.table({"x": [4]}), listed[1])
    assert found(folder).owed == 4, "a plan is counted again until a worker has it"
    state.beat(Heartbeat(1, "00000-000001-a", 1))
    assert found(folder).owed == 4
    listed.clear()
    assert found(folder).owed == 4
    state.remove()
    assert folder.look() is None


def test_a_damaged_message_is_not_the_end(tmp_path: Path) -> None:
    state, folder = prepared(tmp_path), Folder(tmp_path)
    folder.look()
    before = (state.folder / "control.json").read_bytes()
    journaled(state, "a", "one")
    good = found(folder)
    assert good.finished
    for damaged in (b"", b"{", b"[]", b"\xff"):
        (state.folder / "control.json").write_bytes(damaged)
        assert (found(folder).control, found(folder).finished) == (good.control, ())
    (state.folder / "control.json").write_bytes(before)
    assert found(folder).run_id == "run"


def test_a_damaged_message_from_the_start_is_no_run(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    (state.folder / "control.json").write_bytes(b"{")
    assert found(Folder(tmp_path)) == Seen()
