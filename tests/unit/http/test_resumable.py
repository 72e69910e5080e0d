"""Resuming a broken answer: wherever a stream is cut, the result equals that of the unbroken stream."""

from __future__ import annotations

import itertools
import json
import math
import time
from array import array
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.api.registry import specification
from deltatap.api.sse import SSEDecoder
from deltatap.http.gaps import without_gaps
from deltatap.http.outcomes import conclude
from deltatap.http.resumable import EXPIRED, Resumable
from deltatap.model import CONTENT, Call, CaptureError, Chunks, Received, Resumed

if TYPE_CHECKING:
    from collections.abc import Sequence

API = specification("responses")
FOLDER = Path(__file__).parents[2] / "transcripts"
LOST = CaptureError("connection", None, "reset")


def events(name: str) -> list[bytes]:
    decoder = SSEDecoder()
    found = [event.data for event in decoder.feed((FOLDER / f"{name}.sse").read_bytes())]
    return [*found, *(event.data for event in decoder.finish())]


ENDED = ("openai_responses", "openai_responses_tool", "openai_responses_reasoning", "openai_responses_refusal",
         "openai_responses_incomplete", "openai_responses_web_search")  # fmt: skip
STREAMS = {name: events(name) for name in ENDED}


class Server:
    """Stores an answer, and sends its events after a number; `ms` counts up over all calls."""

    def __init__(self, kept: Sequence[bytes]) -> None:
        self.kept = kept
        self.ms = 0.0
        self.read = 0

    def call(self, answer: Resumable, cut: int | None, *, again: int = 0) -> Call:
        """Make a call that breaks after `cut` new events; `again` events are sent a second time."""
        reading, after = answer.readable, answer.after
        live = answer.begin(API.accumulator(), 1000.0)
        start = 0 if after is None else max(0, after + 1 - again)
        sent = self.kept[start:]
        end = len(sent) if cut is None else min(len(sent), cut + (again if start else 0))
        for data in sent[:end]:
            self.ms += 10.0
            self.read += 1
            live.add(data, math.nan if answer.lost else self.ms, self.read)
        answer.interrupt(array("d", [0.0] * self.read), kernel=True)
        received = live.finish()
        status, error = conclude(received, LOST if end < len(sent) else None)
        return finished(answer, called(received, status, error), after, reading=reading)


def called(received: Received, status: Any, error: CaptureError | None, http_status: int | None = 200) -> Call:
    return Call(1000.0, 1001.0, time.perf_counter(), 1.0, 2.0, 3.0, "req_1", received, status, error, http_status)


def finished(answer: Resumable, call: Call, after: int | None, *, reading: bool) -> Call:
    answer.call = answer.ended(call, after, reading=reading)
    return answer.call


def content(call: Call) -> dict[str, Any]:
    """The data that a call has received, without times."""
    received = call.received
    chunks = [
        {name: chunk[name] for name in ("text", "kind", "choice", "event")} for chunk in received.chunks.to_dicts()
    ]
    return {
        "status": call.status,
        "chunks": chunks,
        "choices": received.choices,
        "usage": received.usage,
        "model": received.response_model,
        "id": received.response_id,
        "logprobs": received.logprobs,
        "annotations": received.annotations,
    }


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_up_to_three_times_equals_the_unbroken_one(name: str) -> None:
    kept = STREAMS[name]
    whole = content(Server(kept).call(Resumable(), None))
    sizes = range(1, len(kept))
    for cuts in [*itertools.product(sizes, repeat=1), *itertools.product(sizes, repeat=2)]:
        for again in (0, 1, 3):
            server, answer = Server(kept), Resumable()
            call = None
            for cut in (*cuts, 2, None):
                if call is None or call.error is not None:
                    call = server.call(answer, cut, again=again)
            assert call is not None
            assert content(call) == whole, (cuts, again)
            assert [mark.outcome for mark in call.resumed] == ["stream"] * len(call.resumed)


