"""Opens a page in headless Chromium through the debugging protocol and waits until it is ready."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from pathlib import Path

# No host name resolves, so a request beyond loopback fails with an error on the console.
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1200,2000")  # fmt: skip
_CONSOLE_EVENTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


def opened(url: str, folder: Path, until: str) -> tuple[str, list[Any]]:
    """Return the page's HTML once a JavaScript expression is true, and the console's messages.

    Args:
        url: the page's address.
        folder: the browser's profile folder.
        until: the expression.
    """
    browser = shutil.which("chromium")
    assert browser is not None, "this test needs chromium; `make test-slow` leaves it out if there is none"
    command = [browser, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(m for line in process.stderr if (m := re.search(r"ws://127\.0\.0\.1:\d+", line)))
            return asyncio.run(_open(found[0].replace("ws:", "http:"), url, until))
        finally:
            process.kill()


async def _open(debugger: str, url: str, until: str) -> tuple[str, list[Any]]:
    console: list[Any] = []
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{debugger}/json") as response:
            pages = await response.json()
        socket = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        async with session.ws_connect(socket, max_msg_size=0) as page:
            number = 0

            async def call(method: str, **params: Any) -> Any:
                nonlocal number
                number += 1
                await page.send_json({"id": number, "method": method, "params": params})
                while True:
                    message = await page.receive_json()
                    if message.get("id") == number:
                        return message["result"]
                    if message.get("method") in _CONSOLE_EVENTS:
                        console.append(message)

            async def value(expression: str) -> Any:
                return (await call("Runtime.evaluate", expression=expression))["result"].get("value")

            for domain in ("Runtime", "Log", "Page"):
                await call(f"{domain}.enable")
            await call("Page.navigate", url=url)
            ready = f"document.readyState === 'complete' && Boolean({until})"
            while not await value(ready):  # noqa: ASYNC110 - the condition changes in the browser
                await asyncio.sleep(0.05)
            return await value("document.documentElement.outerHTML"), console
