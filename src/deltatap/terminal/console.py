"""The console of the commands, and one line of text on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.table import Table

from deltatap.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.text import Text


class _VisibleConsole(Console):
    """A console that shows the control characters of a text as escapes, so that no terminal obeys them."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - the options of rich
        """For rich: a string as text. Escapes are wider than what they replace, so this comes before the layout."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """For rich: everything that is printed. Only rich's own control codes pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: names and messages can look like Rich markup or contain control codes."""
    return _VisibleConsole(markup=False, emoji=False, highlight=False, stderr=stderr)


def columns() -> Table:
    """An empty table without lines, with a space between its columns."""
    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)


def fits(console: Console, table: Table) -> bool:
    """Whether a table of :func:`columns` fits if no word breaks, and columns with ``no_wrap`` do not wrap."""
    widths = []
    for column in table.columns:
        texts = [visible(str(cell)) for cell in (column.header, *column.cells)]
        parts = [part for text in texts for part in (text.splitlines() if column.no_wrap else text.split())]
        widths.append(max(map(cell_len, parts), default=0))
    return sum(widths) + len(widths) - 1 <= console.width


def line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line without wrapping it or coloring its numbers; print nothing for an empty text."""
    if text:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
