"""Many jobs on one event loop, with a scripted client: no network, and the tests wait only for events."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import config
from deltatap.messages import OpenStream, Permit
from deltatap.model import CONTENT, Call, Capture, CaptureError, Choice, Chunks, Job, Received, Request, Verdict, Wire
from deltatap.worker import retry
from deltatap.worker.engine import Engine, Proceed, _Unfinished

if TYPE_CHECKING:
    from deltatap.http.reading import Watch


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BACKOFF_S", 0.001)


LIMITS = config.Capture(max_attempts=3, max_broken=2, retry_for_s=5)


def called(error: CaptureError | None = None, text: str = "Hi") -> Call:
    """A call that received a text, or failed."""
    output = error is None
    received = Received(Chunks(), (Choice(0, text),) if output else (), output=output, finished=output)
    now = time.perf_counter()
    return Call(0.0, 0.0, now, 1.0, 1.0, 1.0, None, received, "completed" if output else "failed", error, 200)


class Scripted:
    """Answers each body by its script: a call, an error, an exception to raise, or `held`: wait until cancelled."""

    def __init__(self, scripts: dict[str, list[Any]] | None = None) -> None:
        self.scripts = scripts or {}
        self.open = self.most_open = 0
        self.started: list[str] = []
        self.closed = False

    async def call(
        self,
        wire: Wire,
        request_id: str,  # noqa: ARG002 - not used
        watch: Watch | None = None,  # noqa: ARG002
        answer: object = None,  # noqa: ARG002
    ) -> Call:
        body = wire.body
        self.started.append(body)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0)
            script = self.scripts.get(body)
            what = script.pop(0) if script else None
            if what == "held":
                await asyncio.Event().wait()
            if isinstance(what, BaseException):
                raise what
            if isinstance(what, Call):
                return what
            return called(what)
        except asyncio.CancelledError:
            return called(CaptureError("cancelled", None, "cut"))
        finally:
            self.open -= 1

    async def moderate(self, model: str, text: str, *, within_s: float) -> Verdict | CaptureError:
        raise AssertionError(
            f"{model} is asked about {text!r} within {within_s} s, but this client's texts need no checks"
        )

    def open_streams(self) -> list[OpenStream]:
        return []

    async def close(self) -> None:
        self.closed = True


class Delivered:
    """The captures that the engine delivered."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self._changed = threading.Condition()

    def put(self, capture: Capture) -> None:
        with self._changed:
            self.captures.append(capture)
            self._changed.notify()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.captures) >= count, timeout=20)

    def errors(self) -> dict[str, str | None]:
        def of(capture: Capture) -> str | None:
            error = capture.error or (capture.job.calls[-1].error if capture.job.calls else None)
            return None if error is None else error.type

        return {capture.job.request.request_id: of(capture) for capture in self.captures}


def job(body: str, error: str | None = None) -> Job:
    wire = None if error else Wire(body, "m", "stream", 1)
    return Job(Request(body, "", None, body, None, error), wire, "stream", 0, [], time.perf_counter())


def run(client: Scripted, bodies: list[str], *, share: int = 4) -> Delivered:
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=share) as engine:
        for body in bodies:
            assert engine.submit(job(body))
        engine.join()
    assert client.closed
    return delivered


def test_every_job_is_delivered_once_within_the_share() -> None:
    client = Scripted()
    bodies = [f"b{n}" for n in range(60)]
    delivered = run(client, bodies, share=3)
    assert sorted(capture.job.request.request_id for capture in delivered.captures) == sorted(bodies)
    assert client.most_open <= 3
    assert all(capture.queued_ms is not None and capture.loop_lag_ms is not None for capture in delivered.captures)


def test_a_failed_call_is_retried_and_kept() -> None:
    down = CaptureError("server", None, "x", 500)
    client = Scripted({"a": [down, down, None], "b": [down, down, down]})
    delivered = run(client, ["a", "b", "c"])
    calls = {
        capture.job.request.request_id: [call.status for call in capture.job.calls] for capture in delivered.captures
    }
    assert calls == {"a": ["failed", "failed", "completed"], "b": ["failed"] * 3, "c": ["completed"]}


