"""A lease on a captures table, and what a driver sees that holds it or has lost it."""

from __future__ import annotations

from datetime import UTC, datetime

from deltatap.delta.identity import Identity
from deltatap.driver.lease import Lease, Moment
from deltatap.errors import LeaseLostError


def a_lease(seen_at: float = 0.0) -> Lease:
    return Lease("run", 2, datetime.now(UTC), resumed=True, others=(), died=(), taken_at=Moment.now(),
                 captures=Identity("t"), seen_at=seen_at)  # fmt: skip


def held() -> None:
    """Require a lease that is held."""


def lost(*_: object, **__: object) -> None:
    """Require a lease that another driver has taken."""
    raise LeaseLostError("another driver has taken over")
