"""Writes the list of a worker's open streams (``capture.resume``) to one small file, synced to disk.

Knows when the file is written: at once when a call begins and when the id of a response has arrived, because a kill
before the write would cost a second call; otherwise once per flush interval. A write that fails is not repeated,
because the next one has a newer list. Leaves the content of the list to ``resuming.py``, and the file to ``state.py``.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from deltatap.files import Files

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.messages import KeptStream
    from deltatap.state import RunState
    from deltatap.worker.resuming import Resuming

# Writing takes at most a fifth of the time: on slow storage, ids that arrive during a write wait for the next one.
_PAUSE = 4


class KeptStreamsFile:
    """Keeps the file up to date, in its own thread, until the context ends."""

    def __init__(
        self,
        state: RunState,
        claim: str,
        resuming: Resuming,
        *,
        flush_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is written before the context is entered.

        Args:
            state: the run's state folder.
            claim: the attempt's name.
            resuming: knows the open streams.
            flush_s: the maximum time between two writes, if anything has changed.
            clock: monotonic seconds.
        """
        self._state, self._claim, self._resuming = state, claim, resuming
        self._now = replace(state, files=Files(patience_s=0.0))
        self._flush_s, self._clock = flush_s, clock
        self._changed, self._closed = threading.Event(), threading.Event()
        self._written: list[KeptStream] = []
        self._thread = threading.Thread(target=self._main, name="deltatap-kept-streams", daemon=True)
        resuming.changed = self._changed.set

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._changed.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._closed.is_set():
            self._changed.wait(self._flush_s)
            self._changed.clear()
            began = self._clock()
            self._write(self._now)
            self._closed.wait(min(self._flush_s, _PAUSE * (self._clock() - began)))
        self._write(self._state)

    def _write(self, state: RunState) -> None:
        """Write the list if it has changed. A full disk must not end the capture: the next write tries again."""
        if self._resuming.kept_streams() == self._written:
            return
        if state is self._now:
            self._state.files.turn()
        streams = self._resuming.kept_streams()  # changes that arrived while it waited count, too
        with suppress(OSError):
            state.note_kept(self._claim, streams)
            self._written = streams