def alike(*names: str, then: str | None = None) -> Job:
    """A job of the first name with the others as identical requests."""
    first, *others = (job(name) for name in names)
    first.alike.extend(others)
    first.then = None if then is None else job(then)
    return first


def reuses(delivered: Delivered) -> dict[str, str | None]:
    """The request ids of the captures, each with the one whose answer it has."""
    return {
        capture.job.request.request_id: capture.reused.job.request.request_id if capture.reused else None
        for capture in delivered.captures
    }


@pytest.mark.parametrize(
    ("fails", "started", "expected"),
    [
        ([], ["a", "z"], {"a": None, "b": "a", "c": "a", "z": None}),
        (["a"], ["a", "b", "z"], {"a": None, "b": None, "c": "b", "z": None}),
        (["a", "b", "c"], ["a", "b", "c", "z"], {"a": None, "b": None, "c": None, "z": None}),
    ],
)
def test_identical_requests_are_called_once_until_one_completes(
    fails: list[str], started: list[str], expected: dict[str, str | None]
) -> None:
    client, delivered = Scripted({name: [CaptureError("bad_request", None, "x", 400)] for name in fails}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put, share=4) as engine:
        assert engine.submit(alike("a", "b", "c", then="z"))
        engine.join()
    assert (client.started, reuses(delivered)) == (started, expected)


