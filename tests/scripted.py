"""An engine's jobs, a client that follows a script without a network, and the captures that the engine delivered."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from deltatap import config
from deltatap.model import Call, Capture, CaptureError, Choice, Chunks, Job, Received, Request, Verdict, Wire
from deltatap.worker.engine import Engine

if TYPE_CHECKING:
    from deltatap.http.reading import Watch
    from deltatap.messages import OpenStream

LIMITS = config.Capture(max_attempts=3, max_broken=2, retry_for_s=5)


def called(error: CaptureError | None = None, text: str = "Hi") -> Call:
    """A call that received a text, or failed."""
    output = error is None
    received = Received(Chunks(), (Choice(0, text),) if output else (), output=output, finished=output)
    now = time.perf_counter()
    return Call(0.0, 0.0, now, 1.0, 1.0, 1.0, None, received, "completed" if output else "failed", error, 200)


class Scripted:
    """Answers each body by its script: a call, an error, an exception to raise, or a word.

    `held` waits until the call is cancelled. `brief` takes 20 ms, so that several calls are open at once.
    """

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
            what = self.scripted(body)
            if what == "held":
                await asyncio.Event().wait()
            if what == "brief":
                await asyncio.sleep(0.02)
                what = None
            if isinstance(what, BaseException):
                raise what
            if isinstance(what, Call):
                return what
            return called(what)
        except asyncio.CancelledError:
            return called(CaptureError("cancelled", None, "cut"))
        finally:
            self.open -= 1

    def scripted(self, body: str) -> Any:
        """What the next call of this body gives."""
        script = self.scripts.get(body)
        return script.pop(0) if script else None

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
            self.captures += capture.with_copies
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
