"""The board of a page: states, rates and rows, from what a folder holds."""

from __future__ import annotations

import pytest

from deltatap.messages import Control, Heartbeat, OpenStream
from deltatap.watch.board import DEAD_S, SILENT_S, Board, Finished, Seen, of_epoch

STREAM = OpenStream("r1", "m", "stream", 1.5, 5, "Hello")


def beat(**values: object) -> Heartbeat:
    return Heartbeat(**{"epoch": 1, "claim": "00000-000001-a", "beat": 1, "streams": (STREAM,), **values})  # type: ignore[arg-type]


def seen(
    number: int = 1, *, stop: str | None = None, beats: tuple[Heartbeat, ...] | None = None, **values: object
) -> Seen:
    return Seen("run", Control(1, number, stop=stop), (beat(),) if beats is None else beats, **values)  # type: ignore[arg-type]


def done(ttft_ms: float | None, request_id: str = "r") -> Finished:
    return Finished(request_id, "stream", "completed", "m", ttft_ms, 9.0, None, "text")


def test_without_a_run_it_waits() -> None:
    assert Board().turn(Seen(), 0.0) == {"state": "waiting", "reason": "", "run": ""}


def test_a_running_run() -> None:
    board = Board().turn(
        seen(owed=10, beats=(beat(open=3, rows={"completed": 2}, errors={"server": 1}, cost_usd=0.5),)), 0.0
    )
    assert (board["state"], board["run"], board["owed"], board["done"], board["open"]) == ("running", "run", 10, 2, 3)
    assert (board["errors"], board["cost_usd"], board["workers"]) == ({"server": 1}, 0.5, 1)
    assert board["streams"][0]["text"] == "Hello"


def test_the_time_counts_from_the_first_look_at_the_run() -> None:
    board = Board()
    board.turn(Seen(), 1.0)
    assert [board.turn(seen(number), 4.0 + number)["elapsed_s"] for number in range(3)] == [0.0, 1.0, 2.0]


def test_rates_are_those_of_the_last_seconds() -> None:
    board = Board()
    for second in range(20):
        tokens = 100 * min(second, 10)
        found = board.turn(
            seen(second, beats=(beat(output_tokens=tokens, requests=second, rows={"completed": second}),)), second
        )
    assert (found["tokens_per_s"], found["calls_per_s"], found["rows_per_s"]) == (0.0, 1.0, 1.0)
    assert len(found["drawn"]) == 20
    assert max(tokens for _, tokens, _ in found["drawn"]) == 100.0
    assert [age for age, _, _ in found["drawn"]] == list(range(19, -1, -1))


def test_a_worker_that_starts_again_gives_no_negative_rate() -> None:
    board = Board()
    board.turn(seen(1, beats=(beat(output_tokens=500),)), 0.0)
    assert board.turn(seen(2, beats=(beat(output_tokens=5),)), 1.0)["tokens_per_s"] == 0.0


def test_ttft_is_that_of_rows_once_there_are_some() -> None:
    board = Board()
    assert board.turn(seen(1, beats=(beat(ttft_ms=70.0),)), 0.0)["ttft"] == {"p50": 70.0, "p95": None}
    rows = [done(float(ms)) for ms in range(101)] + [done(None)]
    assert board.turn(seen(2, finished=rows), 0.5)["ttft"] == {"p50": 50.0, "p95": 95.0}


def test_the_latest_rows_come_first() -> None:
    rows = [done(1.0, str(number)) for number in range(20)]
    found = Board().turn(seen(beats=(beat(rows={"completed": 20}),), finished=rows), 0.0)["finished"]
    assert [row["request_id"] for row in found] == [str(number) for number in range(19, 7, -1)]


def test_a_row_is_listed_once_a_heartbeat_counts_it() -> None:
    board = Board()
    rows = [done(1.0, name) for name in "abc"]
    found = board.turn(seen(beats=(beat(rows={"completed": 2}),), finished=rows), 0.0)
    assert (found["done"], [row["request_id"] for row in found["finished"]]) == (2, ["b", "a"])
    found = board.turn(seen(2, beats=(beat(beat=2, rows={"completed": 3}),)), 0.5)
    assert (found["done"], [row["request_id"] for row in found["finished"]]) == (3, ["c", "b", "a"])
    # The heartbeats of the next driver count from zero.
    later = Seen("run", Control(2, 1), (beat(epoch=2, rows={"completed": 1}),), finished=[done(1.0, "d")])
    assert [row["request_id"] for row in board.turn(later, 1.0)["finished"]] == ["d", "c", "b", "a"]


def test_a_run_without_a_plan_is_a_recording() -> None:
    assert Board().turn(seen(), 0.0)["recording"]
    assert not Board().turn(seen(owed=3), 0.0)["recording"]
    assert not Board().turn(seen(beats=()), 0.0)["recording"], "the plan is not written yet"
    assert not Board().turn(seen(stop="ended"), 0.0)["recording"], "the plan is already deleted"
    board = Board()
    board.turn(seen(), 0.0)
    assert board.turn(seen(2, stop="ended"), 0.5)["recording"], "a recording that ends is still one"


@pytest.mark.parametrize(
    ("what", "at", "state", "reason"),
    [
        (seen(1), SILENT_S - 1, "running", ""),
        (seen(1), SILENT_S + 1, "silent", "the driver has sent nothing for 16 s"),
        (seen(2), SILENT_S + 1, "running", ""),
        (seen(1), DEAD_S + 1, "ended", "the driver has sent nothing for 601 s; it is probably dead"),
        (seen(2, stop="stopped"), 1.0, "stopping", "stopping (stopped)"),
        (seen(2, stop="ended"), 1.0, "ended", ""),
        (seen(2, beats=(beat(ended=True),)), 1.0, "stopping", "all workers have ended; the last answers are landing"),
        (seen(2, beats=()), 1.0, "running", "no worker has started yet"),
        (None, 1.0, "ended", ""),
    ],
)
def test_states(what: Seen | None, at: float, state: str, reason: str) -> None:
    board = Board()
    board.turn(seen(1), 0.0)
    found = board.turn(what, at)
    assert (found["state"], found["reason"]) == (state, reason)


def test_at_the_end_the_last_numbers_stay() -> None:
    board = Board()
    board.turn(seen(owed=3, beats=(beat(rows={"completed": 3}),)), 0.0)
    found = board.turn(None, 1.0)
    assert (found["state"], found["done"], found["streams"]) == ("ended", 3, [])


def test_heartbeats_of_earlier_drivers_do_not_count() -> None:
    old, new = beat(epoch=1), beat(epoch=2)
    assert of_epoch([old, new], Control(2, 1)) == [new]
    assert of_epoch([], Control(2, 1)) == []