def test_after_a_stop_no_identical_request_is_called() -> None:
    names = [f"r{n}" for n in range(2000)]
    client, delivered = Scripted({"r0": ["held"]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        engine.submit(alike(*names))
        while not client.started:
            time.sleep(0.01)
        engine.stop(grace_s=0)
        engine.join()
    assert client.started == ["r0"]
    assert delivered.errors() == dict.fromkeys(names, "cancelled")


def test_a_rate_limit_cools_down_all_jobs() -> None:
    limited = CaptureError("rate_limit", None, "x", 429, 0.1)
    client, delivered = Scripted({"a": [limited, None]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        limited_job = job("a")
        engine.submit(limited_job)
        while not limited_job.calls:
            time.sleep(0.01)
        engine.submit(job("b"))
        engine.join()
    assert sorted(client.started) == ["a", "a", "b"]
    assert delivered.errors() == {"a": None, "b": None}
    first = min(capture.job.calls[-1].started for capture in delivered.captures)
    limited_at = next(c.job.calls[0].started for c in delivered.captures if c.job.request.request_id == "a")
    assert first - limited_at >= 0.1


def test_a_bad_row_is_delivered_without_a_call() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        engine.submit(job("bad", error="no prompt"))
        engine.join()
    assert (client.started, delivered.errors()) == ([], {"bad": "invalid_request"})


def test_a_stop_drops_waiting_jobs_and_cuts_open_ones_after_the_grace_period() -> None:
    client, delivered = Scripted({"a": ["held"], "b": ["held"]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=2) as engine:
        for body in ("a", "b", "c", "d"):
            engine.submit(job(body))
        while client.open < 2:
            time.sleep(0.01)
        engine.stop(0)
        engine.join()
        assert not engine.submit(job("e"))
        engine.join()
    assert client.started == ["a", "b"]
    assert set(delivered.errors().values()) == {"cancelled"}
    assert len(delivered.captures) == 5
    assert all(capture.error is not None for capture in delivered.captures), "nothing had arrived, so there are no rows"


def test_a_fatal_error_stops_all_jobs() -> None:
    wrong = CaptureError("authentication", "invalid_api_key", "x", 401)
    client = Scripted({f"b{n}": [wrong] for n in range(20)})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=50, deliver=delivered.put, share=1) as engine:
        for n in range(20):
            engine.submit(job(f"b{n}"))
        engine.join()
        assert str(engine.fatal) == "authentication: x (model m, request_id b0)"
    assert client.started == ["b0"]
    assert sorted(set(map(str, delivered.errors().values()))) == ["authentication", "cancelled"]


def test_nothing_starts_without_a_share() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put) as engine:
        engine.submit(job("a"))
        engine.control(Proceed(share=0))
        time.sleep(0.05)
        assert client.started == []
        engine.control(Proceed(share=1))
        engine.join()
    assert client.started == ["a"]


def test_submit_blocks_while_too_many_jobs_are_unfinished() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put) as engine:
        submitted: list[str] = []

        def feed() -> None:
            for body in ("a", "b", "c"):
                engine.submit(job(body))
                submitted.append(body)

        feeder = threading.Thread(target=feed)
        feeder.start()
        while len(submitted) < 2:
            time.sleep(0.01)
        time.sleep(0.05)
        assert submitted == ["a", "b"]
        engine.control(Proceed(share=1))
        feeder.join(20)
        engine.join()
    assert submitted == ["a", "b", "c"]


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize("fault", [KeyError("ours"), PanicException("rust"), RecursionError(), OverflowError("int64")])
def test_a_fault_of_the_client_stays_in_its_row(fault: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    client = Scripted({"b": [CaptureError("server", None, "x", 500), fault]})
    delivered = run(client, ["a", "b", "c"])
    assert delivered.errors() == {"a": None, "b": "internal", "c": None}
    (capture,) = (capture for capture in delivered.captures if capture.job.request.request_id == "b")
    assert [call.error and (call.error.type, call.error.code) for call in capture.job.calls] == [
        ("server", None),
        ("internal", "request"),
    ]
    assert client.started.count("b") == 2, "it is not sent again"
    assert "request b: make the call: " + type(fault).__name__ in caplog.text
    assert "ours" not in caplog.text, "a message may hold the key"


def test_a_fault_after_the_call_keeps_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("deltatap.worker.engine.cool_down", fail)
    assert run(Scripted(), ["a", "b"]).errors() == {"a": None, "b": None}


def test_an_order_to_end_is_not_a_fault() -> None:
    engine = Engine(lambda: Scripted({"a": [SystemExit(3)]}), limits=LIMITS, look_ahead=8, deliver=Delivered().put, share=2)  # fmt: skip
    with engine:
        engine.submit(job("a"))
        with pytest.raises(RuntimeError, match=r"the engine failed: SystemExit: 3"):
            engine.join()


def test_captures_that_cannot_be_delivered_end_the_engine() -> None:
    def refuse(_: Capture) -> None:
        raise OSError("full")

    client = Scripted({"b": ["held"]})
    engine = Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=refuse, share=2)
    with engine:
        engine.submit(job("b"))
        engine.submit(job("a"))
        with pytest.raises(RuntimeError, match="the engine failed: OSError: full"):
            engine.join()
    assert client.closed


def test_a_job_that_cannot_be_built_is_delivered_without_a_call() -> None:
    client, delivered = Scripted(), Delivered()
    faulty = job("a")
    faulty.fault = CaptureError("internal", "request", "x")
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        engine.submit(faulty)
        engine.submit(job("b"))
        engine.join()
    assert (client.started, delivered.errors()) == (["b"], {"a": "internal", "b": None})


def of_model(body: str, model: str) -> Job:
    made = job(body)
    made.wire = Wire(body, model, "stream", 1)
    return made


MISSING = CaptureError("not_found", "model_not_found", "no such  model", 404)


def test_three_refusals_park_the_model_and_nothing_else() -> None:
    client = Scripted({f"bad{n}": [MISSING] for n in range(20)})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=99, deliver=delivered.put, share=1) as engine:
        for n in range(20):
            engine.submit(of_model(f"bad{n}", "missing"))
            engine.submit(of_model(f"good{n}", "m"))
        engine.join()
        (parked,) = engine.status()["parked"]
        assert engine.fatal is None
        assert engine.status()["succeeded"]
    assert [body for body in client.started if body.startswith("bad")] == ["bad0", "bad1", "bad2"]
    assert len(client.started) == 23
    assert parked.requests == 17
    assert str(parked.refusal) == "not_found: no such model (model missing, request_id bad2)"
    unsent = [capture for capture in delivered.captures if not capture.job.calls]
    assert len(unsent) == 17
    assert {capture.error.message for capture in unsent if capture.error} == {f"not sent, because of {parked.refusal}"}


def test_a_retry_of_a_parked_model_ends_with_what_it_has() -> None:
    slow = CaptureError("server", None, "x", 503, 4.0)
    client = Scripted({"waits": [slow], **{f"bad{n}": [MISSING] for n in range(3)}})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=99, deliver=delivered.put, share=4) as engine:
        engine.submit(of_model("waits", "m"))
        while not client.started:
            time.sleep(0.001)
        for n in range(3):
            engine.submit(of_model(f"bad{n}", "m"))
        engine.join()
        assert engine.status()["parked"][0].requests == 0
    assert delivered.errors()["waits"] == "server"
    assert client.started.count("waits") == 1


