from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from deltatap.driver import lease
from deltatap.driver.lease import UNSURE_S, Moment
from deltatap.driver.upkeep import LeaseRenewal, SharedLanding
from deltatap.errors import LeaseLostError


class World:
    """A clock, and the renewals that were written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.takes_s, self.written = 0.0, 0.0, list[Any]()
        self.lost = False
        monkeypatch.setattr(lease, "renew", self.renew)
        monkeypatch.setattr(Moment, "now", lambda: Moment(self.now, self.now))

    def renew(self, _spark: object, _settings: object, _lease: object, counts: Any) -> None:
        self.now += self.takes_s
        if self.lost:
            raise LeaseLostError("another driver")
        self.written.append(counts)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def renewal() -> LeaseRenewal:
    run = SimpleNamespace(spark=None, settings=None, lease=SimpleNamespace(taken_at=Moment(0, 0)))
    return LeaseRenewal(cast("Any", run))


def test_a_renewal_writes_the_latest_counts(world: World) -> None:
    found = renewal()
    found.renew()
    found.counts = {"completed": 3}
    found.renew()
    assert world.written == [{}, {"completed": 3}]


def test_a_lease_is_sure_again_after_a_renewal_and_counts_from_its_begin(world: World) -> None:
    found = renewal()
    world.now = UNSURE_S + 1
    assert found.is_unsure()
    world.takes_s = 10
    found.renew()
    assert not found.is_unsure()
    world.now = 2 * UNSURE_S + 2
    assert found.is_unsure(), "the heartbeat in the table is from before the commit"


def test_a_renewal_that_fails_leaves_the_lease_unsure(world: World) -> None:
    found, world.lost, world.now = renewal(), True, UNSURE_S + 1
    with pytest.raises(LeaseLostError):
        found.renew()
    assert found.is_unsure()


def test_landing_is_used_by_one_thread_at_a_time() -> None:
    busy: list[bool] = []
    shared: SharedLanding

    def step() -> None:
        busy.append(shared._lock.locked())

    shared = SharedLanding(cast("Any", SimpleNamespace(keep=step, drain=step)))
    shared.keep()
    shared.drain()
    assert busy == [True, True]
    assert not shared._lock.locked()
