from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deltatap.config import Settings, load_settings
from deltatap.driver import lease
from deltatap.driver.lease import LEASE_S, UNSURE_S, Moment, Watch, is_alive, run_to_resume, this_driver

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "unsure"),
    [
        (Moment(1000 + UNSURE_S, 50 + UNSURE_S), False),
        (Moment(1000 + UNSURE_S + 1, 50 + UNSURE_S + 1), True),
        (Moment(1000 + UNSURE_S + 1, 50), True),  # the machine slept
        (Moment(0, 50 + UNSURE_S + 1), True),  # the wall clock was set back
        (Moment(0, 50), False),
    ],
)
def test_a_lease_is_unsure_once_either_clock_says_so(now: Moment, unsure: bool) -> None:  # noqa: FBT001
    assert UNSURE_S < LEASE_S
    assert lease.is_unsure(Moment(1000, 50), now) == unsure


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
    watch = Watch()
    row = {"run_id": "a", "driver": other_host(), "heartbeat_at": NOW - timedelta(seconds=5)}
    assert watch.is_alive(row, NOW) is None
    assert watch.is_alive(row, NOW) is None
    assert watch.is_alive(row | {"heartbeat_at": NOW}, NOW) is True
    assert watch.is_alive(row | {"run_id": "b", "heartbeat_at": NOW}, NOW) is None, "another run"


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
def test_which_settings_make_another_job(sections: dict[str, Any], same: bool) -> None:  # noqa: FBT001
    assert (resumed([row("a", "running", **sections)]) == "a") == same


def test_a_configured_run_id_is_resumed_whatever_its_status_and_no_other_run_is() -> None:
    rows = [row("a", "completed", request={"temperature": 1}), row("b", "running")]
    assert resumed(rows, run={"id": "a"}) == "a"
    assert resumed(rows, run={"id": "c"}) is None
