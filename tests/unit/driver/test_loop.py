"""The control loop without Spark: the job is a function, the workers are heartbeat files."""

from __future__ import annotations

import errno
import io
import math
import threading
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deltatap.delta.identity import Identity
from deltatap.driver import control, loop, runs
from deltatap.driver.active import ActiveRun
from deltatap.driver.lease import Lease, Moment
from deltatap.driver.loop import CaptureLoop
from deltatap.driver.plan import Plan
from deltatap.driver.stopping import Stop
from deltatap.errors import LeaseLostError
from deltatap.files import Files
from deltatap.messages import Control, Heartbeat, Parked, Refusal
from deltatap.model import RunStatus
from deltatap.plan_state import LANDED
from deltatap.prices import Prices
from deltatap.settings_loading import load_settings
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deltatap.worker.attempt import CaptureTask

EPOCH, CLAIM = 2, "00000-000001-a"


class Driver:
    """A control loop, with a fake job and heartbeat files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> None:
        self.state = RunState(folder / "run")
        self.state.prepare()
        self.jobs = 0
        self.interrupts = 0
        self.unsure = False
        self.signalled = threading.Event()
        self.landed_output = False
        monkeypatch.setattr(runs, "has_output", lambda *_: self.landed_output)
        monkeypatch.setattr(loop, "models", lambda _: ["a", "b"])
        self.output = io.StringIO()
        self.renewal: Any = SimpleNamespace(is_unsure=lambda: self.unsure, counts={})
        settings = load_settings({"endpoint": {"api_key": None}, "prices": None, **sections})
        lease = Lease(
            "run",
            EPOCH,
            datetime.now(UTC),
            resumed=False,
            others=(),
            died=(),
            taken_at=Moment.now(),
            captures=Identity("t"),
        )
        spark = SimpleNamespace(interruptAll=self._interrupt)
        run = ActiveRun(settings, cast("Any", spark), Console(file=self.output, width=200), Prices(), lease, self.state)
        self.plan = Plan(self.state.plan(EPOCH), tasks=1, requests=2)
        self.loop = CaptureLoop(run, self.plan, cast("Any", self.renewal), signalled=self.signalled, ends_at=math.inf)
        monkeypatch.setattr(loop, "POLL_S", 0.001)
        monkeypatch.setattr(loop, "_KILLED_S", 0.0)
        monkeypatch.setattr(loop, "_WAIT_S", 0.0)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def capture(self, job: Callable[[], None]) -> Stop | None:
        def submit() -> None:
            self.jobs += 1
            job()

        self.loop._submit = submit  # type: ignore[method-assign]
        return self.loop.capture([], lambda: None)

    def land(self, *rows: int) -> None:
        self.plan.files.add_landed(np.array([(0, row) for row in rows], LANDED))

    def turn(self) -> Control:
        self.loop._turn([], cast("Any", SimpleNamespace(update=lambda *_, **__: None)))
        published = self.state.control()
        assert published is not None
        return published


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


def test_a_driver_that_may_have_lost_its_lease_does_not_replace_the_message_of_the_next_one(driver: Driver) -> None:
    theirs = Control(EPOCH + 1, beat=1)
    driver.state.publish(theirs)
    driver.unsure = True
    assert driver.turn() == theirs


@pytest.mark.parametrize(("theirs", "stays"), [(EPOCH + 1, True), (EPOCH - 1, False), (None, False)])
def test_a_driver_that_has_lost_its_lease_does_not_replace_the_message_of_the_next_one(
    driver: Driver,
    theirs: int | None,
    stays: bool,  # noqa: FBT001
) -> None:
    """In a folder of its own, its message still stops its workers."""
    if theirs is not None:
        driver.state.publish(Control(theirs, beat=1))
    lost: Any = SimpleNamespace(name="lease", error=LeaseLostError("another driver has taken over"))
    driver.loop._turn([lost], cast("Any", SimpleNamespace(update=lambda *_, **__: None)))
    published = driver.state.control()
    assert published is not None
    assert (published.epoch, published.stop) == ((theirs, None) if stays else (EPOCH, "failed"))


def test_a_capture_ends_when_every_request_has_landed(driver: Driver) -> None:
    assert driver.capture(lambda: driver.land(0, 1)) is None
    assert driver.jobs == 1
    assert driver.output.getvalue() == ""


def test_a_job_that_leaves_captures_missing_is_submitted_again(driver: Driver) -> None:
    assert driver.capture(lambda: driver.land(driver.jobs - 1)) is None
    assert driver.jobs == 2
    assert "Spark job 1 did not complete: captures are missing; submitting it again" in driver.output.getvalue()


def test_a_job_that_fails_is_submitted_again_even_if_everything_landed(driver: Driver) -> None:
    def job() -> None:
        driver.land(0, 1)
        if driver.jobs == 1:
            raise OSError("executor lost")

    assert driver.capture(job) is None
    assert driver.jobs == 2
    assert "Spark job 1 did not complete: executor lost" in driver.output.getvalue()


def test_the_driver_captures_each_part_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Spark job: the session of this test has none."""
    driver = Driver(tmp_path, monkeypatch, capture={"where": "driver"})
    driver.plan.files.parts.mkdir(parents=True)
    for part in range(2):
        (driver.plan.files.parts / f"part-{part}.parquet").touch()
    tasks: list[tuple[int, int]] = []

    def capture_part(task: CaptureTask, part: int) -> None:
        tasks.append((task.epoch, part))
        driver.land(part)

    monkeypatch.setattr(loop, "capture_part", capture_part)
    assert driver.loop.capture([], lambda: None) is None
    assert tasks == [(EPOCH, 0), (EPOCH, 1)]


