"""Takes the recorded exchanges of one process: creates their request ids, writes them to the journal, counts them.

Each API has a separate journal writer, because the rows of a writer share their API. The writers run in threads;
everything else here runs on the event loop. ``session.py`` makes recordings, ``run.py`` lands the journal.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Self

from deltatap.api import registry
from deltatap.http.live import STREAMS, open_stream
from deltatap.messages import Heartbeat, OpenStream
from deltatap.record.forwarding import deployment_of, path_of, secrets_of
from deltatap.record.recording import Recording
from deltatap.worker.bootstrap import context_of
from deltatap.worker.journal import JournalWriter, warm_up
from deltatap.worker.lag import LagWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deltatap.api.base import Api
    from deltatap.config import Settings
    from deltatap.model import CaptureError
    from deltatap.prices import Prices
    from deltatap.record.requests import Head
    from deltatap.state import RunState

# The heartbeat's lag covers this many seconds.
_LAG_S = 5.0


class Recorder:
    """Records exchanges until the context ends; then the journal has all of them.

    Args:
        settings: of the recording.
        prices: USD per million tokens.
        run_id: of the recording's run.
        state: its state folder.
        epoch: of its lease.
        secrets: values that no row may contain, in addition to the secrets of each request.

    Attributes:
        lag: measures the delays of the event loop.
        requests: how many exchanges have begun.
    """

    def __init__(
        self, settings: Settings, prices: Prices, run_id: str, state: RunState, epoch: int, secrets: frozenset[str]
    ) -> None:
        self._settings, self._state, self._epoch, self._secrets = settings, state, epoch, secrets
        self._open: dict[str, Recording] = {}
        self._rows = count()
        self._writers: dict[str, JournalWriter] = {}
        self._contexts = {}
        self._claim = f"00000-000001-{uuid.uuid4().hex}"
        for part, name in enumerate(registry.NAMES):
            context = replace(context_of(settings, prices, run_id, part), api=name)
            self._contexts[name] = context
            prefix = f"{state.folder.name}-{self._claim}-{part}"
            self._writers[name] = JournalWriter(
                state.journal,
                prefix,
                context,
                plan=epoch,
                part=part,
                flush_s=settings.state.flush_s,
                files=state.files,
            )
        self._stack = ExitStack()
        self._beats = count(1)
        self.lag = LagWatch()
        self.requests = 0

    def __enter__(self) -> Self:
        warm_up(next(iter(self._contexts.values())))
        for writer in self._writers.values():
            self._stack.enter_context(writer)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def failure(self) -> BaseException | None:
        """Why the journal cannot be written; None while it can."""
        return next((writer.failure for writer in self._writers.values() if writer.failure is not None), None)

    def begin(self, api: Api, head: Head) -> Recording:
        """Begin to record an exchange."""
        self.requests += 1
        request_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}"
        path = path_of(head.target).partition(b"?")[0].decode("latin1")
        recording = Recording(
            api,
            request_id,
            self._secrets | secrets_of(head),
            path,
            deployment_of(head),
            self._settings.timeouts,
            self._settings.capture.keep_raw,
        )
        self._open[request_id] = recording
        return recording

    def end(self, recording: Recording, failure: CaptureError | Exception | None) -> None:
        """Record the end of an exchange."""
        self._open.pop(recording.request_id, None)
        lag_ms = self.lag.worst_ms(since=recording.started)
        self._writers[recording.api.name].put(recording.captured(failure, next(self._rows), lag_ms))

    def drop(self, recording: Recording) -> None:
        """Forget an exchange whose request never arrived completely."""
        self._open.pop(recording.request_id, None)

    def heartbeat(self, *, ended: bool = False, now: Callable[[], float] = time.time) -> Heartbeat:
        """The state of the recording, in the form of a worker's message."""
        totals = [writer.totals for writer in self._writers.values()]
        costs = [each.cost_usd for each in totals if each.cost_usd is not None]
        ttft = sorted(each.ttft_ms for each in totals if each.ttft_ms is not None)
        return Heartbeat(
            epoch=self._epoch,
            claim=self._claim,
            beat=next(self._beats),
            open=len(self._open),
            requests=self.requests,
            rows=_added(each.rows for each in totals),
            errors=_added(each.errors for each in totals),
            input_tokens=sum(each.input_tokens for each in totals),
            output_tokens=sum(each.output_tokens for each in totals),
            cost_usd=sum(costs) if costs else None,
            ttft_ms=ttft[len(ttft) // 2] if ttft else None,
            loop_lag_ms=self.lag.worst_ms(since=time.perf_counter() - _LAG_S),
            ended=ended,
            at=now(),
            streams=self._streams(),
        )

    def _streams(self) -> list[OpenStream]:
        """The streams that have been open for the longest time."""
        found: list[OpenStream] = []
        for recording in self._open.values():
            if recording.reading is None or recording.asked is None:
                continue
            if len(found) == STREAMS:
                break
            model = recording.asked.request.model or ""
            found.append(open_stream(recording.reading, model, recording.mode, recording.started, recording.secrets))
        return found


def _added(counts: Iterable[Counter[str]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(dict(each))  # a copy, because the writer's thread counts
    return dict(total)
