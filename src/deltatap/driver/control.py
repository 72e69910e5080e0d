"""Evaluates the workers' heartbeats: which attempts are running, their shares of the streams, and the mean output.

Pure, apart from counting journal files. Leaves permits to ``pacer.py``, stops to ``stopping.py``, and publishing to
``loop.py``.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.messages import POLL_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.messages import Heartbeat
    from deltatap.state import RunState

_JOURNAL_FILES = 1000
# The schedule does not wait longer than this for workers that have not started.
_STRAGGLERS_S = 30.0
# Time for each worker to read when the schedule begins, before it begins.
_NOTICE_S = 2 * POLL_S


def backlog(state: RunState, landed: int = 0) -> bool:
    """Whether too many journal files are waiting to land. If so, no more requests may start.

    Also true if the journal cannot be listed now.

    Args:
        state: the run's state folder.
        landed: the number of journal files that have landed and are not deleted yet.
    """
    try:
        return len(state.files.names(state.journal, ".parquet")) - landed > _JOURNAL_FILES
    except OSError:
        return True


class Heard:
    """The latest heartbeat of each attempt that the driver has read.

    A heartbeat stays even if an old listing does not show its file, or if a read returns an old copy of the file.
    """

    def __init__(self) -> None:
        self._beats: dict[str, Heartbeat] = {}

    def add(self, beats: Iterable[Heartbeat]) -> list[Heartbeat]:
        """Take the heartbeats that were just read; returns the latest one of every attempt."""
        for beat in beats:
            known = self._beats.get(beat.claim)
            if known is None or (beat.ended, beat.beat) >= (known.ended, known.beat):
                self._beats[beat.claim] = beat
        return [self._beats[claim] for claim in sorted(self._beats)]


def newest(beats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """The heartbeats of each part's newest attempt."""
    return list({beat.part: beat for beat in sorted(beats, key=lambda beat: beat.claim)}.values())


def working(beats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """The heartbeats of the running attempts. If a part has several attempts, only the newest one counts."""
    return [beat for beat in newest(beats) if not beat.ended]


def shares(beats: Iterable[Heartbeat], concurrency: int, streams_per_worker: int) -> dict[str, int]:
    """Divide the run's streams among the running attempts: the number of streams for each claim.

    Args:
        beats: of the run's workers.
        concurrency: how many streams the run may hold open.
        streams_per_worker: how many streams one attempt may hold open.
    """
    claims = [beat.claim for beat in working(beats)]
    return {claim: min(streams_per_worker, (concurrency + at) // len(claims)) for at, claim in enumerate(claims)}


def mean_output_tokens(beats: Iterable[Heartbeat]) -> float | None:
    """The mean of the workers' means; None if no worker reports one."""
    means = [beat.mean_output_tokens for beat in beats if beat.mean_output_tokens is not None]
    return statistics.fmean(means) if means else None


@dataclass(slots=True)
class Opening:
    """Decides when the schedule of ``capture.arrivals`` begins: soon after the workers of all parts are ready.

    Attributes:
        parts: how many parts the plan has.
        begins_at: in seconds since the epoch; None until this is decided. Once decided, it does not change, so the
            attempts of a part follow one schedule.
    """

    parts: int
    begins_at: float | None = None
    _first: float | None = None

    def turn(self, beats: Iterable[Heartbeat], now: float) -> float | None:
        """Read the heartbeats; returns `begins_at`.

        Args:
            beats: of the run's workers.
            now: in seconds since the epoch.
        """
        ready = len({beat.part for beat in beats})
        if self.begins_at is None and ready:
            self._first = now if self._first is None else self._first
            # The cluster may have fewer slots than the plan has parts.
            if ready == self.parts or now - self._first >= _STRAGGLERS_S:
                self.begins_at = now + _NOTICE_S
        return self.begins_at
