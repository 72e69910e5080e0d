"""Open streams between runs: carried over from a dead run, left by a stopped run, taken by the next run, without
Spark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deltatap.delta.identity import Identity
from deltatap.driver import resuming
from deltatap.messages import KeptStream
from deltatap.settings_loading import load_settings
from deltatap.state import RunState

STREAM = KeptStream("a", "hash", "stream", "sim", 900.0, "resp_1", 7)


@dataclass
class Lease:
    captures: Identity = field(default_factory=lambda: Identity("captures", "table-1"))


@dataclass
class Active:
    """The parts of a run that these steps need."""

    settings: Any
    state: RunState
    lease: Lease = field(default_factory=Lease)
    spark: Any = None


def active(folder: Path, name: str, table: str = "table-1", **capture: Any) -> Any:
    settings = load_settings(
        {
            "endpoint": {"api": "responses", "api_key": None},
            "capture": {"resume": True, **capture},
            "state": {"dir": str(folder)},
        }
    )
    state = RunState.of(folder, name)
    state.prepare()
    return Active(settings, state, Lease(Identity("captures", table)))


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str, str]]:
    found: set[tuple[str, str, str]] = set()
    monkeypatch.setattr(resuming, "_settled", lambda *_: found)
    return found


def ids(run: Any) -> list[str | None]:
    return [stream.response_id for stream in run.state.kept_streams().values()]


def test_a_dead_run_s_kept_streams_are_carried_over(tmp_path: Path) -> None:
    dead = RunState.of(tmp_path, "dead")
    dead.prepare()
    dead.note_kept("00000-000001-x", [STREAM])
    run = active(tmp_path, "next")
    resuming.carry(run.settings, run.lease.captures, dead)
    dead.remove()
    every = active(tmp_path, "all", owed="all")
    resuming.take(every)
    assert ids(every) == []
    resuming.take(run)
    assert ids(run) == ["resp_1"]


def test_a_run_leaves_its_unsettled_streams_to_the_next(tmp_path: Path, settled: set[tuple[str, str, str]]) -> None:
    run = active(tmp_path, "stopped")
    other = KeptStream("b", "hash", "stream", "sim", 900.0, "resp_2")
    unseen = KeptStream("c", "hash", "stream", "sim", 900.0)
    run.state.note_kept("claim", [STREAM, other, unseen])
    settled.add(("b", "hash", "stream"))
    resuming.leave(run)
    run.state.remove()
    elsewhere = active(tmp_path, "elsewhere", table="table-2")
    resuming.take(elsewhere)
    assert ids(elsewhere) == []
    following = active(tmp_path, "following")
    resuming.take(following)
    assert ids(following) == ["resp_1"]
    assert not (tmp_path / ".left").exists()


def test_with_owed_all_a_run_takes_only_its_own_streams(tmp_path: Path) -> None:
    first = active(tmp_path, "first")
    first.state.note_kept("claim", [STREAM])
    resuming.leave(first)
    other = active(tmp_path, "other", owed="all")
    resuming.take(other)
    assert ids(other) == []
    first.state.remove()
    again = active(tmp_path, "first", owed="all")
    resuming.take(again)
    assert ids(again) == ["resp_1"]


def test_a_run_without_kept_streams_leaves_nothing(tmp_path: Path) -> None:
    run = active(tmp_path, "done")
    resuming.take(run)
    resuming.leave(run)
    assert not (tmp_path / ".left").exists()


def test_streams_that_cannot_be_read_are_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, following = active(tmp_path, "first"), active(tmp_path, "following")
    first.state.note_kept("claim", [STREAM])
    resuming.leave(first)

    def fails(path: Path) -> bytes:
        raise PermissionError(13, "not now", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fails)
        with pytest.raises(OSError, match="not now"):
            resuming.take(following)
    resuming.take(following)
    assert ids(following) == ["resp_1"]
