"""A figure of a benchmark, with its goal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured.

    Attributes:
        what: in words; names it from run to run.
        value: the figure.
        unit: of it; ``ratio`` where it is one, which other machines' figures may be held against.
        most: the goal is at most this.
        least: the goal is at least this.
    """

    what: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def goal(self) -> str:
        """In words; nothing where there is none."""
        if self.most is None:
            return "" if self.least is None else f"at least {self.least:g}"
        return f"at most {self.most:g}" if self.least is None else f"{self.least:g} to {self.most:g}"

    @property
    def met(self) -> bool | None:
        """Whether it is; None without a goal."""
        if self.most is None and self.least is None:
            return None
        most, least = math.inf if self.most is None else self.most, -math.inf if self.least is None else self.least
        return least <= self.value <= most


def as_table(title: str, figures: Iterable[Figure], last: Mapping[str, float]) -> Table:
    """The figures with their goals; beside a ratio the one that was last committed."""
    table = Table("figure", "measured", "goal", "", "last", title=title, title_justify="left")
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.value:,.2f} {figure.unit}",
            figure.goal,
            {True: "[green]met", False: "[red]missed", None: ""}[figure.met],
            f"{last[figure.what]:,.2f}" if figure.unit == "ratio" and figure.what in last else "",
        )
    return table
