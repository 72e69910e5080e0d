"""Requests that an engine calls one after the other: pairs, and identical requests that share one answer."""

from __future__ import annotations

import time

import pytest

from deltatap.model import CaptureError, Job
from deltatap.worker.engine import Engine
from tests.scripted import LIMITS, Delivered, Scripted, job

pytestmark = pytest.mark.usefixtures("no_backoff")


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
