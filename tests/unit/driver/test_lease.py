from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from deltatap.delta.identity import Identity
from deltatap.driver import runs
from deltatap.driver.lease import (
    LEASE_S,
    UNSURE_S,
    Lease,
    Moment,
    Renewal,
    Watch,
    close,
    is_alive,
    run_to_resume,
    this_driver,
)
from deltatap.errors import LeaseLostError
from deltatap.model import RunStatus
from deltatap.settings_loading import load_settings

if TYPE_CHECKING:
    from deltatap.config import Settings

NOW = datetime(2026, 11, 20, tzinfo=UTC)


class World:
    """A clock, and a ``runs`` table whose commits take time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.takes_s, self.fails = Moment(1000, 50), 0.0, False
        self.rows: list[Any] = [{"run_id": "a", "epoch": 1, "status": "running"}]
        self.written: list[Any] = []
        monkeypatch.setattr(runs, "update", self.update)
        monkeypatch.setattr(runs, "read", lambda *_: self.rows)
        monkeypatch.setattr(Moment, "now", lambda: self.now)

    def passes(self, wall_s: float, monotonic_s: float) -> None:
        self.now = Moment(self.now.wall + wall_s, self.now.monotonic + monotonic_s)

    def update(
        self, _spark: object, _settings: object, _captures: object, run_id: str, values: Any, only_if: str
    ) -> None:
        assert (run_id, only_if) == ("a", "status = 'running' AND epoch = 1")
        self.passes(self.takes_s, self.takes_s)
        if self.fails:
            raise OSError(5, "Input/output error")
        assert values.pop("heartbeat_at") is not None
        self.written.append(values)
        for row in self.rows:
            if (row["run_id"], row["epoch"], row["status"]) == ("a", 1, "running"):
                row.update(values)

    @property
    def lease(self) -> Lease:
        return Lease("a", 1, NOW, resumed=False, others=(), died=(), taken_at=self.now, captures=Identity("t"))

    def renewal(self) -> Renewal:
        return Renewal(cast("Any", None), settings(), self.lease)

    def close(self) -> dict[str, Any]:
        return close(cast("Any", None), settings(), self.lease, RunStatus.COMPLETED, None, {"completed": 3})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "unsure"),
    [
        (UNSURE_S, UNSURE_S, False),
        (UNSURE_S + 1, UNSURE_S + 1, True),
        (UNSURE_S + 1, 0, True),  # the machine slept
        (-1000, UNSURE_S + 1, True),  # the wall clock was set back
        (-1000, 0, False),
    ],
)
def test_a_lease_is_unsure_if_either_clock_says_so(
    world: World, wall_s: float, monotonic_s: float, *, unsure: bool
) -> None:
    assert UNSURE_S < LEASE_S
    renewal = world.renewal()
    world.passes(wall_s, monotonic_s)
    assert renewal.is_unsure() == unsure


def test_a_renewal_writes_the_latest_counts(world: World) -> None:
    renewal = world.renewal()
    renewal.renew()
    renewal.counts = {"completed": 3}
    renewal.renew()
    assert world.written == [{}, {"completed": 3}]


def test_a_renewed_lease_counts_from_the_start_of_the_renewal(world: World) -> None:
    renewal, world.takes_s = world.renewal(), 10
    world.passes(UNSURE_S + 1, UNSURE_S + 1)
    renewal.renew()
    assert not renewal.is_unsure()
    world.passes(UNSURE_S - 9, UNSURE_S - 9)
    assert renewal.is_unsure(), "the heartbeat in the table is from before the commit"


TAKEN = {
    "by the same run": [{"run_id": "a", "epoch": 2, "status": "running"}],
    "by another run": [{"run_id": "a", "epoch": 1, "status": "died"}, {"run_id": "b", "epoch": 2, "status": "running"}],
    "and the row is gone": [],
}


@pytest.mark.parametrize("rows", TAKEN.values(), ids=TAKEN)
def test_a_lease_that_another_driver_holds_is_lost(world: World, rows: list[Any]) -> None:
    renewal, world.rows = world.renewal(), rows
    world.passes(UNSURE_S + 1, UNSURE_S + 1)
    with pytest.raises(LeaseLostError, match="run a: another driver has taken over"):
        renewal.renew()
    assert renewal.is_unsure()


@pytest.mark.parametrize("rows", TAKEN.values(), ids=TAKEN)
def test_a_driver_that_has_lost_its_lease_cannot_close_the_run(world: World, rows: list[Any]) -> None:
    world.rows = rows
    with pytest.raises(LeaseLostError, match="run a: another driver has taken over"):
        world.close()


def test_closing_a_run_releases_its_lease(world: World) -> None:
    """The next driver may take the lease before the row is read again."""
    world.rows.append({"run_id": "b", "epoch": 2, "status": "running"})
    row = world.close()
    assert (row["status"], row["completed"]) == ("completed", 3)
    assert row["finished_at"] is not None
    assert world.close() is row, "a run that is closed already stays as it is"


def test_renewals_may_fail_for_a_while(world: World) -> None:
    """The run pauses while its lease is unsure, and fails only if the storage does not come back."""
    renewal, world.fails = world.renewal(), True
    for _ in range(2):
        renewal.renew()
        world.passes(60, 60)
    assert renewal.is_unsure()
    world.fails = False
    renewal.renew()
    assert not renewal.is_unsure()
    world.fails, world.takes_s = True, 3600  # only the time since the first failure counts
    renewal.renew()
    world.takes_s = 0
    world.passes(119, 119)
    renewal.renew()
    world.passes(1, 1)
    with pytest.raises(OSError, match="Input/output error"):
        renewal.renew()


def test_a_table_that_cannot_be_read_for_a_while_is_no_lost_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewal, failures = world.renewal(), 3

    def read(*_: object) -> list[Any]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(5, "Input/output error")
        return world.rows

    def sleep(seconds: float) -> None:
        world.passes(seconds, seconds)

    monkeypatch.setattr(runs, "read", read)
    world.passes(UNSURE_S + 1, UNSURE_S + 1)
    renewal.require(sleep)
    assert failures == -1
    failures = 1000
    with pytest.raises(OSError, match="Input/output error"):
        renewal.require(sleep)
    assert failures == 1000 - 121


def test_what_belongs_to_the_holder_needs_the_lease(world: World) -> None:
    renewal = world.renewal()
    world.rows = TAKEN["by another run"]
    renewal.require()  # not worth a look at the table
    world.passes(UNSURE_S + 1, 0)
    with pytest.raises(LeaseLostError):
        renewal.require()
    renewal = world.renewal()
    with pytest.raises(LeaseLostError):
        renewal.renew()
    with pytest.raises(LeaseLostError):
        renewal.require()


def other_host(**values: Any) -> str:
    return json.dumps({"host": "other", "boot": "x", "pid": 1, "start": "1", **values})


def test_a_driver_on_this_host_is_alive_if_its_process_is() -> None:
    ours = json.loads(this_driver())
    assert (ours["host"], ours["pid"]) == (socket.gethostname(), os.getpid())
    assert is_alive(json.dumps(ours), 1e9) is True, "the heartbeat does not matter"
    assert is_alive(json.dumps(ours | {"start": "0"}), 0) is False, "another process has the same pid"
    assert is_alive(json.dumps(ours | {"pid": 2**22 + 1}), 0) is False, "there is no such process"
    assert is_alive(json.dumps(ours | {"boot": "an earlier one"}), 0) is None, "its pid says nothing after a reboot"


@pytest.mark.parametrize(("age_s", "alive"), [(0, None), (LEASE_S, None), (LEASE_S + 1, False)])
def test_a_driver_on_another_host_is_dead_once_its_lease_expires(age_s: float, alive: bool | None) -> None:  # noqa: FBT001
    assert is_alive(other_host(), age_s) is alive


def test_a_new_heartbeat_proves_that_a_driver_on_another_host_is_alive() -> None:
    watch = Watch(lambda: 0.0)
    row = {"run_id": "a", "driver": other_host(), "heartbeat_at": NOW - timedelta(seconds=5)}
    assert watch.is_alive(row, NOW) is None
    assert watch.is_alive(row, NOW) is None
    assert watch.is_alive(row | {"heartbeat_at": NOW}, NOW) is True
    assert watch.is_alive(row | {"run_id": "b", "heartbeat_at": NOW}, NOW) is None, "another run"


def test_each_driver_is_watched_for_as_long_as_a_lease_lasts() -> None:
    """A driver that took the lease while this one waited for another driver was once declared dead after seconds."""
    now = [0.0]
    watch = Watch(lambda: now[0])
    ahead = {"run_id": "a", "driver": other_host(), "heartbeat_at": NOW + timedelta(hours=1)}
    assert watch.is_alive(ahead, NOW) is None
    now[0] = LEASE_S - 1
    taken = {"run_id": "b", "driver": other_host(), "heartbeat_at": NOW}
    assert (watch.is_alive(ahead, NOW), watch.is_alive(taken, NOW)) == (None, None)
    now[0] = LEASE_S
    assert (watch.is_alive(ahead, NOW), watch.is_alive(taken, NOW)) == (False, None)


def settings(**sections: Any) -> Settings:
    return load_settings({"endpoint": {"api_key": None, "name": "sim"}, "prices": None, **sections})


def row(run_id: str, status: str, **sections: Any) -> Any:
    return {"run_id": run_id, "status": status, "config": json.dumps(settings(**sections).model_dump(mode="json"))}


def resumed(rows: list[Any], **sections: Any) -> str | None:
    found = run_to_resume(rows, settings(**sections))
    return None if found is None else found["run_id"]


def test_a_dead_run_of_the_same_job_is_resumed() -> None:
    assert resumed([]) is None
    assert resumed([row("a", "completed"), row("b", "running")]) == "b"
    assert resumed([row("a", "failed"), row("b", "died")]) is None


@pytest.mark.parametrize(
    ("sections", "same"),
    [
        ({"capture": {"concurrency": 3}}, True),
        ({"budget": {"tokens": 3}}, True),
        ({"request": {"temperature": 1}}, False),
        ({"capture": {"mode": "paired"}}, False),
        ({"capture": {"owed": "all"}}, False),
        ({"endpoint": {"api_key": None, "name": "another"}}, False),
        ({"endpoint": {"api_key": None, "name": "sim", "model": "another"}}, False),
        ({"endpoint": {"api_key": None, "name": "sim", "api": "completions"}}, False),
    ],
)
def test_which_settings_must_match_to_resume_a_run(sections: dict[str, Any], same: bool) -> None:  # noqa: FBT001
    assert (resumed([row("a", "running", **sections)]) == "a") == same


@pytest.mark.parametrize(
    "config",
    [
        '{"capture": {"new_knob": 1}}',
        '{"endpoint": {"api": "telepathy"}}',
        "{}",
        "null",
        "[",
        "",
        '{"capture": {"mode": 3}}',
    ],
)
def test_a_configuration_that_this_version_cannot_read_is_another_job(config: str) -> None:
    assert resumed([{"run_id": "a", "status": "running", "config": config}]) is None


@pytest.mark.parametrize(
    "driver", [None, "", "null", "[1]", '{"pid": 1}', '{"host": "x", "boot": 1, "start": 1, "pid": "x"}']
)
def test_a_driver_that_this_version_cannot_read_is_judged_by_its_heartbeat(driver: str | None) -> None:
    assert is_alive(driver, LEASE_S - 1) is None
    assert is_alive(driver, LEASE_S + 1) is False


def test_a_configured_run_id_resumes_that_run_with_any_status() -> None:
    rows = [row("a", "completed", request={"temperature": 1}), row("b", "running")]
    assert resumed(rows, run={"id": "a"}) == "a"
    assert resumed(rows, run={"id": "c"}) is None


def test_a_run_that_is_corrected_after_its_end_has_a_new_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its heartbeat, the analysis knows that the run has changed."""
    written: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(runs, "utc_now", lambda: NOW)
    monkeypatch.setattr(runs, "update", lambda *args: written.append((args[-1], args[-2])))
    runs.settle(cast("Any", None), load_settings({}), Identity("t"), "a", {"completed": 2})
    assert written[-1] == ("status != 'running'", {"completed": 2, "heartbeat_at": NOW})
