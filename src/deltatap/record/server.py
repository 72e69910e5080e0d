"""Accepts the connections of clients on one socket, runs a session for each, and ends the sessions.

Runs on an event loop in its own thread, so that landing and signals do not delay a stream. ``session.py`` serves a
connection, ``run.py`` decides when to stop.
"""

from __future__ import annotations

import asyncio
import resource
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

import uvloop

from deltatap.record.session import Session, Shared

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from deltatap.messages import Heartbeat

# How long to wait after accept() has failed, which means that the process has no file descriptors left.
_AGAIN_S = 0.1
_JOIN_S = 10.0
# A heartbeat that takes longer is skipped.
_LATE_S = 5.0


class Server:
    """Serves clients until it is stopped.

    Args:
        listening: the socket.
        make_shared: what all sessions use; called on the event loop.

    Attributes:
        failure: why the server itself has failed; None while it works.
    """

    def __init__(self, listening: socket.socket, make_shared: Callable[[], Shared]) -> None:
        self._listening, self._make_shared = listening, make_shared
        self._loop = uvloop.new_event_loop()
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="deltatap-record", daemon=True)
        self._shared: Shared | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Accept connections from now on."""
        _allow_files()
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Accept no more connections, wait for open requests, and cut those that take longer. Returns at the end."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._loop.call_soon_threadsafe(self._loop.call_later, grace_s, self._cut)
        self._thread.join(grace_s + _JOIN_S)

    def heartbeat(self) -> Heartbeat | None:
        """The state of the recording; None before the start, after the end, and while the event loop stalls.

        Call it from any thread.
        """
        if (shared := self._shared) is None or not self._thread.is_alive():
            return None
        answer: Future[Heartbeat] = Future()
        with suppress(RuntimeError, TimeoutError):  # the loop has ended, or the machine stalls
            self._loop.call_soon_threadsafe(lambda: answer.set_result(shared.recorder.heartbeat()))
            return answer.result(_LATE_S)
        return None

    # Everything below runs on the event loop's thread.

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the control loop raises it
            self.failure = error

    async def _serve(self) -> None:
        self._shared = shared = self._make_shared()
        self._listening.setblocking(False)
        lag = asyncio.create_task(shared.recorder.lag.run())
        accepting = asyncio.create_task(self._accept(shared))
        try:
            await asyncio.wait({accepting, asyncio.create_task(self._stopping.wait())}, return_when="FIRST_COMPLETED")
            if accepting.done():
                accepting.result()
        finally:
            accepting.cancel()
            for session in self._sessions.values():
                session.stop()
            await asyncio.gather(accepting, *self._sessions, return_exceptions=True)
            lag.cancel()
            await asyncio.gather(lag, return_exceptions=True)

    async def _accept(self, shared: Shared) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(self._listening)
            except OSError:
                await asyncio.sleep(_AGAIN_S)
                continue
            try:
                session = Session(client, shared)
            except OSError:  # it is gone already
                client.close()
                continue
            task = asyncio.create_task(session.run())
            self._sessions[task] = session
            task.add_done_callback(self._sessions.pop)

    def _cut(self) -> None:
        for session in self._sessions.values():
            session.cut()


def _allow_files() -> None:
    """Let the process open as many files as the system permits: each connection of a client takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):  # macOS permits less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
