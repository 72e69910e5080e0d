"""The page in a browser: it types open streams, and keeps the last numbers when the run has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from deltatap.messages import Control, Heartbeat, OpenStream
from deltatap.state import RunState
from tests.browser import browse
from tests.watching import watching

if TYPE_CHECKING:
    from pathlib import Path

    from tests.browser import Tab

pytestmark = [pytest.mark.slow, pytest.mark.chromium]

HOSTILE = "<img src=x onerror=\"document.title='bad'\"> **Hello** 🙂 "
CARD = "document.querySelector('.stream p').textContent"


def test_the_page_types_streams_and_ends_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = RunState.of(folder, "run")
    state.prepare()

    def show(text: str, beat: int) -> None:
        state.publish(Control(1, beat))
        stream = OpenStream("r1", "gpt-4o-mini", "stream", 1.0, len(text), text[-400:])
        rows = {"completed": 2, "failed": 1}
        state.beat(
            Heartbeat(
                1,
                "00000-000001-a",
                beat,
                open=1,
                requests=4,
                rows=rows,
                errors={"server": 1},
                cost_usd=0.25,
                streams=(stream,),
            )
        )

    async def visit(tab: Tab) -> None:
        await tab.open(url, f"document.querySelector('.stream') && {CARD}.includes('Hello')")
        assert await tab.value("document.querySelectorAll('.stream img').length") == 0
        text = HOSTILE
        for number in range(3):
            text += f"and then some more words, number {number}. "
            show(text, number + 2)
            await tab.wait(f"{CARD}.endsWith('number {number}. ')")
        assert await tab.value(CARD) == text
        tiles = await tab.value("[...document.querySelectorAll('.tile span')].map((each) => each.textContent)")
        assert {"output tokens/s, finished rows", "cost, finished rows", "calls, including open ones"} <= set(tiles)
        assert "server: 1" in await tab.value("document.getElementById('errors').textContent")
        for width in (1200, 390):
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 400
            )
            assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
        state.remove()
        await tab.wait("document.getElementById('state').textContent === 'ended'")
        assert await tab.value("document.getElementById('tiles').textContent.includes('$0.250')")
        assert await tab.value("document.title") == "recording · deltatap watch", "a run without a plan"
        assert await tab.value("document.getElementById('axis').textContent") == "60 s ago30 s agoend"
        assert tab.console == []

    show(HOSTILE, 1)
    with watching(folder) as (url, _):
        started = time.monotonic()
        browse(tmp_path / "profile", visit)
    assert time.monotonic() - started < 60