def test_a_rate_limit_longer_than_retry_for_s_stops_the_run() -> None:
    long = CaptureError("rate_limit", None, "slow down", 429, 3600.0)
    client = Scripted({"b0": [replace(called(long), server_request_id="req_9")]})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=50, deliver=delivered.put, share=1) as engine:
        for n in range(5):
            engine.submit(job(f"b{n}"))
        engine.join()
        status = engine.status()
    assert client.started == ["b0"]
    assert delivered.errors()["b0"] == "rate_limit"
    assert status["fatal"] is None
    assert status["too_long"].startswith("rate limited until 2")
    assert status["too_long"].endswith(" UTC: rate_limit: slow down (model m, request_id req_9)")
    assert sum(not capture.job.calls for capture in delivered.captures) == 4, "they have no rows"


def test_a_status_says_what_the_worker_waits_for() -> None:
    slow = CaptureError("server", None, "x", 503, 4.0)
    client, delivered = Scripted({"a": [slow]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=2) as engine:
        waiting = job("a")
        engine.submit(waiting)
        while not waiting.calls:
            time.sleep(0.001)
        status = engine.status()
        assert 3 < status["waits_s"] <= 4
        assert status["waits_for"] == "retry after server 503 (as the server asks)"
        assert status["cool_s"] == 0.0, "the others do not wait"
        engine.stop(0)
        engine.join()


def test_a_client_that_cannot_be_created_is_reported() -> None:
    def refuse() -> Scripted:
        raise ValueError("no key")

    engine = Engine(refuse, limits=LIMITS, look_ahead=1, deliver=Delivered().put)
    with pytest.raises(RuntimeError, match="no key"), engine:
        pass


def test_the_second_of_a_pair_starts_when_the_first_has_ended() -> None:
    client = Scripted({"first": [CaptureError("server", None, "x", 500)]})
    delivered = Delivered()
    pair = job("first")
    pair.then = job("second")
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put, share=4) as engine:
        assert engine.submit(pair)
        engine.join()
    assert client.started == ["first", "first", "second"], "also after a retry"
    assert pair.then.planned > pair.calls[-1].started, "the wait for the first does not count as queueing"
    assert client.most_open == 1
    assert [capture.job.request.request_id for capture in delivered.captures] == ["first", "second"]


def test_a_stop_between_the_requests_of_a_pair_drops_the_second() -> None:
    client = Scripted({"first": ["held"]})
    delivered = Delivered()
    pair = job("first")
    pair.then = job("second")
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put, share=4) as engine:
        engine.submit(pair)
        while not client.started:
            time.sleep(0.001)
        engine.stop(0)
        engine.join()
    assert client.started == ["first"]
    assert delivered.errors() == {"first": "cancelled", "second": "cancelled"}


def test_a_corrected_call_is_resent_at_once() -> None:
    expired = replace(called(CaptureError("authentication", None, "expired", 401)), resend=True)
    client = Scripted({"b": [expired]})
    (capture,) = run(client, ["b"]).captures
    assert [call.status for call in capture.job.calls] == ["failed", "completed"]
    assert capture.job.tries.attempts == 0, "it is not an attempt"


def test_a_call_that_stays_wrong_after_corrections_stops_the_run() -> None:
    refused = replace(called(CaptureError("authentication", None, "no", 401)), resend=True)
    client = Scripted({"b": [refused] * 9})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put, share=4) as engine:
        engine.submit(job("b"))
        engine.join()
        assert engine.fatal is not None
    assert len(client.started) == 3


