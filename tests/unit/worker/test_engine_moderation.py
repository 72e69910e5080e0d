"""An engine that checks texts while they arrive, with a scripted client: no network."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import config
from deltatap.messages import Permit
from deltatap.model import CONTENT, Call, CaptureError, Choice, Chunks, Received, Verdict, Wire
from deltatap.worker.engine import Engine, Proceed
from tests.scripted import LIMITS, Delivered, Scripted, job

if TYPE_CHECKING:
    from deltatap.http.reading import Watch

pytestmark = pytest.mark.usefixtures("no_backoff")


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

    assert checks_of(moderated(Moderated(verdicts=verdict), "one", "two")) == {
        "one": [(3, False, None)],
        "two": [(3, False, None)],
    }, "the first check did not time out"


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
    assert checks_of(delivered) == {"slow": [(4, False, None)], "quick": [(5, False, None)]}
