"""The record of a run whose lease this driver holds. It is passed to every step of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.files import Files
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.driver.lease import Lease
    from deltatap.prices import Prices


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run whose lease this driver holds.

    Attributes:
        settings: of the run.
        spark: the session.
        console: where the run prints.
        prices: of the models.
        lease: of the captures table.
        state: the run's state folder.
        beats: numbers the control messages, so that workers see that the driver is alive.
    """

    settings: Settings
    spark: SparkSession
    console: Console
    prices: Prices
    lease: Lease
    state: RunState
    beats: Iterator[int] = field(default_factory=lambda: count(1))

    @classmethod
    def of(cls, settings: Settings, spark: SparkSession, console: Console, prices: Prices, lease: Lease) -> ActiveRun:
        """The run that holds a lease, with its state folder."""
        files = Files(settings.state.files_per_s)
        return cls(settings, spark, console, prices, lease, RunState.of(Path(settings.state.dir), lease.run_id, files))

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line for the user; long lines are not wrapped."""
        self.console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)