@given(st.sampled_from(ENDED), st.lists(st.integers(0, 12), min_size=1, max_size=3), st.integers(0, 4))
def test_each_event_arrives_exactly_once(name: str, cuts: list[int], again: int) -> None:
    kept = STREAMS[name]
    server, answer = Server(kept), Resumable()
    call = server.call(answer, cuts[0] + 1)
    for cut in (*cuts[1:], None):
        if call.error is not None:
            call = server.call(answer, cut, again=again)
    assert content(call) == content(Server(kept).call(Resumable(), None))
    ms = list(call.received.chunks.ms)
    assert ms == sorted(ms)


def test_chunks_keep_their_first_times_and_the_gap_of_the_break_is_left_out() -> None:
    server, answer = Server(STREAMS["openai_responses"]), Resumable()
    broken = server.call(answer, 5)  # one delta
    first = list(broken.received.chunks.ms)
    server.ms += 500.0
    call = server.call(answer, None)
    assert call.error is None
    assert list(call.received.chunks.ms)[: len(first)] == first
    outputs = [at for at, kind in enumerate(call.received.chunks.kind) if kind == CONTENT]
    assert call.received.chunks.ms[outputs[1]] > 500.0
    assert math.isnan(call.received.chunks.gap_ms[outputs[1]])
    assert call.resumed == (Resumed(1000.0, 4, "stream_interrupted", "stream"),)


def outputs(*ms: float) -> Chunks:
    chunks, last = Chunks(), math.nan
    for at, each in enumerate(ms):
        chunks.append(each, each - last, "x", CONTENT, 0, at, at)
        last = each
    return chunks


def test_gaps_count_again_once_the_stream_has_caught_up() -> None:
    chunks = without_gaps(outputs(0, 20, 40, 300, 300, 301, 315, 335, 355), [3])
    gaps = [None if math.isnan(gap) else gap for gap in chunks.gap_ms]
    assert gaps == [None, 20.0, 20.0, None, None, None, None, 20.0, 20.0]


def test_after_a_kill_the_stream_is_read_from_the_start_without_times() -> None:
    kept = STREAMS["openai_responses"]
    server, answer = Server(kept), Resumable.after_kill("resp_67c9fdcecf488190bdd9a0409de3a1ec", 900.0)
    assert answer.readable
    assert answer.after is None
    broken = server.call(answer, 5)
    assert broken.error is not None
    call = server.call(answer, None)
    assert content(call) == content(Server(kept).call(Resumable(), None))
    assert all(map(math.isnan, call.received.chunks.ms))
    assert (call.started_at, call.e2e_ms, call.headers_ms, call.dispatch_ms) == (900.0, None, None, None)
    assert [(mark.error_type, mark.after, mark.times_lost) for mark in call.resumed] == [
        ("killed", None, True),
        ("stream_interrupted", 4, True),
    ]


def refused(answer: Resumable, status: int, type_: str = "not_found") -> Call:
    after = answer.after
    received = answer.begin(API.accumulator(), 1000.0).finish()
    answer.interrupt(array("d"), kernel=False)
    error = CaptureError(type_, None, "Not found.", status)
    state: Any = "interrupted" if received.output else "failed"
    return finished(answer, called(received, state, error, status), after, reading=True)


@pytest.mark.parametrize("status", [404, 410, 405, 501, 302])
def test_an_answer_that_the_server_does_not_have_is_given_up_and_marked(status: int) -> None:
    server, answer = Server(STREAMS["openai_responses"]), Resumable()
    broken = server.call(answer, 6)
    call = refused(answer, status)
    assert not answer.readable
    assert call.error is not None
    assert (call.error.type, call.error.code) == ("stream_interrupted", EXPIRED)
    assert call.received.text == broken.received.text
    assert [mark.outcome for mark in call.resumed] == ["expired"]


