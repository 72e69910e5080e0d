from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from deltatap.errors import ConfigError
from deltatap.messages import Control, Heartbeat
from deltatap.state import RunState, write_whole

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    made = RunState(tmp_path / "state" / "run-1")
    made.prepare()
    return made


def test_what_is_said_is_heard(state: RunState) -> None:
    assert state.control() is None
    control = Control(3, 7, {"a": 2}, 12.5, "stopped", 1.0)
    state.publish(control)
    assert state.control() == control
    beat = Heartbeat(3, "00002-000001-x", 1, open=2, rows={"completed": 1}, fatal="oh")
    state.beat(beat)
    assert state.heartbeats() == [beat]
    assert beat.part == "00002"


def test_a_reader_sees_all_of_a_file_or_nothing(tmp_path: Path) -> None:
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


def test_the_newest_claim_holds_its_part(state: RunState) -> None:
    plan = state.plan(1)
    first, other = plan.claim(0), plan.claim(1)
    assert plan.holds(first)
    second = plan.claim(0)
    assert not plan.holds(first)
    assert plan.holds(second)
    assert plan.holds(other)


def test_of_two_claims_at_once_one_holds(state: RunState) -> None:
    plan = state.plan(1)
    (plan.folder / "claims").mkdir(parents=True)
    names = ["00000-000001-aaaa", "00000-000001-bbbb"]
    for name in names:
        (plan.folder / "claims" / name).touch()
    assert [plan.holds(name) for name in names] == [False, True]


def test_a_state_that_has_landed_goes_but_for_what_was_set_aside(state: RunState) -> None:
    state.publish(Control(1, 1))
    (state.aside / "broken.parquet").write_bytes(b"x")
    state.remove()
    assert [path.name for path in state.folder.rglob("*")] == ["aside", "broken.parquet"]
    (state.aside / "broken.parquet").unlink()
    state.remove()
    assert not state.folder.exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"state.dir: .*file: cannot be written: Not a directory"):
        RunState(tmp_path / "file" / "run").prepare()
