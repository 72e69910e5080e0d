"""The demo behind ``make demo``: writes 200 prompts, starts the simulator, runs the capture job and writes a report."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatap.shipped import path as shipped_path
from deltatap.spark.session import local_session

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path("data")
CONFIG = Path("conf/local.yml")
_COLUMNS = (
    "request_id STRING, prompt STRING, messages ARRAY<STRUCT<role: STRING, content: STRING>>, "
    "system STRING, params STRING"
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


def rows() -> list[tuple[Any, ...]]:
    """200 varied prompts: texts, chats, a system message, params of their own, and two invalid prompts."""
    made: list[tuple[Any, ...]] = []
    for number in range(198):
        text = _ASKS[number % len(_ASKS)].format(_TOPICS[number // len(_ASKS) % len(_TOPICS)])
        text += "" if number < len(_ASKS) * len(_TOPICS) else " Keep it under a hundred words — naïveté is welcome 🙂."
        request_id, params = f"demo-{number:03d}", None
        if number % 10 == 7:  # noqa: PLR2004 - one in ten
            params = '{"temperature": 0.8, "max_tokens": 40}'
        if number % 4 == 3:  # noqa: PLR2004 - one in four
            chat = [("user", "I keep hearing about this."), ("assistant", "About what?"), ("user", text)]
            made.append((request_id, None, chat, None, params))
        else:
            made.append((request_id, text, None, "You answer like a pirate." if number == 0 else None, params))
    made.append(("demo-bad-empty", "  ", None, None, None))
    made.append(("demo-bad-params", "What is wrong with my params?", None, None, '{"temperature": 0.5'))
    return made


def write_prompts(path: Path) -> None:
    """Write the prompts to a Delta table, unless it exists."""
    if (path / "_delta_log").exists():
        return
    spark = local_session()
    spark.createDataFrame(rows(), _COLUMNS).write.format("delta").save(str(path.absolute()))
    spark.stop()


@contextmanager
def simulator(*options: str) -> Iterator[str]:
    """Run the simulator as a process on a free port. Yields its base URL."""
    command = [sys.executable, "-m", "deltatap", "simulate", "--port", "0", *options]
    # In its own session, so that Ctrl-C does not stop the server while the job drains.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 - ours
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("simulator: "):
            raise RuntimeError("the simulator did not start; see its output above")
        yield line.removeprefix("simulator: ").strip()
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


def main() -> int:
    """Run the demo. Returns the job's exit code."""
    prompts = DATA / "prompts"
    print("deltatap demo: 200 prompts, each answered as a stream and as a whole,", flush=True)
    print("by a simulated endpoint on loopback: no key, no cost", flush=True)
    write_prompts(prompts)
    faults = ("429=0.5=0.01", "cut=0.02", "500=0.02", "content_filter=0.02")
    with simulator("--tokens", "60", *(word for fault in faults for word in ("--fault", fault))) as url:
        print(f"prompts: {prompts}  endpoint: {url}", flush=True)
        command = [sys.executable, str(shipped_path("jobs/capture.py")), "--config", str(CONFIG)]
        # The endpoint's name identifies its requests. Without a name the URL would, and the port changes.
        for override in (f"endpoint.base_url={url}", "endpoint.name=simulator", "endpoint.api_key="):
            command += ["--set", override]
        command += ["--set", "capture.mode=paired"]
        with subprocess.Popen(command) as job:  # noqa: S603 - ours
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job also receives it, and drains
            code = job.wait()
    if code == 0:
        report = DATA / "report.html"
        command = [sys.executable, "-m", "deltatap", "report", "--config", str(CONFIG), "--out", str(report)]
        subprocess.run(command, check=True)  # noqa: S603 - ours
        print(
            f"""
Open {report.absolute()} in a browser to see the latencies and to replay streamed answers.
The answers are in the Delta table {DATA / "captures"}, the run is in {DATA / "runs"}. To query them, start
{sys.executable} and enter:

    from deltatap import local_session
    spark = local_session()
    captures = spark.table("delta.`{(DATA / "captures").absolute()}`")
    captures.select("request_id", "mode", "status", "finish_reason", "ttft_ms", "e2e_ms", "cost_usd", "text").show()
    captures.selectExpr("request_id", "inline(chunks)").show()        # every chunk with its arrival time

Run `make demo` again: prompts with a final row are not captured twice."""
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
