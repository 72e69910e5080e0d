"""Opens pages in headless Chromium through the debugging protocol."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

Found = TypeVar("Found")

# No host name resolves, so a request beyond loopback fails with an error on the console.
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1200,2000")  # fmt: skip
_WAIT_S = 60
_CONSOLE_EVENTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@dataclass(slots=True)
class Tab:
    """A tab of the browser.

    Attributes:
        console: the messages on the page's console.
    """

    socket: aiohttp.ClientWebSocketResponse
    console: list[Any] = field(default_factory=list)
    number: int = 0

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the debugging protocol and return its result."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.number:
                return message["result"]
            if message.get("method") in _CONSOLE_EVENTS:
                self.console.append(message)

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def wait(self, until: str) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: it does not become true.
        """
        async with asyncio.timeout(_WAIT_S):
            while not await self.value(f"Boolean({until})"):  # noqa: ASYNC110 - the condition changes in the browser
                await asyncio.sleep(0.05)

    async def open(self, url: str, until: str) -> None:
        """Open a page and wait until it is complete and an expression is true."""
        await self.call("Page.navigate", url=url)
        await self.wait(f"document.readyState === 'complete' && ({until})")


def browse(folder: Path, visit: Callable[[Tab], Awaitable[Found]]) -> Found:
    """Start the browser, and return what a visit to pages returns.

    Args:
        folder: the browser's profile folder.
        visit: opens pages in a tab.
    """
    browser = shutil.which("chromium")
    assert browser is not None, "this test needs chromium; `make test-slow` leaves it out if there is none"
    command = [browser, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(m for line in process.stderr if (m := re.search(r"ws://127\.0\.0\.1:\d+", line)))
            return asyncio.run(_browse(found[0].replace("ws:", "http:"), visit))
        finally:
            process.kill()


async def _browse(debugger: str, visit: Callable[[Tab], Awaitable[Found]]) -> Found:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{debugger}/json") as response:
            pages = await response.json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        async with session.ws_connect(address, max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Runtime", "Log", "Page"):
                await tab.call(f"{domain}.enable")
            return await visit(tab)


def opened(url: str, folder: Path, until: str) -> tuple[str, list[Any]]:
    """Return the page's HTML once a JavaScript expression is true, and the console's messages.

    Args:
        url: the page's address.
        folder: the browser's profile folder.
        until: the expression.
    """

    async def visit(tab: Tab) -> tuple[str, list[Any]]:
        await tab.open(url, until)
        return await tab.value("document.documentElement.outerHTML"), tab.console

    return browse(folder, visit)
