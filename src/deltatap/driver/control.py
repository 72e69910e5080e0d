"""What the driver tells its workers twice a second: pure functions from heartbeats to :class:`Control`.

Leaves to ``pacer.py`` which requests may start, and to ``state.py`` how the workers read it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.messages import Control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deltatap.messages import Heartbeat, Permit
    from deltatap.state import RunState

_JOURNAL_FILES = 1000


def backlog(state: RunState) -> bool:
    """Whether too many journal files wait to land for more requests to start."""
    return sum(1 for _ in state.journal.glob("*.parquet")) > _JOURNAL_FILES


def shares(beats: Iterable[Heartbeat], concurrency: int, streams_per_worker: int) -> dict[str, int]:
    """Divide the run's streams among the claims that are working.

    Args:
        beats: heartbeats; of several claims on a part, only the newest counts.
        concurrency: how many streams the run may hold open.
        streams_per_worker: how many streams one claim may hold open.
    """
    newest = {beat.part: beat for beat in sorted(beats, key=lambda beat: beat.claim)}
    claims = sorted(beat.claim for beat in newest.values() if not beat.ended)
    return {claim: min(streams_per_worker, (concurrency + at) // len(claims)) for at, claim in enumerate(claims)}


def mean_output_tokens(beats: Iterable[Heartbeat]) -> float | None:
    """The mean of what the workers report; None if no worker reports any."""
    means = [beat.mean_output_tokens for beat in beats if beat.mean_output_tokens is not None]
    return statistics.fmean(means) if means else None


@dataclass(slots=True)
class Publisher:
    """Publishes the control file. Each one has a new beat, so that workers see that the driver is alive."""

    state: RunState
    epoch: int
    _beat: int = 0

    def publish(
        self,
        shares: Mapping[str, int] | None = None,
        *,
        cool_s: float = 0.0,
        stop: str | None = None,
        grace_s: float = 0.0,
        permits: Mapping[str, Permit] | None = None,
        mean_output_tokens: float | None = None,
    ) -> None:
        """Publish; the arguments are the fields of :class:`Control`."""
        self._beat += 1
        self.state.publish(
            Control(self.epoch, self._beat, shares or {}, cool_s, stop, grace_s, permits, mean_output_tokens)
        )
