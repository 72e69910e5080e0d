from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from deltatap.driver import control
from deltatap.messages import POLL_S, Heartbeat
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def beats(count: int, *, ended: int = 0) -> list[Heartbeat]:
    return [Heartbeat(1, f"{at:05d}-000001-x", 1, ended=at < ended) for at in range(count)]


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 5000), st.integers(1, 5000))
def test_shares_stay_within_the_limits_of_run_and_worker(workers: int, ended: int, streams: int, most: int) -> None:
    shares = control.shares(beats(workers, ended=ended), streams, most)
    assert len(shares) == max(0, workers - ended)
    assert sum(shares.values()) <= streams
    assert max(shares.values(), default=0) <= most
    if shares and streams // len(shares) < most:
        assert sum(shares.values()) == streams, "all streams are assigned"


def test_only_the_newest_claim_of_a_part_gets_a_share() -> None:
    older, newer = Heartbeat(1, "00000-000001-b", 9), Heartbeat(1, "00000-000002-a", 1)
    assert control.shares([newer, older], 10, 100) == {newer.claim: 10}


def test_a_part_whose_newest_claim_has_ended_gets_no_share() -> None:
    older, newer = Heartbeat(1, "00000-000001-b", 9), Heartbeat(1, "00000-000002-a", 1, ended=True)
    assert control.shares([older, newer], 10, 100) == {}


def test_the_mean_output_ignores_workers_without_a_mean() -> None:
    known = [Heartbeat(1, "a", 1, mean_output_tokens=tokens) for tokens in (10.0, 30.0)]
    assert control.mean_output_tokens([Heartbeat(1, "b", 1), *known]) == 20.0
    assert control.mean_output_tokens([Heartbeat(1, "b", 1)]) is None


def test_a_backlog_is_more_journal_files_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_JOURNAL_FILES", 2)
    state = RunState(tmp_path / "run")
    state.prepare()
    for at in range(3):
        assert not control.backlog(state)
        (state.journal / f"{at}.parquet").touch()
    assert control.backlog(state)


def test_the_schedule_begins_when_the_workers_of_all_parts_are_ready() -> None:
    opening = control.Opening(3)
    assert opening.turn([], 100.0) is None
    assert opening.turn(beats(2), 101.0) is None
    begins_at = opening.turn(beats(3), 102.0)
    assert begins_at == 102.0 + 2 * POLL_S, "every worker reads it before"
    assert opening.turn(beats(3), 110.0) == begins_at, "a new attempt follows the same schedule"


def test_two_attempts_at_a_part_are_one_worker() -> None:
    again = Heartbeat(1, "00000-000002-y", 1)
    assert control.Opening(2).turn([*beats(1), again], 100.0) is None


def test_the_schedule_does_not_wait_for_workers_without_a_slot() -> None:
    opening = control.Opening(3)
    assert opening.turn(beats(1), 100.0) is None
    assert opening.turn(beats(1), 129.9) is None
    assert opening.turn(beats(1), 130.0) is not None
