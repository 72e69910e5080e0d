"""Many jobs on one event loop, with a scripted client: no network, and the tests wait only for events."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from deltatap.model import Capture, CaptureError
from deltatap.worker.engine import Engine
from tests.scripted import LIMITS, Delivered, Scripted, called, job, run

pytestmark = pytest.mark.usefixtures("no_backoff")


def test_every_job_is_delivered_once_within_the_share() -> None:
    bodies = [f"b{n}" for n in range(60)]
    client = Scripted({body: ["brief"] for body in bodies})
    delivered = run(client, bodies, share=3)
    assert sorted(capture.job.request.request_id for capture in delivered.captures) == sorted(bodies)
    assert client.most_open == 3
    assert all(capture.queued_ms is not None and capture.loop_lag_ms is not None for capture in delivered.captures)


def test_a_failed_call_is_retried_and_kept() -> None:
    down = CaptureError("server", None, "x", 500)
    client = Scripted({"a": [down, down, None], "b": [down, down, down]})
    delivered = run(client, ["a", "b", "c"])
    calls = {
        capture.job.request.request_id: [call.status for call in capture.job.calls] for capture in delivered.captures
    }
    assert calls == {"a": ["failed", "failed", "completed"], "b": ["failed"] * 3, "c": ["completed"]}


def test_a_bad_row_is_delivered_without_a_call() -> None:
    client, delivered = Scripted(), Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=8, deliver=delivered.put, share=4) as engine:
        engine.submit(job("bad", error="no prompt"))
        engine.join()
    assert (client.started, delivered.errors()) == ([], {"bad": "invalid_request"})


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
    failed: list[object] = []

    def fail(*of: object) -> None:
        failed.append(of)
        raise ZeroDivisionError

    monkeypatch.setattr("deltatap.worker.engine.cool_down", fail)
    assert run(Scripted(), ["a", "b"]).errors() == {"a": None, "b": None}
    assert len(failed) == 2


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


def test_a_corrected_call_is_resent_at_once() -> None:
    expired = replace(called(CaptureError("authentication", None, "expired", 401)), resend=True)
    client = Scripted({"b": [expired]})
    (capture,) = run(client, ["b"]).captures
    assert [call.status for call in capture.job.calls] == ["failed", "completed"]
    assert capture.job.tries.attempts == 0, "it is not an attempt"


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
