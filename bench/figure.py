"""One figure of a benchmark, with its goal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure.

    Attributes:
        what: the name of the figure, the same in every run.
        value: the value.
        unit: the unit. Only figures with the unit ``ratio`` can be compared between machines.
        most: the goal is at most this value.
        least: the goal is at least this value.
    """

    what: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def goal(self) -> str:
        """The goal as text; empty without a goal."""
        if self.most is None:
            return "" if self.least is None else f"at least {self.least:g}"
        return f"at most {self.most:g}" if self.least is None else f"{self.least:g} to {self.most:g}"

    @property
    def met(self) -> bool | None:
        """Whether the value meets the goal. None without a goal."""
        if self.most is None and self.least is None:
            return None
        most, least = math.inf if self.most is None else self.most, -math.inf if self.least is None else self.least
        return least <= self.value <= most


def as_table(title: str, figures: Iterable[Figure], last: Mapping[str, float]) -> Table:
    """The figures with their goals, and the last committed value of each ratio."""
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
