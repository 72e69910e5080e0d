"""Which broken answers a worker resumes, and when; the list of its open streams; an engine that resumes."""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import config
from deltatap.api.registry import specification
from deltatap.files import Files
from deltatap.messages import KeptStream
from deltatap.model import Call, Capture, CaptureError, Chunks, Job, Received, Request, Wire
from deltatap.state import RunState
from deltatap.worker.engine import Engine
from deltatap.worker.kept_streams import KeptStreamsFile
from deltatap.worker.resuming import Resuming

if TYPE_CHECKING:
    from deltatap.http.resumable import Resumable

API = specification("responses")
LIMITS = config.Capture(max_attempts=3, max_broken=2, retry_for_s=60)
LOST = CaptureError("stream_interrupted", None, "reset")
WIRE = Wire("{}", "m", "stream", 1, resumable=True)


def job(name: str = "a", wire: Wire = WIRE) -> Job:
    return Job(Request(name, "hash", "m", "{}", None, None), wire, "stream", 0, [], time.perf_counter())


def ended(error: CaptureError | None, status: Any = "interrupted") -> Call:
    return Call(1000.0, 1001.0, 0.0, 1.0, 1.0, 1.0, None, Received(Chunks()), status, error, 200)


def event(number: int, kind: str = "response.output_text.delta", **fields: Any) -> bytes:
    return json.dumps({"type": kind, "sequence_number": number, **fields}).encode()


def broken(resuming: Resuming, the_job: Job, numbers: range, error: CaptureError = LOST) -> Call:
    """A call that received the events with these numbers, and broke."""
    answer = resuming.answer(the_job, WIRE)
    reading, after = answer.readable, answer.after
    live = answer.begin(API.accumulator(), 1000.0)
    for number in numbers:
        if number == 0:
            live.add(event(0, "response.created", response={"id": "resp_1"}), 1.0, 0)
        else:
            live.add(event(number, delta="x", output_index=0, content_index=0), 2.0, number)
    answer.interrupt(answer.late_ms, kernel=True)
    answer.call = answer.ended(ended(error), after, reading=reading)
    return answer.call


def delay(resuming: Resuming, the_job: Job, call: Call, now: float = 0.0) -> float | None:
    read = resuming.next_read(the_job, call, LIMITS, now=now, jitter=1.0)
    assert read is not None
    return None if read.retry is None else read.retry.delay_s


def test_a_broken_stream_is_resumed_at_once_then_with_backoff_until_deltatap_gives_up() -> None:
    resuming, one = Resuming("e"), job()
    assert delay(resuming, one, broken(resuming, one, range(3))) == 0
    waits = [delay(resuming, one, broken(resuming, one, range(0))) for _ in range(4)]
    assert waits[0] == 0 or waits[0] is not None
    assert waits[-1] is None
    assert waits[1] is None or waits[1] > 0


def test_anything_new_begins_the_count_again() -> None:
    resuming, one = Resuming("e"), job()
    for start in range(20):
        assert delay(resuming, one, broken(resuming, one, range(start, start + 1))) == 0


def test_a_server_that_says_when_decides_and_waits_end_with_retry_for_s() -> None:
    resuming, one = Resuming("e"), job()
    delay(resuming, one, broken(resuming, one, range(3)))
    limited = CaptureError("rate_limit", None, "slow down", 429, 7.0)
    assert delay(resuming, one, broken(resuming, one, range(0), limited)) == 7.0
    assert delay(resuming, one, broken(resuming, one, range(0), limited), now=30.0) == 7.0
    assert delay(resuming, one, broken(resuming, one, range(0), limited), now=55.0) is None


def test_a_slow_answer_is_waited_for_longer_than_a_broken_connection() -> None:
    resuming, one = Resuming("e"), job()
    idle = CaptureError("timeout", "idle", "no more bytes")
    delay(resuming, one, broken(resuming, one, range(1)))
    for _ in range(5):
        assert delay(resuming, one, broken(resuming, one, range(0), idle)) is not None


@pytest.mark.parametrize(
    "error",
    [
        CaptureError("internal", "cut", "x"),
        CaptureError("cancelled", None, "x"),
        CaptureError("timeout", "total", "x"),
        CaptureError("authentication", None, "x", 401),
    ],
)
def test_the_usual_rules_apply_to_other_errors(error: CaptureError) -> None:
    resuming, one = Resuming("e"), job()
    call = broken(resuming, one, range(3), error)
    assert resuming.next_read(one, call, LIMITS, now=0.0, jitter=0.0) is None


