"""What the background threads of a run repeat: renewing its lease, and landing its journal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from deltatap.driver import lease
from deltatap.driver.lease import Moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.driver.active import ActiveRun
    from deltatap.driver.landing import Landing

LAND_EVERY_S = 1.0
# Another writer may commit first, and the journal keeps everything until it has landed.
LANDING_TRIES = 5


class LeaseRenewal:
    """Renews a run's lease, and knows when it did so last.

    Attributes:
        counts: the run's counts, written with each renewal.
    """

    def __init__(self, run: ActiveRun) -> None:
        self._run = run
        self._renewed_at = run.lease.taken_at
        self.counts: Mapping[str, Any] = {}

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            LeaseLostError: if another driver holds the lease.
        """
        at = Moment.now()
        lease.renew(self._run.spark, self._run.settings, self._run.lease, self.counts)
        self._renewed_at = at

    def is_unsure(self) -> bool:
        """Whether another driver may hold the lease by now."""
        return lease.is_unsure(self._renewed_at, Moment.now())


class SharedLanding:
    """A run's landing, used by the landing thread and by the control loop, one at a time."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self._lock = threading.Lock()

    def keep(self) -> None:
        """See that the journal lands within some seconds."""
        with self._lock:
            self._landing.keep()

    def drain(self) -> None:
        """Land the whole journal."""
        with self._lock:
            self._landing.drain()