def test_a_failed_attempt_in_the_driver_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, monkeypatch, capture={"where": "driver"})

    def job() -> None:
        driver.land(0, 1)
        if driver.jobs == 1:
            raise OSError("disk full")

    assert driver.capture(job) is None
    assert "attempt 1 did not complete: disk full; starting another one" in driver.output.getvalue()
    driver = Driver(tmp_path / "second", monkeypatch, capture={"where": "driver"})
    stop = driver.capture(lambda: None)
    assert stop == Stop(RunStatus.FAILED, "the capture did not complete in 4 attempts: captures are missing")


def test_no_spark_job_is_interrupted_when_the_driver_captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, monkeypatch, capture={"where": "driver"})
    driver.signalled.set()
    driver.turn()
    monkeypatch.setattr(driver.loop._shutdown, "_interrupt_at", 0.0)
    driver.turn()
    assert driver.interrupts == 0


def test_attempts_stop_if_the_control_loop_fails(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may continue, and so would an attempt in it."""
    ended = threading.Event()

    def fail() -> list[Heartbeat]:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "heartbeats", lambda _: fail())
    with pytest.raises(KeyboardInterrupt):
        driver.capture(lambda: cast("None", ended.wait(5)))
    ended.set()
    published = driver.state.control()
    assert published is not None
    assert (published.epoch, published.stop, published.grace_s) == (EPOCH, "failed", 0.0)


def test_a_run_fails_after_the_fourth_job(driver: Driver) -> None:
    stop = driver.capture(lambda: None)
    assert stop == Stop(RunStatus.FAILED, "the capture did not complete in 4 Spark jobs: captures are missing")
    assert driver.jobs == 4


def test_a_stopped_run_submits_no_further_job_and_tells_its_workers(driver: Driver) -> None:
    driver.signalled.set()
    assert driver.capture(lambda: None) == Stop(RunStatus.STOPPED, "stopped by a signal")
    assert driver.jobs == 1
    published = driver.state.control()
    assert published is not None
    assert (published.epoch, published.stop) == (EPOCH, "stopped")


def test_a_request_to_stop_is_seen(driver: Driver) -> None:
    assert driver.turn().stop is None
    driver.state.ask_to_stop()
    published = driver.turn()
    assert (published.stop, published.grace_s) == ("stopped", 30.0)


def test_a_worker_s_fatal_error_stops_its_own_run_only(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH - 1, "00000-000001-old", 1, fatal="quota: of an earlier driver's worker"))
    assert driver.turn().stop is None
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, fatal="quota: no"))
    assert driver.turn().stop == "failed"


def test_only_this_driver_s_workers_get_shares_and_count(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH - 1, "00001-000001-old", 1, rows={"completed": 9}))
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, rows={"completed": 1}, mean_output_tokens=7.0))
    published = driver.turn()
    assert published.shares == {CLAIM: 64}
    assert published.mean_output_tokens == 7.0
    assert (driver.renewal.counts["owed"], driver.renewal.counts["completed"]) == (2, 1)


def test_no_worker_gets_a_share_while_the_lease_is_unsure(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1))
    driver.unsure = True
    assert driver.turn().shares == {}
    driver.unsure = False
    assert driver.turn().shares == {CLAIM: 64}


def test_no_worker_gets_a_share_while_the_journal_has_a_backlog(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_JOURNAL_FILES", 0)
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1))
    (driver.state.journal / "a.parquet").touch()
    assert driver.turn().shares == {}


def test_each_turn_publishes_a_new_beat(driver: Driver) -> None:
    assert [driver.turn().beat for _ in range(3)] == [1, 2, 3]


def test_a_cool_down_reaches_all_workers(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, cool_s=8.0))
    assert 7 < driver.turn().cool_s <= 8


def test_the_starts_of_an_earlier_driver_s_workers_count_for_the_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path, monkeypatch, limits={"requests_per_minute": 60})
    at = datetime.now(UTC).timestamp()
    driver.state.beat(Heartbeat(EPOCH - 1, "00000-000001-old", 1, at=at, requests=60, recent=[[1.0, 60, 0.0]]))
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, at=at, wants=50))
    for _ in range(3):
        permits = driver.turn().permits
        assert permits is not None
        assert permits[CLAIM].requests == 0


def test_jobs_are_interrupted_when_workers_do_not_stop(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.signalled.set()
    driver.turn()
    assert driver.interrupts == 0
    monkeypatch.setattr(driver.loop._shutdown, "_interrupt_at", 0.0)
    driver.turn()
    assert driver.interrupts == 1


def test_the_runtime_budget_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, monkeypatch, budget={"runtime_s": 5})
    assert driver.turn().stop is None
    driver.loop._ends_at = 0.0
    assert driver.turn().stop == "budget_exhausted"


def parked(*models: str, requests: int = 1) -> tuple[Parked, ...]:
    return tuple(Parked(Refusal("not_found", "no", model, f"req_{model}"), requests) for model in models)


def test_a_run_stops_when_every_model_is_parked_and_no_call_has_succeeded(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, parked=parked("a")))
    assert driver.turn().stop is None
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 2, parked=parked("a", "b")))
    assert driver.turn().stop == "failed"
    stop = driver.loop._shutdown.stop
    assert stop is not None
    assert stop.reason == (
        "http://127.0.0.1:8089/v1: not_found: no (model a, request_id req_a), not_found: no (model b, request_id req_b); "
        "check the model's name and endpoint.base_url"
    )


@pytest.mark.parametrize("where", ["this worker", "another worker", "an earlier driver's worker", "landed", "journal"])
def test_a_run_continues_if_a_call_has_ever_succeeded(driver: Driver, where: str) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 2, parked=parked("a", "b"), succeeded=where == "this worker"))
    if where == "another worker":
        driver.state.beat(Heartbeat(EPOCH, "00001-000001-b", 2, succeeded=True))
    if where == "an earlier driver's worker":
        driver.state.beat(Heartbeat(EPOCH - 1, "00001-000001-b", 2, succeeded=True))
    driver.landed_output = where == "landed"
    if where == "journal":
        for name, statuses in (("a", ["failed"]), ("b", ["failed", "completed"])):
            pq.write_table(pa.table({"status": statuses}), driver.state.journal / f"{name}.parquet")
    assert driver.turn().stop is None


def test_a_reused_answer_is_no_success(driver: Driver) -> None:
    plan = replace(driver.plan, reused=3, before={"completed": 3})
    driver.loop = CaptureLoop(driver.loop._run, plan, None, signalled=driver.signalled, ends_at=math.inf)
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, parked=parked("a", "b")))
    assert driver.turn().stop == "failed"


def test_failed_rows_in_the_journal_are_no_success(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 2, parked=parked("a", "b")))
    pq.write_table(pa.table({"status": ["failed"]}), driver.state.journal / "a.parquet")
    (driver.state.journal / "damaged.parquet").write_bytes(b"PAR1")
    assert driver.turn().stop == "failed"


def test_a_capture_ends_when_only_requests_of_parked_models_are_missing(driver: Driver) -> None:
    def job() -> None:
        driver.land(0)
        driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, succeeded=True, parked=parked("a"), ended=True))

    assert driver.capture(job) is None
    assert driver.jobs == 1
    (note,) = driver.loop.notes
    assert note.startswith("model a refuses every request (1 not sent, still owed): not_found: no (model a, ")


def test_a_rate_limit_that_is_too_long_ends_the_run_and_lets_open_streams_end(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, too_long="rate limited until then", open=3))
    published = driver.turn()
    assert (published.stop, published.grace_s) == ("failed", 900.0)


def test_no_worker_s_cool_down_is_longer_than_any_request_may_wait(driver: Driver) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1, cool_s=1e9))
    assert driver.turn().cool_s == 600.0
    for odd in (math.inf, math.nan, -5.0):
        driver.state.beat(Heartbeat(EPOCH, CLAIM, 2, cool_s=odd))
        assert driver.turn().cool_s == 0.0


def test_captures_that_are_not_visible_yet_are_waited_for(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_WAIT_S", 30.0)
    drains: list[None] = []

    def drain() -> None:
        drains.append(None)
        if len(drains) == 3:
            driver.land(0, 1)

    driver.loop._submit = lambda: None  # type: ignore[method-assign]
    assert driver.loop.capture([], drain) is None
    assert (len(drains), driver.output.getvalue()) == (3, "")


def test_a_heartbeat_that_is_not_read_now_still_counts(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    driver.state.beat(Heartbeat(EPOCH, CLAIM, 5))
    assert driver.turn().shares == {CLAIM: 64}
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "heartbeats", lambda _: [])
        assert driver.turn().shares == {CLAIM: 64}, "an old listing"
        patch.setattr(RunState, "heartbeats", lambda _: [Heartbeat(EPOCH, CLAIM, 4, fatal="an old copy")])
        assert driver.turn().stop is None
        patch.setattr(RunState, "heartbeats", failing)
        assert driver.turn().shares == {CLAIM: 64}


def test_a_run_fails_only_if_its_messages_cannot_be_written_for_two_minutes(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for where in ("publish", "asked_to_stop"):
        monkeypatch.setattr(RunState, where, failing)
    display = cast("Any", SimpleNamespace(update=lambda *_, **__: None))
    for _ in range(3):
        driver.loop._turn([], display)
    assert driver.loop._shutdown.stop is None
    driver.loop._published_at -= 121
    for _ in range(2):
        driver.loop._turn([], display)
    stop = driver.loop._shutdown.stop
    assert stop is not None
    assert stop.reason == "state.dir: [Errno 5] Input/output error"


def test_nothing_starts_while_the_journal_cannot_be_listed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.state.beat(Heartbeat(EPOCH, CLAIM, 1))
    names = Files.names

    def failing(files: Files, folder: Path, suffix: str = "") -> list[Path]:
        if folder == driver.state.journal:
            raise OSError(errno.EPERM, "Operation not permitted")
        return names(files, folder, suffix)

    monkeypatch.setattr(Files, "names", failing)
    assert driver.turn().shares == {}
