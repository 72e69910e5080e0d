from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deltatap import load_settings
from deltatap.delta.identity import Identity
from deltatap.driver import leftovers
from deltatap.driver.asking import Asked, ask_to_stop
from deltatap.errors import LeaseLostError
from deltatap.messages import Control, Heartbeat
from deltatap.state import RunState
from tests.leases import a_lease, held, lost


def test_a_run_whose_leftovers_land_is_not_found_by_a_request_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, dead = (RunState(tmp_path / name) for name in ("run", "dead"))
    lease, asked = replace(a_lease(), others=("dead",)), []
    for state, epoch in ((own, lease.epoch), (dead, 1)):
        state.prepare()
        state.publish(Control(epoch, beat=1, stop=None if state is dead else "stopped by a signal"))

    def finish() -> None:
        control = dead.control()
        assert control is not None
        asked.append((ask_to_stop(tmp_path), control.epoch))

    landing = SimpleNamespace(finish=finish, state=dead, set_aside=[Path("a.parquet")])
    monkeypatch.setattr("deltatap.driver.leftovers.Landing.of", lambda *_: landing)
    for name in ("resuming.carry", "runs.totals", "runs.settle"):
        monkeypatch.setattr(f"deltatap.driver.leftovers.{name}", lambda *_: None)
    settings = load_settings({"state": {"dir": str(tmp_path)}})
    notes = leftovers.land_leftovers(cast("Any", None), settings, lease, held)
    assert notes == [f"journal file a.parquet could not be read and was set aside in {dead.aside}"]
    assert asked == [(Asked("run", answered=True), lease.epoch)]
    assert not dead.folder.exists()


def test_only_leftovers_of_runs_on_this_table_land(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, other = Identity("t", "1", "s3://here"), Identity("other", "2", "s3://other")
    lease = replace(a_lease(), others=("aside", "elsewhere", "half", "here", "old"), captures=here)
    landed: list[str] = []
    for run_id, table in (("aside", here), ("elsewhere", other), ("half", other), ("here", here)):
        RunState(tmp_path / run_id).prepare(table)
    (tmp_path / "half" / "captures").write_bytes(b'["2", ')  # its driver died while it wrote the mark
    RunState(tmp_path / "old").prepare()
    aside = RunState(tmp_path / "aside")
    (aside.aside / "damaged.parquet").touch()
    aside.remove()

    def landing(_spark: object, _settings: object, state: RunState) -> Any:
        return SimpleNamespace(finish=lambda: landed.append(state.folder.name), state=state, set_aside=[])

    monkeypatch.setattr("deltatap.driver.leftovers.Landing.of", landing)
    for name in ("resuming.carry", "runs.totals", "runs.settle"):
        monkeypatch.setattr(f"deltatap.driver.leftovers.{name}", lambda *_: None)
    notes = leftovers.land_leftovers(cast("Any", None), load_settings({"state": {"dir": str(tmp_path)}}), lease, held)
    assert notes == [f"{tmp_path / 'elsewhere'} stays as it is: it belongs to a run on another captures table"]
    assert landed == ["half", "here", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "elsewhere"]


def test_a_driver_that_has_lost_its_lease_lands_no_leftovers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next driver may have resumed one of these runs."""
    lease = replace(a_lease(), others=("dead", "gone"), died=("gone",))
    RunState(tmp_path / "dead").prepare()
    for name in ("Landing.of", "runs.settle"):
        monkeypatch.delattr(f"deltatap.driver.leftovers.{name}")
    for run_ids in (("dead", "gone"), ("gone",)):
        with pytest.raises(LeaseLostError):
            leftovers.land_leftovers(
                cast("Any", None),
                load_settings({"state": {"dir": str(tmp_path)}}),
                replace(lease, others=run_ids),
                lost,
            )
    assert (tmp_path / "dead").exists()


@pytest.mark.parametrize(
    ("seen_ago", "beat_ago", "waits"),
    [
        (40, 40, []),  # the workers had died before the listing could be old
        (40, 29, [15.0]),
        (29, 40, [15.0]),
        (0, None, [15.0]),
        (40, None, []),
    ],
)
def test_the_files_of_dead_workers_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_ago: float, beat_ago: float | None, waits: list[float]
) -> None:
    monkeypatch.setattr("deltatap.driver.leftovers._WAIT_S", 15.0)
    state = RunState(tmp_path / "run")
    state.prepare()
    if beat_ago is not None:
        state.beat(Heartbeat(1, "00000-1-a", 1, at=1000.0 - beat_ago))
    slept: list[float] = []
    said: list[str] = []
    lease = a_lease(1000.0 - seen_ago)
    leftovers.wait_for_the_dead(lease, [state], said.append, now=lambda: 1000.0, sleep=slept.append)
    assert (slept, len(said)) == (waits, len(waits))
    leftovers.wait_for_the_dead(lease, [], said.append, now=lambda: 1000.0, sleep=slept.append)
    assert slept == waits, "nothing is left of a run without a folder"
