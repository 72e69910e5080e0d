"""``make bench-memory``: what a worker's memory comes to with many requests, with long answers, with large prompts.

The whole job on ``local[2]``, some twelve minutes. Memory is what is resident, pages that processes share included, of
the Python worker that captures. The figures stand in data/bench-memory.json, too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench.figure import Figure, as_table
from bench.job import settings_of
from bench.processes import watched
from deltatap.driver.preflight import preflight
from deltatap.driver.run import run
from deltatap.spark.session import local_session
from tests.simulation import start_simulator

OUT = Path("data/bench-memory.json")
STREAMS = 256
_MB = 2**20
# What is captured, the simulator's options, requests, bytes of a prompt, and at most so much memory in MB.
LOADS: tuple[tuple[str, tuple[str, ...], int, int, float | None], ...] = (
    ("100,000 requests", ("--ttft-ms", "50", "--itl-ms", "2", "--sigma", "0", "--tokens", "10"), 100_000, 20, 300),
    ("256 answers of 8,000 tokens at once", ("--itl-ms", "20", "--sigma", "0", "--tokens", "8000"), STREAMS, 20, 400),
    ("64 prompts of 1 MB", ("--itl-ms", "20", "--sigma", "0", "--tokens", "20"), 64, _MB, None),
)
# A quarter more at the end than after a tenth is no growth with the number of requests.
_FLAT = 1.25


def measure(what: str, options: tuple[str, ...], requests: int, size: int, most: float | None) -> list[Figure]:
    """One load."""
    with start_simulator(*options) as simulator:
        found, watch = watched("bench.memory", simulator.base_url, requests, size)
    mb = watch.mb[watch.busiest("worker")]
    figures = [
        Figure(f"{what}: completed", found["completed"], "", least=requests),
        Figure(f"{what}: a worker's memory, peak", max(mb), "MB", most=most),
    ]
    if requests > 10 * STREAMS:
        early, late = mb[len(mb) // 10], mb[-2]
        figures.append(Figure(f"{what}: a worker's memory, end to 10 %", late / early, "ratio", most=_FLAT))
    return figures


def work(base_url: str, requests: int, size: int) -> None:
    """The job's process: prints how many were completed."""
    spark = local_session("local[2]", app_name="memory")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        settings = settings_of(folder, base_url, STREAMS)
        prompt = f"rpad(concat('Prompt ', id, ' '), {size}, 'as long as told ')"
        spark.sql(f"SELECT concat('r', id) AS request_id, {prompt} AS prompt FROM range({requests})").write.format(
            "delta"
        ).save(str(settings.prompts.table))
        ended = run(settings, spark, preflight(settings), Console(file=sys.stderr))
    spark.stop()
    print(json.dumps({"completed": ended.row["completed"]}))


def main() -> None:
    console = Console()
    figures: list[Figure] = []
    for load in LOADS:
        started = time.monotonic()
        with console.status(load[0]):
            found = measure(*load)
        console.print(as_table(f"{load[0]}, {time.monotonic() - started:.0f} s", found, {}))
        figures += found
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    console.print(f"the figures stand in {OUT}")


if __name__ == "__main__":
    if sys.argv[1:]:
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
