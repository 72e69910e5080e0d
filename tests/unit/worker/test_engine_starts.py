"""When an engine starts its calls: shares, permits, cool-downs, the schedule, and the room for more jobs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from deltatap.messages import Permit
from deltatap.model import CaptureError
from deltatap.worker import retry
from deltatap.worker.engine import Engine, Proceed
from tests.scripted import LIMITS, Delivered, Scripted, called, job, run

pytestmark = pytest.mark.usefixtures("no_backoff")


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