def test_jobs_wait_for_permits() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=20, deliver=delivered.put) as engine:
        for number in range(9):
            engine.submit(job(f"b{number}"))
        engine.control(Proceed(share=4, permit=Permit(2, tokens=1.0)))
        delivered.wait(2)
        status = engine.status()
        assert (len(client.started), status["used"], status["wants"]) == (2, 2, 4)
        engine.control(Proceed(share=4, permit=Permit(5, void=3, tokens=1.0)))
        delivered.wait(4)
        assert engine.status()["used"] == 5, "one permit was void"
        engine.control(Proceed(share=4))
        engine.join()
    assert len(client.started) == 9
    assert engine.status()["wants"] == 0, "also after the engine has ended"


def test_a_response_that_leaves_no_requests_cools_down_all_jobs() -> None:
    used_up = replace(called(), used_up_for_s=60.0)
    client, delivered = Scripted({"a": [used_up]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        engine.submit(job("a"))
        delivered.wait(1)
        engine.submit(job("b"))
        assert 50 < engine.status()["cool_s"] <= 60, "the heartbeat passes it on"
        engine.status()  # by then, the engine has looked at the second job
        assert client.started == ["a"]


def test_a_cool_down_from_the_driver_is_not_reported_back() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put) as engine:
        engine.control(Proceed(share=4, cool_s=60.0))
        engine.submit(job("a"))
        assert engine.status()["cool_s"] == 0.0
        assert engine.status()["wants"] == 1
        assert client.started == []


def test_a_capture_has_the_lag_of_its_last_call() -> None:
    class Lag:
        """Returns the start of the time span as the lag."""

        async def run(self) -> None:
            await asyncio.Event().wait()

        def worst_ms(self, since: float) -> float:
            return since

    client = Scripted({"a": [CaptureError("server", None, "x", 500)]})
    delivered = Delivered()
    engine = Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4)
    engine._lag = Lag()  # type: ignore[assignment]
    with engine:
        engine.submit(job("a"))
        engine.join()
    (capture,) = delivered.captures
    first, last = capture.job.calls
    assert first.started < last.started
    assert capture.loop_lag_ms == last.started
    assert capture.queued_ms == (first.started - capture.job.planned) * 1e3


def test_a_status_describes_the_engine() -> None:
    wrong = CaptureError("authentication", "invalid_api_key", "no", 401)
    client, delivered = Scripted({"a": ["held"], "b": [wrong]}), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=2) as engine:
        assert (engine.status()["open"], engine.status()["requests"], engine.status()["fatal"]) == (0, 0, None)
        engine.submit(job("a"))
        engine.submit(job("b"))
        delivered.wait(1)
        status = engine.status()
        assert (status["open"], status["requests"], status["fatal"]) == (
            1,
            2,
            "authentication: no (model m, request_id b)",
        )


def test_a_feeding_thread_that_waits_continues_when_there_is_room_for_several_jobs() -> None:
    unfinished, added = _Unfinished(32), threading.Event()
    assert all(unfinished.add(0.0) for _ in range(32))
    assert not unfinished.add(0.0)

    def add() -> None:
        if unfinished.add(10.0):
            added.set()

    waiting = threading.Thread(target=add)
    waiting.start()
    for _ in range(2):
        unfinished.remove()
    assert not added.wait(0.05)
    unfinished.remove()
    assert added.wait(5.0)
    waiting.join()
    for _ in range(30):
        unfinished.remove()
    assert unfinished.wait(0.0)


