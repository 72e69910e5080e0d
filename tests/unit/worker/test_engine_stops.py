"""What ends a run or a model in an engine: a stop, a fatal error, refusals of a model, and a limit that lasts too long."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from deltatap.model import CaptureError, Job, Wire
from deltatap.worker.engine import Engine
from tests.scripted import LIMITS, Delivered, Scripted, called, job

pytestmark = pytest.mark.usefixtures("no_backoff")


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


def test_a_call_that_stays_wrong_after_corrections_stops_the_run() -> None:
    refused = replace(called(CaptureError("authentication", None, "no", 401)), resend=True)
    client = Scripted({"b": [refused] * 9})
    delivered = Delivered()
    with Engine(lambda: client, limits=LIMITS, look_ahead=2, deliver=delivered.put, share=4) as engine:
        engine.submit(job("b"))
        engine.join()
        assert engine.fatal is not None
    assert len(client.started) == 3
