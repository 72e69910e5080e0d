"""A page in headless Chromium, looked at through its debugging protocol, until something is to be seen."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Names are not resolved, so whatever is not on loopback fails, and its error is on the console.
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1200,2000")  # fmt: skip
_TOLD = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def opened(url: str, folder: Path, until: str) -> tuple[str, list[Any]]:
    """The page's HTML once a JavaScript expression is true, and all that its console said.

    Args:
        url: of the page.
        folder: for the browser's profile.
        until: the expression.
    """
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not on PATH")
    command = [browser, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(m for line in process.stderr if (m := re.search(r"ws://127\.0\.0\.1:\d+", line)))
            return asyncio.run(_look(found[0].replace("ws:", "http:"), url, until))
        finally:
            process.kill()


async def _look(debugger: str, url: str, until: str) -> tuple[str, list[Any]]:
    said: list[Any] = []
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{debugger}/json") as response:
            pages = await response.json()
        socket = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        async with session.ws_connect(socket, max_msg_size=0) as page:
            number = 0

            async def ask(method: str, **params: Any) -> Any:
                nonlocal number
                number += 1
                await page.send_json({"id": number, "method": method, "params": params})
                while True:
                    told = await page.receive_json()
                    if told.get("id") == number:
                        return told["result"]
                    if told.get("method") in _TOLD:
                        said.append(told)

            async def value(expression: str) -> Any:
                return (await ask("Runtime.evaluate", expression=expression))["result"].get("value")

            for domain in ("Runtime", "Log", "Page"):
                await ask(f"{domain}.enable")
            await ask("Page.navigate", url=url)
            ready = f"document.readyState === 'complete' && Boolean({until})"
            while not await value(ready):  # noqa: ASYNC110 - what is waited for happens in the browser
                await asyncio.sleep(0.05)
            return await value("document.documentElement.outerHTML"), said