def test_a_scheduled_call_starts_when_it_is_due_and_says_how_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BACKOFF_S", 0.1)
    client, delivered = Scripted({"b": [CaptureError("server", None, "down", 500)]}), Delivered()
    jobs = [replace(job(body), due_s=due_s) for body, due_s in (("a", 0.0), ("b", 0.05), ("c", 0.1))]
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put) as engine:
        for each in jobs:
            engine.submit(each)
        engine.control(Proceed(share=4))
        time.sleep(0.02)
        assert client.started == [], "the schedule has not begun"
        began, begins_at = time.perf_counter(), time.time()
        engine.control(Proceed(share=4, begins_at=begins_at))
        engine.join()
    late = {capture.job.request.request_id: capture.scheduled_ms for capture in delivered.captures}
    assert client.started.count("b") == 2, "a retry is not an arrival"
    assert (late["b"] or 0) >= 50, "the wait for the retry delays the answer, too"
    for each in jobs:
        name, scheduled_ms = each.request.request_id, late[each.request.request_id]
        last = each.calls[-1].started
        assert scheduled_ms is not None
        assert scheduled_ms >= 0
        assert abs(scheduled_ms - (last - began - (each.due_s or 0.0)) * 1e3) < 5, f"{name}: of the last call"


def test_a_call_outside_the_schedule_has_no_scheduled_time() -> None:
    assert run(Scripted(), ["a"]).captures[0].scheduled_ms is None


class Moderated(Scripted):
    """Sends a text of its body in pieces of four characters, and flags texts with "bad"."""

    def __init__(self, scripts: dict[str, list[Any]] | None = None, *, verdicts: Any = None) -> None:
        super().__init__(scripts)
        self.verdicts, self.checked = verdicts, 0

    async def call(self, wire: Wire, request_id: str, watch: Watch | None = None, answer: object = None) -> Call:
        assert watch is not None
        assert answer is None
        chunks = Chunks()
        watch.begin(chunks, time.perf_counter())
        for start in range(0, len(wire.body), 4):
            at = len(chunks)
            chunks.append(float(at), 0.0, wire.body[start : start + 4], CONTENT, 0, at, at)
            watch.arrived()
        made = await super().call(wire, request_id)
        received = Received(chunks, (Choice(0, wire.body),), output=True, finished=made.error is None)
        if watch.cut is not None:
            return replace(made, received=received, status="interrupted", error=watch.cut)
        return replace(made, received=received, status="interrupted" if made.error else "completed")

    async def moderate(self, model: str, text: str, *, within_s: float) -> Verdict | CaptureError:
        self.checked += 1
        assert (model, within_s <= 10) == ("omni-moderation-latest", True)
        if self.verdicts is not None:
            verdict: Verdict | CaptureError = await self.verdicts(text)
            return verdict
        return Verdict("bad" in text, ("badness",))


def moderated(client: Moderated, *bodies: str, limited: bool = False, share: int = 1, **settings: Any) -> Delivered:
    delivered = Delivered()
    moderation = config.Moderation(**{"every_chars": 4, **settings})
    engine = Engine(
        lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=share, moderation=moderation,
        limited=limited,
    )  # fmt: skip
    with engine:
        for body in bodies:
            engine.submit(job(body))
        engine.join()
    return delivered


def checks_of(delivered: Delivered) -> dict[str, list[tuple[int, bool | None, str | None]]]:
    return {
        capture.job.request.request_id: [
            (check["chars"], check["flagged"], check["error"]) for check in json.loads(capture.partial_moderation or "")
        ]
        for capture in delivered.captures
    }


def test_each_capture_has_the_checks_of_its_text() -> None:
    assert checks_of(moderated(Moderated(), "good text", "a bad one")) == {
        "good text": [(4, False, None), (8, False, None), (9, False, None)],
        "a bad one": [(4, False, None), (8, True, None), (9, True, None)],
    }


def test_a_flagged_stream_is_cut_once_and_not_sent_again() -> None:
    client = Moderated({"a bad one": ["held"]})
    delivered = moderated(client, "a bad one", "fine", stop=True)
    assert delivered.errors() == {"a bad one": "content_policy", "fine": None}
    assert client.started == ["a bad one", "fine"]
    (cut,) = [capture for capture in delivered.captures if capture.job.request.request_id == "a bad one"]
    assert cut.job.calls[-1].status == "interrupted"
    assert checks_of(delivered)["a bad one"][:2] == [(4, False, None), (8, True, None)]


