"""The demo behind ``make demo``: captures 200 prompts from the simulator, writes a report and opens it.

Knows the prompts, the simulator's faults and what to try next. Leaves the work to the commands ``capture`` and
``report``. Both run in this process, so that modules are imported once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import webbrowser
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import write_deltalake

from deltatap.cli import OK, capture, report, run
from deltatap.program import program
from deltatap.spark.session import local_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = Path("conf/local.yml")
DATA = Path("data")
REPORT = DATA / "report.html"
# The demo's tables are small: compiling a query takes longer than interpreting it.
_QUICK = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
_FAULTS = ("429=0.5=0.01", "cut=0.02", "500=0.02", "content_filter=0.02")
_COLUMNS = pa.schema(
    {
        "request_id": pa.string(),
        "prompt": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "system": pa.string(),
        "params": pa.string(),
    }
)
_TOPICS = (
    "a stream of events",
    "a data lake",
    "an index that nobody uses",
    "a slow query",
    "back-pressure",
    "a dead letter queue",
    "clock skew",
    "exactly-once delivery",
    "a schema that changed overnight",
    "a flaky test",
    "cold starts",
    "cache misses",
    "a broken pipe",
    "small files",
    "a full disk",
    "retries",
    "a rate limit",
    "late data",
    "time zones",
    "a join gone wrong",
)
_ASKS = (
    "Explain {} to a new colleague.",
    "Write a haiku about {}.",
    "List three ways to deal with {}.",
    "What does {} cost a team in a year? Show your assumptions.",
    "Write a short incident report about {}.",
)


def rows() -> list[dict[str, Any]]:
    """200 varied prompts: texts, chats, a system message, params of their own, and two invalid prompts."""
    made: list[dict[str, Any]] = []
    for number in range(198):
        text = _ASKS[number % len(_ASKS)].format(_TOPICS[number // len(_ASKS) % len(_TOPICS)])
        text += "" if number < len(_ASKS) * len(_TOPICS) else " Keep it under a hundred words — naïveté is welcome 🙂."
        row: dict[str, Any] = {"request_id": f"demo-{number:03d}"}
        if number % 4 == 3:  # noqa: PLR2004 - one in four
            turns = (("user", "I keep hearing about this."), ("assistant", "About what?"), ("user", text))
            row["messages"] = [{"role": role, "content": content} for role, content in turns]
        else:
            row["prompt"] = text
        if number == 0:
            row["system"] = "You answer like a pirate."
        if number % 10 == 7:  # noqa: PLR2004 - one in ten
            row["params"] = '{"temperature": 0.8, "max_tokens": 40}'
        made.append(row)
    made.append({"request_id": "demo-bad-empty", "prompt": "  "})
    bad_params = {"prompt": "What is wrong with my params?", "params": '{"temperature": 0.5'}
    made.append({"request_id": "demo-bad-params", **bad_params})
    return made


def write_prompts(folder: Path) -> None:
    """Write the prompts to a Delta table, unless it exists."""
    if not (folder / "_delta_log").exists():
        write_deltalake(folder, pa.Table.from_pylist(rows(), _COLUMNS))


@contextmanager
def watched(*, on: bool) -> Iterator[None]:
    """Show the run in a browser, from a separate process that ends with the run."""
    if not on:
        yield
        return
    command = [sys.executable, "-m", "deltatap", "watch", "--port", "0", "--config", str(CONFIG)]
    # In a separate session, so that Ctrl-C does not end the page while the capture drains.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 - ours
    try:
        for line in process.stdout or ():
            say(line.rstrip())
            if line.startswith("watch: "):
                if _has_display():
                    webbrowser.open(line.removeprefix("watch: ").strip())
                break
        yield
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def simulator(*options: str) -> Iterator[Callable[[], str]]:
    """Run the simulator as a process on a free port.

    Yields:
        A function that waits until the simulator serves, and returns its base URL.
    """
    command = [sys.executable, "-m", "deltatap", "simulate", "--port", "0", *options]
    # In a separate session, so that Ctrl-C does not stop the server while the capture drains.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 - ours

    def base_url() -> str:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("simulator: "):
            sys.exit("the simulator did not start; see its output above")
        return line.removeprefix("simulator: ").strip()

    try:
        yield base_url
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


def next_steps() -> str:
    """What to try after the demo: commands that work when pasted."""
    call = program()
    return f"""
Try next:
  {call} runs              # the runs so far
  {call} show demo-003     # one answer, streamed and whole, with the arrival of its chunks
  {call} replay            # serve the answers with their timing, and a page that shows them"""


def main(*, watch: bool = False) -> int:
    """Run the demo; if `watch` is true, show the run in a browser. Returns the exit code."""
    say("deltatap demo: 200 prompts, each answered as a stream and as a whole by a simulated endpoint")
    say("you need no key and pay nothing: the costs shown are those of the real model")
    options = ["--tokens", "60", *(word for fault in _FAULTS for word in ("--fault", fault))]
    with simulator(*options) as base_url, ThreadPoolExecutor(1) as pool:
        # The JVM starts while the simulator does. If it cannot, the capture says why.
        starting = pool.submit(local_session, conf=_QUICK)
        prompts = DATA / "prompts"
        write_prompts(prompts)
        url = base_url()
        say(f"prompts: {prompts}  endpoint: {url}")
        # The endpoint's name identifies its requests. Without a name, the URL would identify them, but its port
        # changes.
        here = (f"endpoint.base_url={url}", "endpoint.name=simulator", "endpoint.api_key=", "capture.mode=paired")
        wait([starting])
        with watched(on=watch):
            code = run(capture, CONFIG, here, dry_run=False)
    if code == OK:
        say("writing the report")
        code = run(report, CONFIG, run_ids=None, out=REPORT)
    if code == OK:
        opened = _has_display() and webbrowser.open(REPORT.absolute().as_uri())
        say(f"{'opened' if opened else 'open'} {REPORT.absolute()}{'' if opened else ' in a browser'}")
        say(next_steps())
    return code


def say(text: str) -> None:
    """Print a line at once, even into a pipe."""
    print(text, flush=True)


def _has_display() -> bool:
    """Whether a browser would have a window. Without one, Python may start a browser in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main(watch="--watch" in sys.argv[1:]))
