"""A run from start to end: its tables, its lease, what other runs left behind, then the driver.

Knows the order of these and how a run is closed when it fails. Leaves the run itself to ``driver.py``.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.delta.prepare import check_tables
from deltatap.driver import plan, runs, source
from deltatap.driver.loop import Driver, Ended, landing_of
from deltatap.errors import LeaseLostError, one_line
from deltatap.messages import Control
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.runs import Lease
    from deltatap.prices import Prices


def run(settings: Settings, spark: SparkSession, prices: Prices, console: Console) -> Ended:
    """Run a capture from start to end; :func:`deltatap.preflight.preflight` comes first and gives the prices.

    Raises:
        ConfigError: before anything is paid.
        RunningError: when a run on the same captures table lives.
        LeaseLostError: when another driver took over meanwhile.
    """
    _start_python(spark)
    with console.status("checking the tables"):
        source.source(spark, settings)
        made = check_tables(spark, settings)
    new_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    building = plan.Building(spark, settings, settings.run.id, first="captures" in made)
    try:
        lease = runs.acquire(spark, settings, new_id, first="runs" in made)
        _land_left(spark, settings, lease)
        state = RunState(Path(settings.state.dir) / lease.run_id)
        try:
            state.prepare()
            with _signals() as asked:
                # Who made the table and took its first lease is alone with it.
                first = "captures" in made and lease.epoch == 1
                return Driver(settings, spark, console, prices, lease, state, asked, building, first=first).run()
        except LeaseLostError:
            raise
        except BaseException as error:
            _close_failed(spark, settings, lease, error)
            raise
    finally:
        building.close()


def _start_python(spark: SparkSession) -> None:
    """Have Spark start its Python meanwhile; where that fails, the run will say so."""

    def start() -> None:
        with suppress(Exception):
            spark.range(0, 1, 1, 1).mapInArrow(lambda batches: batches, "id BIGINT").collect()

    threading.Thread(target=start, name="deltatap-python", daemon=True).start()


def _land_left(spark: SparkSession, settings: Settings, lease: Lease) -> None:
    """Land what other runs on this table left: dead ones, and failed ones that could not land. The lease is ours.

    Workers of theirs that still live see the newer epoch, and start nothing more.
    """
    for run_id in lease.others:
        state = RunState(Path(settings.state.dir) / run_id)
        left = state.folder.exists()
        if left:
            state.prepare()
            state.publish(Control(lease.epoch, beat=1))
            landing = landing_of(spark, settings, state)
            try:
                landing.drain()
            finally:
                landing.stop()
            state.remove()
        if left or run_id in lease.died:
            runs.settle(spark, settings, run_id, runs.totals(spark, settings, run_id))


def _close_failed(spark: SparkSession, settings: Settings, lease: Lease, error: BaseException) -> None:
    reason = f"{type(error).__name__}: {one_line(error)}"
    # The first error is the one to tell; where this fails, too, the next start finds a dead run.
    with suppress(Exception):
        runs.close(spark, settings, lease.run_id, "failed", reason, runs.totals(spark, settings, lease.run_id))


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set an event on Ctrl-C and SIGTERM; a second one ends the process at once, and the journal keeps what it has."""
    asked = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