def test_a_call_without_resume_is_never_resumed() -> None:
    resuming = Resuming("e")
    plain = replace(WIRE, resumable=False)
    one = job(wire=plain)
    answer = resuming.answer(one, plain)
    live = answer.begin(API.accumulator(), 1000.0)
    live.add(event(0, "response.created", response={"id": "resp_1"}), 1.0, 0)
    answer.interrupt(answer.late_ms, kernel=True)
    answer.call = answer.ended(ended(LOST), None, reading=False)
    assert resuming.next_read(one, answer.call, LIMITS, now=0.0, jitter=0.0) is None
    assert resuming.kept_streams() == []


def test_the_list_has_kept_streams_until_their_captures_are_on_disk() -> None:
    resuming, one, two = Resuming("e"), job("a"), job("b")
    broken(resuming, one, range(3))
    resuming.answer(two, WIRE)
    assert [(s.request_id, s.response_id, s.sequence) for s in resuming.kept_streams()] == [("a", "resp_1", 2)]
    resuming.answer(two, WIRE).begin(API.accumulator(), 1000.0)
    assert [(s.request_id, s.response_id) for s in resuming.kept_streams()] == [("a", "resp_1"), ("b", None)]
    answer = resuming.answer(one, WIRE)
    answer.begin(API.accumulator(), 1000.0).add(event(3, "response.completed", response={"id": "resp_1"}), 1.0, 0)
    answer.interrupt(answer.late_ms, kernel=True)
    answer.call = answer.ended(ended(None, "completed"), 2, reading=True)
    resuming.ended(one)
    assert [s.request_id for s in resuming.kept_streams()] == ["a", "b"]
    resuming.journaled([Capture(one)])
    assert [s.request_id for s in resuming.kept_streams()] == ["b"]


def test_a_stream_of_a_killed_worker_is_resumed_once() -> None:
    stream = KeptStream("a", "hash", "stream", "e", 900.0, "resp_1", 7)
    resuming = Resuming("e", {stream.key: stream})
    answer = resuming.answer(job("a"), WIRE)
    assert (answer.readable, answer.response_id, answer.after) == (True, "resp_1", None)
    assert not resuming.answer(job("a"), WIRE).readable
    assert not Resuming("other", {stream.key: stream}).answer(job("a"), WIRE).readable


def test_a_part_of_the_answer_that_an_earlier_start_has_billed_is_not_billed_again() -> None:
    stream = KeptStream("a", "hash", "stream", "e", 900.123456789, "resp_1", 7)
    resuming, one = Resuming("e", {stream.key: stream}), job("a")
    times = (800.0, 900.123457)
    one.earlier = [{"started_at": datetime.fromtimestamp(at, UTC), "cost_usd": 1.0} for at in times]
    broken(resuming, one, range(3))
    resuming.ended(one)
    assert [call["started_at"] for call in one.earlier] == [datetime.fromtimestamp(800.0, UTC)]