def test_an_answer_that_is_too_old_to_stream_is_read_whole() -> None:
    kept = STREAMS["openai_responses"]
    server, answer = Server(kept), Resumable()
    server.call(answer, 5)
    call = refused(answer, 400, "invalid_request")
    assert answer.readable
    assert answer.whole
    assert call.resumed == ()
    after, body = answer.after, json.dumps(json.loads(kept[-1])["response"]).encode()
    live = answer.begin(API.accumulator(), 1000.0)
    live.add_whole(body)
    answer.interrupt(array("d"), kernel=True)
    received = live.finish()
    call = finished(answer, called(received, *conclude(received, None)), after, reading=True)
    unbroken = Server(kept).call(Resumable(), None)
    assert call.status == "completed"
    assert call.received.choices == unbroken.received.choices
    assert call.received.usage == unbroken.received.usage
    assert "".join(call.received.chunks.text[at] for at in contents(call)) == call.received.text
    assert math.isnan(call.received.chunks.ms[contents(call)[-1]])
    assert not math.isnan(call.received.chunks.ms[contents(call)[0]])
    assert [(mark.outcome, mark.times_lost) for mark in call.resumed] == [("whole", True)]
    assert call.e2e_ms is None


def contents(call: Call) -> list[int]:
    return [at for at, kind in enumerate(call.received.chunks.kind) if kind == CONTENT]


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_unfinished_answer_is_polled_and_its_request_is_not_sent_again(status: str) -> None:
    answer = Resumable(kept=False)  # the server itself decided on the background
    live = answer.begin(API.accumulator(), 1000.0)
    live.add_whole(json.dumps({"id": "resp_1", "status": status, "output": []}).encode())
    answer.interrupt(array("d"), kernel=True)
    received = live.finish()
    call = finished(answer, called(received, *conclude(received, None)), None, reading=False)
    assert call.status == "failed"
    assert answer.readable
    assert answer.whole
    answer.begin(API.accumulator(), 1000.0)
    answer.interrupt(array("d"), kernel=False)
    broken = finished(answer, called(Received(Chunks()), "failed", LOST, None), None, reading=True)
    assert broken.resumed == ()
    answer.begin(API.accumulator(), 1000.0)
    assert answer.readable


@pytest.mark.parametrize(
    "error",
    [
        CaptureError("internal", "cut", "x"),
        CaptureError("cancelled", None, "x"),
        CaptureError("timeout", "total", "x"),
        CaptureError("content_policy", None, "x"),
    ],
)
def test_after_some_errors_only_the_next_run_resumes_the_answer(error: CaptureError) -> None:
    answer = Resumable()
    call = Server(STREAMS["openai_responses"]).call(answer, 5)
    answer.call = replace(call, error=error)
    assert not answer.readable
    assert answer.unfinished


def test_without_an_id_the_request_is_sent_again_and_marked() -> None:
    answer = Resumable()
    answer.begin(API.accumulator(), 1000.0)
    answer.interrupt(array("d"), kernel=False)
    call = finished(answer, called(Received(Chunks()), "failed", LOST, None), None, reading=False)
    assert not answer.readable
    assert call.resumed == (Resumed(1001.0, None, "connection", "unseen"),)
    assert Resumable.after_kill(None, 900.0).marks == [Resumed(900.0, None, "killed", "unseen")]


@pytest.mark.parametrize("id_", ["", "../x", "resp 1", "a" * 300, "sk-test-4711-do-not-tell", "resp_é"])
def test_an_id_that_is_unsafe_in_a_url_or_file_is_not_used(id_: str) -> None:
    answer = Resumable(secrets=frozenset({"sk-test-4711-do-not-tell"}), given_id=id_)
    assert answer.response_id is None
    assert not answer.readable


def test_without_numbers_the_stream_is_read_again_from_the_start() -> None:
    kept = [
        json.dumps({key: value for key, value in json.loads(data).items() if key != "sequence_number"}).encode()
        for data in STREAMS["openai_responses"]
    ]
    server, answer = Server(kept), Resumable()
    server.call(answer, 6)
    call = server.call(answer, None)
    assert content(call) == content(Server(kept).call(Resumable(), None))
    assert all(map(math.isnan, call.received.chunks.ms))
    assert [mark.times_lost for mark in call.resumed] == [True]
