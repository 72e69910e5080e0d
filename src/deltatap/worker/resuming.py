"""Which broken answers a worker resumes, and when.

Also the list of its open streams, for the worker that follows after a kill. Pure.

Knows the answer that each job reads and when it is given up. Times are passed in. ``http/resumable.py`` has the state
of one answer, ``retry.py`` decides when a request is sent again, and ``kept_streams.py`` writes the list.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from deltatap.api.codes import UNFINISHED
from deltatap.http.resumable import Resumable
from deltatap.messages import KeptStream
from deltatap.worker.retry import Retry, asked_s, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from deltatap.config import Capture as Limits
    from deltatap.model import Call, Capture, Job, Wire

    Key = tuple[str, str, str, str]

# Maximum number of calls for one answer, because a server may break each connection after one event.
_MOST_READS = 1000
# How long to wait before asking again whether an answer is finished.
_PENDING_S = 2.0
# Tables keep times in microseconds.
_SAME_S = 1e-4
# Errors after which only waiting helps: the generation has not begun, or the server asks to wait.
_WAITS = ("timeout", "rate_limit")


@dataclass(frozen=True, slots=True)
class Read:
    """The next step if the server still has the answer of a call: resume at a time, or give up (None)."""

    retry: Retry | None


class Resuming:
    """The answers of one worker. The event loop changes it; the thread that writes the list of streams reads it."""

    def __init__(
        self,
        endpoint: str,
        earlier: Mapping[Key, KeptStream] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Start without an answer.

        Args:
            endpoint: its name.
            earlier: the streams that killed workers had open.
            changed: called when a call begins, and when the id of a response has arrived; must not block.
        """
        self.changed = changed
        self._endpoint, self._earlier = endpoint, dict(earlier or {})
        self._answers: dict[Job, Resumable] = {}
        self._streams: dict[Key, Resumable] = {}
        self._lock = threading.Lock()

    def answer(self, job: Job, wire: Wire) -> Resumable:
        """The answer that the next call of a job begins or resumes."""
        answer = self._answers.get(job)
        if answer is not None and answer.readable:
            return answer
        key = self._key(job)
        known = self._earlier.pop(key, None) if wire.resumable else None
        answer = Resumable() if known is None else Resumable.after_kill(known.response_id, known.started_at)
        answer.kept = wire.resumable
        self._answers[job] = answer
        if wire.resumable:
            answer.changed = self._note
            with self._lock:
                self._streams[key] = answer
        return answer

    def next_read(self, job: Job, call: Call, limits: Limits, *, now: float, jitter: float) -> Read | None:
        """Decide the next step after a call. None: the answer cannot be resumed, so the usual rules apply.

        Args:
            job: the job.
            call: its last call.
            limits: ``max_attempts`` and ``retry_for_s``.
            now: monotonic seconds.
            jitter: from 0 to 1.
        """
        answer, error = self._answers.get(job), call.error
        if answer is None or error is None or not answer.readable:
            return None
        if answer.progress or answer.since is None:
            answer.stale, answer.since = 0, now
        answer.stale += 1
        pending = error.code in UNFINISHED
        if answer.reads >= _MOST_READS:
            return Read(None)
        if not pending and error.type not in _WAITS and answer.stale > limits.max_attempts:
            return Read(None)
        asked = asked_s(error)
        first = answer.stale == 1 or error.code == "unstreamable"
        delay = (
            _PENDING_S if pending else asked if asked is not None else 0.0 if first else backoff(answer.stale, jitter)
        )
        if answer.stale > 1 and now + delay - answer.since > limits.retry_for_s:
            return Read(None)
        return Read(Retry(delay, f"resume after {error.type}"))

    def ended(self, job: Job) -> None:
        """A job makes no more calls. Its stream stays in the list until :meth:`journaled`.

        An earlier start of the run may have a row with a part of this answer, which must not be billed twice.
        """
        answer = self._answers.pop(job, None)
        if answer is not None and answer.lost and not answer.expired:
            job.earlier[:] = [call for call in job.earlier if not _began_at(call, answer.started_at)]

    def journaled(self, captures: Iterable[Capture]) -> None:
        """Remove from the list the streams whose captures are on disk, unless the next run can resume the answer."""
        with self._lock:
            for capture in captures:
                if (answer := self._streams.get(key := self._key(capture.job))) is None:
                    continue
                if not answer.unfinished:
                    del self._streams[key]

    def kept_streams(self) -> list[KeptStream]:
        """The streams that are open, or that have ended and are not in the journal yet."""
        with self._lock:
            streams = list(self._streams.items())
        return [
            KeptStream(request_id, request_hash, mode, endpoint, answer.started_at, answer.response_id, answer.sequence)
            for (endpoint, request_id, request_hash, mode), answer in streams
            if answer.started_at is not None
        ]

    def _note(self) -> None:
        self.changed()

    def _key(self, job: Job) -> Key:
        return self._endpoint, job.request.request_id, job.request.request_hash, job.mode


def _began_at(call: Mapping[str, object], at: float | None) -> bool:
    began = call["started_at"]
    return isinstance(began, datetime) and at is not None and abs(began.timestamp() - at) < _SAME_S