class Reader:
    """A client whose calls break a number of times before they end."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks
        self.posts = self.gets = 0

    async def call(
        self,
        wire: Wire,  # noqa: ARG002 - not used
        request_id: str,  # noqa: ARG002
        watch: object = None,  # noqa: ARG002
        answer: Resumable | None = None,
    ) -> Call:
        assert answer is not None
        reading, after = answer.readable, answer.after
        self.posts, self.gets = self.posts + (not reading), self.gets + reading
        live = answer.begin(API.accumulator(), 1000.0)
        if not reading:
            live.add(event(0, "response.created", response={"id": "resp_1"}), 1.0, 0)
        number = (live.sequence or 0) + 1
        live.add(event(number, delta="x", output_index=0, content_index=0, item_id="m"), 2.0, number)
        over = self.gets >= self.breaks
        if over:
            live.add(event(number + 1, "response.completed", response={"id": "resp_1", "status": "completed"}), 3.0, 9)
        answer.interrupt(answer.late_ms, kernel=True)
        received = live.finish()
        call = replace(ended(None if over else LOST, "completed" if over else "interrupted"), received=received)
        answer.call = answer.ended(call, after, reading=reading)
        return answer.call

    async def close(self) -> None:
        pass


def test_an_engine_sends_a_request_once_and_makes_one_call_of_all_that_read_its_answer() -> None:
    client: Any = Reader(breaks=4)
    delivered: list[Capture] = []
    resuming = Resuming("e")
    with Engine(
        lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.append, share=2, resuming=resuming
    ) as engine:
        assert engine.submit(job())
        engine.join()
    assert (client.posts, client.gets) == (1, 4)
    (capture,) = delivered
    assert [call.status for call in capture.job.calls] == ["completed"]
    assert capture.job.calls[0].received.text == "xxxxx"
    assert [mark.outcome for mark in capture.job.calls[0].resumed] == ["stream"] * 4


def test_a_fault_while_an_answer_is_read_on_keeps_what_had_arrived() -> None:
    class Faulty(Reader):
        async def call(self, wire: Wire, request_id: str, watch: object = None, answer: Any = None) -> Call:
            if answer.call is not None:
                raise ZeroDivisionError
            return await super().call(wire, request_id, watch, answer)

    client: Any = Faulty(breaks=1)
    delivered: list[Capture] = []
    with Engine(
        lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.append, share=2, resuming=Resuming("e")
    ) as engine:
        assert engine.submit(job())
        engine.join()
    ((call,),) = (capture.job.calls for capture in delivered)
    assert (call.received.text, call.status) == ("x", "interrupted")
    assert call.error is not None
    assert (call.error.type, call.error.code) == ("internal", "cut")


def test_the_file_is_written_when_an_id_arrives_and_ends_without_finished_streams(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    state.prepare()
    resuming, one = Resuming("e"), job()
    seen = threading.Event()

    class Watched(RunState):
        def note_kept(self, name: str, streams: Any) -> None:
            super().note_kept(name, streams)
            seen.set()

    watched = Watched(tmp_path)
    with KeptStreamsFile(watched, "claim", resuming, flush_s=3600):
        broken(resuming, one, range(3))
        resuming.changed()
        assert seen.wait(20)
        (stream,) = state.kept_streams().values()
        assert (stream.request_id, stream.response_id, stream.sequence) == ("a", "resp_1", 2)
        answer = resuming.answer(one, WIRE)
        answer.begin(API.accumulator(), 1000.0).add(event(3, "response.completed", response={}), 1.0, 0)
        answer.interrupt(answer.late_ms, kernel=True)
        answer.call = answer.ended(ended(None, "completed"), 2, reading=True)
        resuming.journaled([Capture(one)])
    assert state.kept_streams() == {}


def test_damaged_lists_and_entries_are_skipped_and_the_latest_entry_counts(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    state.prepare()
    old = KeptStream("a", "hash", "stream", "e", 900.0, "resp_1", 7)
    state.note_kept("1", [old, replace(old, request_id="ü\ud800", response_id=None)])
    state.note_kept("2", [replace(old, started_at=950.0, response_id="resp_2", sequence=None)])
    whole = (state.kept / "1.json").read_bytes()
    for at, content in enumerate(
        (b"", whole[:40], b"null", b"{}", b'[1, {}, {"request_id": 1}]', b"\xff", b"[" * 9999)
    ):
        (state.kept / f"bad{at}.json").write_bytes(content)
    found = state.kept_streams()
    assert {key[1]: stream.response_id for key, stream in found.items()} == {"a": "resp_2", "ü\ud800": None}


def test_a_list_that_cannot_be_read_now_is_read_again_and_never_counts_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tmp_path, files=Files(sleep=lambda _: None))
    state.prepare()
    state.note_kept("1", [KeptStream("a", "hash", "stream", "e", 900.0, "resp_1", 7)])
    real, fails = Path.read_bytes, [errno.EIO, errno.ESTALE, None, errno.EIO]

    def read(path: Path) -> bytes:
        if fails and (number := fails.pop(0)) is not None:
            raise OSError(number, "for a while")
        return real(path)[: 9 if fails else None]

    monkeypatch.setattr(Path, "read_bytes", read)
    assert [stream.response_id for stream in state.kept_streams().values()] == ["resp_1"]
    fails[:] = [errno.EACCES]
    with pytest.raises(OSError, match="for a while"):
        state.kept_streams()


def test_the_list_that_is_written_has_what_arrived_before_its_turn_and_is_written_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RunState(tmp_path)
    state.prepare()
    resuming, noted = Resuming("e"), threading.Event()
    real, fails = RunState.note_kept, [OSError(errno.EIO, "for a while")]

    def note(self: RunState, name: str, streams: Any) -> None:
        if fails:
            raise fails.pop()
        real(self, name, streams)
        noted.set()

    monkeypatch.setattr(RunState, "note_kept", note)
    monkeypatch.setattr(state.files, "turn", lambda: broken(resuming, job("late"), range(1)))
    with KeptStreamsFile(state, "claim", resuming, flush_s=0.01):
        broken(resuming, job(), range(3))
        resuming.changed()
        assert noted.wait(20)
        assert {key[1] for key in state.kept_streams()} == {"a", "late"}
