"""``make bench-memory``: a worker's memory with many requests, with long answers and with large prompts.

Runs the complete job on ``local[2]`` and takes about twelve minutes. Memory is the resident memory of the Python worker
that captures, including shared pages. The figures are also written to data/bench-memory.json.
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
from deltatap.driver.needs import preflight
from deltatap.driver.run import run
from deltatap.spark.session import local_session
from tests.simulation import start_simulator

OUT = Path("data/bench-memory.json")
STREAMS = 256
_MB = 2**20
# Name, options of the simulator, number of requests, bytes of a prompt, and the memory goal in MB.
LOADS: tuple[tuple[str, tuple[str, ...], int, int, float | None], ...] = (
    ("100,000 requests", ("--ttft-ms", "50", "--itl-ms", "2", "--sigma", "0", "--tokens", "10"), 100_000, 20, 300),
    ("256 answers of 8,000 tokens at once", ("--itl-ms", "20", "--sigma", "0", "--tokens", "8000"), STREAMS, 20, 400),
    ("64 prompts of 1 MB", ("--itl-ms", "20", "--sigma", "0", "--tokens", "20"), 64, _MB, None),
)
# Memory does not grow with the number of requests if it grows by at most a quarter after the first tenth.
_FLAT = 1.25


def measure(what: str, options: tuple[str, ...], requests: int, size: int, most: float | None) -> list[Figure]:
    """Measure one load."""
    with start_simulator(*options) as simulator:
        found, watch = watched("bench.memory", simulator.base_url, requests, size)
    mb = watch.mb[watch.busiest("worker")]
    figures = [
        Figure(f"{what}: completed", found["completed"], "", least=requests),
        Figure(f"{what}: worker memory, peak", max(mb), "MB", most=most),
    ]
    if requests > 10 * STREAMS:
        early, late = mb[len(mb) // 10], mb[-2]
        figures.append(Figure(f"{what}: worker memory, end / 10 %", late / early, "ratio", most=_FLAT))
    return figures


def work(base_url: str, requests: int, size: int) -> None:
    """Run the job, in its own process, and print how many requests it completed."""
    spark = local_session("local[2]", app_name="memory")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        settings = settings_of(folder, base_url, STREAMS)
        prompt = f"rpad(concat('Prompt ', id, ' '), {size}, 'filler ')"
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
    console.print(f"figures written to {OUT}")


if __name__ == "__main__":
    if sys.argv[1:]:
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
