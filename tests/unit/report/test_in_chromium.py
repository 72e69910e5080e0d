"""How the page behaves in a browser: the table of requests, the replay, and the page on paper."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from deltatap.report.data import Gathered, Stream
from deltatap.report.page import render
from tests.browser import Tab, browse
from tests.unit.report.test_page import ATTACK, gathered, metrics_row, request_row, requests_table, run_row

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.chromium]

DRAWN = "document.querySelectorAll('.plot').length === document.querySelectorAll('.js-plotly-plot').length"
IDS = "[...document.querySelectorAll('#requests-table tbody th')].map((cell) => cell.textContent)"
SPAN_MS = 1500.0
# In a shell, this run id needs quotes.
SECOND = "it's"


def of_two_runs() -> Gathered:
    rows = [
        request_row(
            "r", ATTACK, status="failed", error="server", message=ATTACK, text=ATTACK, ttft_ms=None, e2e_ms=None
        )
    ]
    for at in range(120):
        rows.append(request_row("r", f"q{at:03d}", e2e_ms=1000.0 + at, text=f"answer {at}"))
        rows.append(request_row(SECOND, f"q{at:03d}", mode="complete", ttft_ms=None, e2e_ms=9000.0 - at))
    chunks = tuple((SPAN_MS * at / 10, f"word{at} ", "content") for at in range(10))
    stream = Stream("q119", "r", "median", "completed", None, chunks, SPAN_MS, SPAN_MS, "whole", paired=False)
    return gathered(
        runs=[run_row("r"), run_row(SECOND, variant="hot")],
        metrics=[metrics_row(run_id=run_id, request_model=model) for run_id in ("r", SECOND) for model in "mab"],
        requests=requests_table(*rows),
        total=500,
        streams=[stream],
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(render(of_two_runs(), ["r", SECOND], {}), encoding="utf-8")
    return page.as_uri()


async def fill(tab: Tab, name: str, value: str) -> None:
    await tab.value(f"document.getElementById('requests-{name}').value = '{value}'")
    await tab.value("document.getElementById('requests-filter').dispatchEvent(new Event('input'))")


async def click(tab: Tab, selector: str) -> None:
    await tab.value(f"document.querySelector('{selector}').click()")


async def text(tab: Tab, selector: str) -> Any:
    return await tab.value(f"document.querySelector('{selector}')?.textContent")


def test_the_table_filters_sorts_and_opens_what_a_link_names(url: str, tmp_path: Path) -> None:
    async def visit(tab: Tab) -> None:
        await tab.open(url, DRAWN)
        assert await text(tab, "#requests-count") == "241 of 241 rows, 50 shown"
        await click(tab, "#requests-more")
        assert len(await tab.value(IDS)) == 100
        await fill(tab, "text", "ANSWER 11")
        assert await tab.value(IDS) == ["q011", *(f"q{at}" for at in range(110, 120))]
        await fill(tab, "slower", "1117")
        assert await tab.value(IDS) == ["q118", "q119"]
        await fill(tab, "time", "ttft_ms")
        assert await text(tab, "#requests-count") == "0 of 241 rows"
        await click(tab, "#requests-clear")
        await fill(tab, "status", "failed")
        assert await tab.value(IDS) == [ATTACK]
        await click(tab, "#requests-table tbody a")
        await tab.wait("document.querySelector('.opened')")
        assert ATTACK in await text(tab, ".opened .error")
        assert await text(tab, ".opened code") == f"deltatap show --run r '{ATTACK}'", "a shell would read it as more"
        await click(tab, "#requests-table tbody a")
        assert await text(tab, ".opened") is None, "a second click closes the request"
        await click(tab, "#requests-clear")
        await click(tab, "[data-key=e2e_ms] button")
        assert (await tab.value(IDS))[0] == "q000", "the slowest comes first"
        assert await tab.value("document.querySelector('[data-key=e2e_ms]').ariaSort") == "descending"
        await click(tab, "[data-key=e2e_ms] button")
        assert (await tab.value(IDS))[:2] == ["q000", "q001"]
        assert "1,000.0" in await text(tab, "#requests-table tbody tr"), "now the fastest"
        await fill(tab, "run", "1")
        assert "variant=hot" in await text(tab, "#requests-table tbody tr")

        await tab.open(f"{url}?linked#{urlencode({'request': 'q119', 'run': SECOND, 'mode': 'complete'})}", DRAWN)
        assert f"variant=hot, {SECOND}" in await text(tab, ".opened")
        assert await text(tab, ".opened code") == "deltatap show --run 'it'\\''s' q119"
        assert await tab.value("document.getElementById('requests-table').getBoundingClientRect().top < innerHeight")
        await tab.value(f"location.hash = '{urlencode({'request': 'q119', 'run': 'r'})}'")
        await tab.wait("document.querySelector('.opened a')")
        assert await tab.value("document.querySelector('.opened a').hash") == "#play=0"
        await tab.value("location.hash = 'request=absent'")
        await tab.wait("document.getElementById('requests-count').textContent.includes('absent')")
        assert await text(tab, ".opened") is None
        assert tab.console == []
        assert await tab.value("document.title") == "deltatap: r, variant=hot", "text of a row ran as a script"

    browse(tmp_path, visit)


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_replay_shows_the_last_state_and_plays_when_it_is_seen(url: str, motion: str, tmp_path: Path) -> None:
    async def visit(tab: Tab) -> None:
        media = [{"name": "prefers-reduced-motion", "value": motion}]
        await tab.call("Emulation.setEmulatedMedia", features=media)
        await tab.call("Emulation.setDeviceMetricsOverride", width=1200, height=600, deviceScaleFactor=1, mobile=False)
        await tab.open(url, DRAWN)
        last = ("Replay", "".join(f"word{at} " for at in range(10)), "1,500 ms")

        async def state() -> tuple[str, ...]:
            return tuple([await text(tab, f"#replay-{name}") for name in ("play", "streamed", "clock")])

        assert await state() == last
        await tab.value("document.getElementById('replay').scrollIntoView()")
        if motion == "reduce":
            await asyncio.sleep(0.5)
            assert await state() == last
            return
        await tab.wait("document.getElementById('replay-play').textContent === 'Pause'")
        await tab.wait("document.getElementById('replay-play').textContent === 'Replay'")
        assert await state() == last
        await tab.value("scrollTo(0, 0)")
        await tab.value("document.getElementById('replay').scrollIntoView()")
        await asyncio.sleep(0.3)
        assert await state() == last, "it plays by itself once"

    browse(tmp_path, visit)


OVERLAPS = """(() => {
  const box = (chart, part) => chart.querySelector(part)?.getBoundingClientRect();
  const apart = (a, b) => !a || !b || a.bottom <= b.top || b.bottom <= a.top || a.right <= b.left || b.right <= a.left;
  return [...document.querySelectorAll(".plot")].filter((chart) => {
    const buttons = box(chart, ".modebar-btn"), last = [...chart.querySelectorAll(".modebar-btn")].at(-1);
    const bar = buttons && { left: buttons.left, top: buttons.top, bottom: buttons.bottom,
      right: last.getBoundingClientRect().right };
    return !apart(box(chart, ".legend"), bar) || !apart(box(chart, ".legend"), box(chart, ".bglayer"));
  }).map((chart) => chart.id);
})()"""
BUTTONS = "[...document.querySelectorAll('#saved .modebar-btn')].map((button) => button.dataset.title)"
FIRST_COLUMN = """(() => {
  const scroll = document.querySelector("#numbers .scroll"), left = scroll.getBoundingClientRect().left;
  scroll.scrollLeft = 9999;
  return [scroll.scrollLeft > 0, scroll.querySelector("tbody th").getBoundingClientRect().left - left];
})()"""


@pytest.mark.parametrize("width", [1200, 390])
def test_no_button_covers_a_legend_and_the_first_column_stays_in_view(url: str, width: int, tmp_path: Path) -> None:
    async def visit(tab: Tab) -> None:
        await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        await tab.open(url, DRAWN)
        assert await tab.value(OVERLAPS) == []
        # Plotly's own set has a button that sends the data to a server.
        shown = ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"] if width > 640 else []
        assert await tab.value(BUTTONS) == shown
        assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
        if width < 640:
            assert await tab.value(FIRST_COLUMN) == [True, 0]

    browse(tmp_path, visit)


class Printed:
    """The structure of a PDF of Chromium: its elements with their type, parent, pages and alternative text."""

    def __init__(self, pdf: bytes) -> None:
        found = re.findall(rb"\n(\d+) 0 obj\n<</Type /StructElem\n(.*?)\nendobj", pdf, re.DOTALL)
        self.elements = {int(number): body for number, body in found}
        self.parents = {number: int(re.search(rb"/P (\d+) 0 R", body)[1]) for number, body in self.elements.items()}  # type: ignore[index]

    def of_type(self, name: bytes) -> list[int]:
        return [number for number, body in self.elements.items() if body.startswith(b"/S /" + name + b"\n")]

    def pages(self, element: int) -> set[bytes]:
        return {
            page
            for number, body in self.elements.items()
            if element in self.above(number)
            for page in re.findall(rb"/Pg (\d+) 0 R", body)
        }

    def above(self, number: int) -> list[int]:
        """The element and those around it."""
        chain = [number]
        while (number := self.parents.get(number, 0)) in self.elements:
            chain.append(number)
        return chain


def test_on_paper_charts_are_light_and_charts_and_tables_are_whole(url: str, tmp_path: Path) -> None:
    async def visit(tab: Tab) -> tuple[bytes, str, list[int]]:
        await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        await tab.open(url, DRAWN)
        await tab.value(
            "addEventListener('beforeprint', () => { window.onPaper = getComputedStyle(document.body).backgroundColor;"
            " window.widths = [...document.querySelectorAll('.main-svg')].map((svg) => svg.clientWidth) })"
        )
        pdf = await tab.call("Page.printToPDF", preferCSSPageSize=True)
        await tab.wait("document.querySelector('.main-svg').clientWidth > 1000")
        return base64.b64decode(pdf["data"]), await tab.value("onPaper"), await tab.value("widths")

    pdf, background, widths = browse(tmp_path, visit)
    printed = Printed(pdf)
    charts = [number for number in printed.of_type(b"Figure") if b"/Alt" in printed.elements[number]]
    assert len(charts) == 9
    # With its title and its caption, which are beside it in an element of their own.
    assert [len(printed.pages(printed.parents[chart])) for chart in charts] == [1] * 9
    tables = [len(printed.pages(table)) for table in printed.of_type(b"Table")]
    assert len(tables) == 8, "the overview, six series and the requests"
    assert tables.count(1) == 7, "only the table of requests may go on on the next page"
    assert background == "rgb(255, 255, 255)"
    assert max(widths) <= 688, "wider than the paper"