def test_a_stream_that_waits_for_its_verdict_frees_its_place() -> None:
    both = asyncio.Event()

    async def verdict(text: str) -> Verdict:
        if text == "two":
            both.set()
        await both.wait()
        return Verdict(False)

    assert set(checks_of(moderated(Moderated(verdicts=verdict), "one", "two"))) == {"one", "two"}


def test_a_moderation_that_fails_never_fails_a_row() -> None:
    async def broken(text: str) -> Verdict:
        raise KeyError(text)

    delivered = moderated(Moderated(verdicts=broken), "text")
    assert delivered.errors() == {"text": None}
    assert checks_of(delivered) == {"text": [(4, None, "internal")]}


def test_a_rate_limit_of_moderation_pauses_the_run() -> None:
    limited = [CaptureError("rate_limit", None, "x", 429, 0.2)]
    times: list[float] = []

    async def verdict(_: str) -> Verdict | CaptureError:
        times.append(time.perf_counter())
        return limited.pop() if limited else Verdict(False)

    delivered = moderated(Moderated(verdicts=verdict), "text")
    assert checks_of(delivered) == {"text": [(4, None, "rate_limit")]}
    client = Moderated(verdicts=verdict)
    limited.append(CaptureError("rate_limit", None, "x", 429, 0.2))
    delivered = moderated(client, "abc")
    assert checks_of(delivered) == {"abc": [(3, False, None)]}, "the check at the end is repeated"
    assert times[-1] - times[-2] >= 0.2


def test_the_interrupted_text_of_the_last_call_is_checked_at_its_end() -> None:
    broken = CaptureError("stream_interrupted", None, "x", 200)
    client = Moderated({"some text": [broken, broken]})
    delivered = moderated(client, "some text")
    assert delivered.errors() == {"some text": "stream_interrupted"}
    assert checks_of(delivered)["some text"][-1] == (9, False, None)


def test_with_a_limit_of_requests_a_check_needs_a_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.worker.engine.POLL_S", 0.01)
    client, delivered = Moderated(), Delivered()
    engine = Engine(
        lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4,
        moderation=config.Moderation(every_chars=100), limited=True,
    )  # fmt: skip
    with engine:
        engine.control(Proceed(share=4, permit=Permit(requests=1, tokens=10_000)))
        engine.submit(job("text"))
        while not (client.started and engine.status()["wants"]):
            time.sleep(0.01)
        assert (engine.status()["open"], client.checked, delivered.captures) == (1, 0, [])
        engine.control(Proceed(share=4, permit=Permit(requests=2, tokens=10_000)))
        engine.join()
        status = engine.status()
    assert (client.checked, status["requests"], status["used"]) == (1, 1, 2)
    assert sum(requests for _, requests, _ in status["recent"]) == 2


def test_a_stop_ends_the_wait_for_verdicts() -> None:
    asked = threading.Event()

    async def never(_: str) -> Verdict:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    client, delivered = Moderated(verdicts=never), Delivered()
    engine = Engine(
        lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4, moderation=config.Moderation()
    )
    started = time.perf_counter()
    with engine:
        engine.submit(job("text"))
        assert asked.wait(20)
        engine.stop(0)
        engine.join()
    assert time.perf_counter() - started < 4
    assert delivered.errors() == {"text": None}
    assert checks_of(delivered) == {"text": [(4, None, "timeout")]}


def test_a_capture_is_held_if_its_checks_take_longer_than_a_flush_interval() -> None:
    held, delivered, go = Delivered(), Delivered(), asyncio.Event()

    async def slow(text: str) -> Verdict:
        if text == "slow":
            await go.wait()
        return Verdict(False)

    engine = Engine(
        lambda: Moderated(verdicts=slow), limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4,
        moderation=config.Moderation(), hold=(0.05, held.put),
    )  # fmt: skip
    with engine:
        engine.submit(job("slow"))
        held.wait(1)
        assert delivered.captures == []
        engine._loop.call_soon_threadsafe(go.set)
        engine.submit(job("quick"))
        engine.join()
    assert held.errors() == {"slow": None}
    assert set(checks_of(delivered)) == {"slow", "quick"}
