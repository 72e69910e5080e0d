"""What other runs on the same table left: journals of dead runs, and of failed runs that could not land.

Knows how long files of dead workers may stay invisible, and in which order leftovers are landed and removed. Leaves
landing to ``landing.py``, and the rows of the runs to ``runs.py``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.driver import resuming, runs
from deltatap.driver.landing import Landing, set_aside
from deltatap.files import OLD_S, Files
from deltatap.messages import Control
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.driver.lease import Lease

# How long to wait before concluding that a file of a dead run does not exist.
_WAIT_S = OLD_S


def land_leftovers(
    spark: SparkSession,
    settings: Settings,
    lease: Lease,
    require: Callable[[], None],
    *,
    before: Sequence[RunState] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Land the journals of other runs on this table: dead runs, and failed runs that could not land.

    Workers of these runs that are still running see the newer epoch and start no more requests.

    Args:
        spark: the session.
        settings: of this run.
        lease: of this run.
        require: raises if this run has lost its lease. Then another run may be using the folders.
        before: the state folder of this run, if it exists from an earlier start.
        say: prints a line for the user.

    Returns:
        Notes for the user about files that did not land.
    """
    left, notes, files = {}, list[str](), Files(settings.state.files_per_s)
    for run_id in lease.others:
        state = RunState.of(Path(settings.state.dir), run_id, files)
        state.adopt()
        if not state.is_left():
            continue
        if not state.is_of(lease.captures):  # runs on other tables can have the same ids
            notes.append(f"{state.folder} stays as it is: it belongs to a run on another captures table")
        else:
            state.prepare()
            # To `deltatap stop` and `deltatap watch`, the run is over, whatever is left to land.
            state.publish(Control(lease.epoch, beat=1, stop="ended"))
            left[run_id] = state
    wait_for_the_dead(lease, [*before, *left.values()], say)
    for run_id in lease.others:
        if run_id not in left and run_id not in lease.died:
            continue
        require()
        if run_id in left:
            landing = Landing.of(spark, settings, left[run_id])
            landing.finish()
            notes += set_aside(landing)
            resuming.carry(settings, lease.captures, left[run_id])
            left[run_id].remove()
        runs.settle(spark, settings, lease.captures, run_id, runs.totals(spark, settings, run_id))
    return notes


def wait_for_the_dead(
    lease: Lease,
    states: Sequence[RunState],
    say: Callable[[str], None],
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every file of dead workers is visible here, if these workers may have written files just now.

    A worker writes a heartbeat twice a second. So if the latest visible one is old, the worker died before that.

    Args:
        lease: knows when the drivers that died were last seen.
        states: the state folders of the dead runs.
        say: prints a line for the user.
        now: seconds since the epoch.
        sleep: as ``time.sleep``.
    """
    seen = [lease.seen_at, *(beat.at for state in states for beat in state.heartbeats())]
    if states and now() - max(seen) < 2 * _WAIT_S:
        say(f"waiting {_WAIT_S:g} s until all files of the run that died are visible")
        sleep(_WAIT_S)
