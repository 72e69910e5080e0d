"""``make bench-peers``: two load generators for LLM endpoints under the same load, compared with the same record.

The first run installs each peer from PyPI into a virtual environment in data/peers (guidellm needs torch: 6 GB). The
peers run with their defaults and without network: guidellm loads no tokenizer for prompts from a file, and aiperf has
a built-in one. The table shows what each peer reports next to what the simulator wrote, and its CPU next to that of a
worker and the floor.

The reported and the true figures are percentiles of two distributions. Both peers open all streams at once, as a plain
client does; a worker opens them a few ms apart. A burst also delays the server, which the record shows. guidellm keeps
no chunk times: its inter-token latency is the mean of a stream, counted once for each token, so its p99 is a percentile
of streams, not of gaps.

Each client runs again with an event loop that stops for 50 ms at random, once a second on average. The errors of a
worker compare the time of each chunk with the record, except for chunks that share a read. The peers' reports do not
say which time belongs to which chunk.

The CPU of a peer is that of its processes from the arrival of the first request to the last chunk, by samples. The CPU
of the worker and the floor is that of the process from the end of its imports to its end, including the last journal
file. A separate column includes a peer's start and its report. The figures are also written to data/bench-peers.json.
With ``--keep``, they replace those in the table of docs/performance.md.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.__main__ import FLOOR_SHARE, streams_of
from bench.clients import MODEL
from bench.page import with_table
from bench.processes import Watch, client, spent
from bench.simulators import EVEN, simulating
from bench.truth import Measured, errors
from deltatap.tokens import VOCABULARIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.simulation import Simulation

FOLDER, OUT, PAGE = Path("data/peers"), Path("data/bench-peers.json"), Path("docs/performance.md")
HEAD = (
    *("client", "CPU µs per chunk", "relative to worker", "CPU with start and report"),
    *("TTFT p50", "TTFT p99", "gap p50", "gap p99", "requests/s", "relative to worker", "simulator delay p99"),
    *("TTFT error p50", "TTFT error p99", "gap error p99", "chunks in shared reads"),
)
ERRORS = HEAD[-4:]
# The load is the number of streams with which the floor keeps 40 % of a core busy. Each stream makes this many
# requests.
ROUNDS = 4
STALLED = Path(__file__).with_name("stalled")
_INSTALL_S, _RUN_S, _FEW = 1200, 180, 96


class PeerError(Exception):
    """A peer could not be run. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles in ms of the time to first chunk and of the gaps between chunks."""

    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float


@dataclass(frozen=True, slots=True)
class Result:
    """The cost and the measurements of a client.

    Attributes:
        name: the client.
        cpu_us: CPU in µs per chunk while streams were open.
        whole_cpu_us: CPU including the start and the report. None for the floor and the worker, which Spark starts.
        requests_s: requests per second from the arrival of the first request to the last chunk.
        late_p99_ms: the delay of the simulator's own writes.
        true: latencies in the simulator's record.
        reported: latencies that the client reports. None if it reports none.
        errors: of :func:`bench.truth.errors`. None if the client does not say which time belongs to which chunk.
    """

    name: str
    cpu_us: float
    whole_cpu_us: float | None
    requests_s: float
    late_p99_ms: float
    true: Times
    reported: Times | None
    errors: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A load generator.

    Attributes:
        requirement: the requirement for pip.
        column: the name of the prompt column in its input file.
        command: returns its arguments for a server, a number of streams, a file of prompts and a folder for its report.
        read: reads its report.
    """

    requirement: str
    column: str
    command: Callable[[str, int, Path, Path], Sequence[str]]
    read: Callable[[Path], Times]

    @property
    def name(self) -> str:
        """The package's name."""
        return self.requirement.partition("==")[0].partition("[")[0]

    @property
    def title(self) -> str:
        """The package's name and version."""
        return f"{self.name} {self.requirement.partition('==')[2]}"


def _guidellm(server: str, streams: int, prompts: Path, folder: Path) -> Sequence[str]:
    backend = f"kind=openai_http,target={server},model={MODEL},validate_backend=false"
    return (
        *("run", "--backend", backend, "--profile", f"kind=concurrent,streams={streams}"),
        *("--constraint", f"kind=max_requests,count={ROUNDS * streams}", "--data", f"kind=json_file,path={prompts}"),
        *("--output", f"kind=json,path={folder / 'report.json'}", "--disable-console"),
    )


def _guidellm_report(folder: Path) -> Times:
    metrics = json.loads((folder / "report.json").read_text())["benchmarks"][0]["metrics"]
    first, gap = (
        metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return Times(first["p50"], first["p99"], gap["p50"], gap["p99"])


def _aiperf(server: str, streams: int, prompts: Path, folder: Path) -> Sequence[str]:
    return (
        *("profile", "-m", MODEL, "--endpoint-type", "chat", "--streaming", "--url", server, "--tokenizer", "builtin"),
        *("--input-file", str(prompts), "--custom-dataset-type", "single-turn"),
        *("--concurrency", str(streams), "--request-count", str(ROUNDS * streams)),
        *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--artifact-dir", str(folder)),
    )


def _aiperf_report(folder: Path) -> Times:
    report = json.loads((folder / "profile_export_aiperf.json").read_text())
    first, gap = report["time_to_first_token"], report["inter_chunk_latency"]
    return Times(first["p50"], first["p99"], gap["p50"], gap["p99"])


# guidellm recommends the extra perf: orjson and msgspec.
PEERS = (
    Peer("guidellm[perf]==0.8.1", "prompt", _guidellm, _guidellm_report),
    Peer("aiperf==0.13.0", "text", _aiperf, _aiperf_report),
)


def times(firsts: Iterable[float], streams: Iterable[Sequence[float]]) -> Times:
    """Percentiles from the times to first chunk and from the arrival times of each stream's chunks, all in ms."""
    gaps = np.concatenate([np.diff(moments) for moments in streams])
    return Times(*map(float, (*np.percentile(list(firsts), (50, 99)), *np.percentile(gaps, (50, 99)))))


def true_times(calls: Sequence[Mapping[str, Any]]) -> Times:
    """The latencies in the simulator's record."""
    written = [[at * 1e3 for at, _ in call["chunks"]] for call in calls]
    return times((ms[0] - call["started"] * 1e3 for ms, call in zip(written, calls, strict=True)), written)


def _ours(name: str, simulator: Simulation, streams: int, *, stalled: bool) -> Result:
    found = client(f"{name}-stalled" if stalled else name, simulator, streams, ROUNDS * streams, _RUN_S)
    measured = [Measured(*stream) for stream in found["streams"]]
    reported = times((each.ms[0] for each in measured), [each.ms for each in measured]) if measured else None
    result = _result(
        _named(name, stalled=stalled),
        simulator,
        ROUNDS * streams,
        lambda *_: found["cpu_us"] * found["chunks"] / 1e6,
        None,
        reported,
    )
    calls = {call["key"]: call for call in simulator.calls()}
    return replace(result, errors=errors(measured, calls)) if measured else result


def _named(name: str, *, stalled: bool) -> str:
    return f"{name}, stalled" if stalled else name


def _theirs(peer: Peer, simulator: Simulation, streams: int, *, stalled: bool) -> Result:
    binary = _installed(peer)
    simulator.reset()
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        count = ROUNDS * streams
        prompts.write_text("".join(json.dumps({peer.column: f"p{number}"}) + "\n" for number in range(count)))
        server = simulator.base_url.removesuffix("/v1")
        command: list[str | Path] = [binary, *peer.command(server, streams, prompts, folder)]
        watch = _run(command, folder, stalled=stalled)
        whole_s = sum(spent(watch.samples, -math.inf, math.inf).values())
        try:
            reported = peer.read(folder)
        except (OSError, LookupError) as error:
            raise PeerError(f"cannot read the report: {error!r}\n{_tail(folder)}") from error
        return _result(
            _named(peer.title, stalled=stalled),
            simulator,
            count,
            lambda start, end: sum(spent(watch.samples, start, end).values()),
            whole_s,
            reported,
        )


def _run(command: Sequence[str | Path], folder: Path, *, stalled: bool) -> Watch:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TIKTOKEN_CACHE_DIR": str(VOCABULARIES)}
    environment |= {"PYTHONPATH": str(STALLED)} if stalled else {}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
        Watch(process.pid, lambda _: "peer") as watch,
    ):
        try:
            process.wait(timeout=_RUN_S)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise PeerError(f"did not end within {_RUN_S} s\n{_tail(folder)}") from error
    if process.returncode:
        raise PeerError(f"ended with {process.returncode}\n{_tail(folder)}")
    return watch


def _tail(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-20:])


def _installed(peer: Peer) -> Path:
    """The peer's program, which is installed if necessary."""
    folder = (FOLDER / peer.name).absolute()
    binary, ready = folder / "bin" / peer.name, folder / "ready"
    if not ready.exists() or ready.read_text() != peer.requirement:
        install = ("-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check")
        made: list[str | Path] = [sys.executable, "-m", "venv", "--clear", folder]
        filled: list[str | Path] = [folder / "bin/python", *install, peer.requirement]
        for command in (made, filled):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
            if done.returncode:
                raise PeerError(f"could not be installed:\n{done.stderr[-2000:]}")
        ready.write_text(peer.requirement)
    return binary


def _result(
    name: str,
    simulator: Simulation,
    requests: int,
    cpu_s: Callable[[float, float], float],
    whole_s: float | None,
    reported: Times | None,
) -> Result:
    calls = simulator.calls()
    whole = sum(call["ended"] == "done" for call in calls)
    if whole != requests or len(calls) != requests:
        raise PeerError(f"expected {requests} complete answers, the simulator wrote {whole} of {len(calls)}")
    chunks = sum(len(call["chunks"]) for call in calls)
    start, end = min(call["started"] for call in calls), max(call["chunks"][-1][0] for call in calls)
    return Result(
        name=name,
        cpu_us=cpu_s(start, end) / chunks * 1e6,
        whole_cpu_us=None if whole_s is None else whole_s / chunks * 1e6,
        requests_s=requests / (end - start),
        late_p99_ms=simulator.stats()["late_ms"]["p99"],
        true=true_times(calls),
        reported=reported,
    )


def _row(result: Result, ours: Result) -> list[str]:
    reported, true = result.reported, result.true
    pairs = [(None if reported is None else getattr(reported, name), getattr(true, name)) for name in Times.__slots__]
    whole = "" if result.whole_cpu_us is None else f"{result.whole_cpu_us:,.0f}"
    return [
        result.name,
        f"{result.cpu_us:,.1f}",
        f"{result.cpu_us / ours.cpu_us:.2f}",
        whole,
        *(f"{'-' if shown is None else f'{shown:,.1f}'} / {real:,.1f}" for shown, real in pairs),
        f"{result.requests_s:,.1f}",
        f"{result.requests_s / ours.requests_s:.2f}",
        f"{result.late_p99_ms:,.1f}",
        *("-" if result.errors is None else f"{result.errors[name]:,.2f}" for name in ERRORS),
    ]


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    missing = []
    results = []
    with simulating(*EVEN) as simulator:
        floor = client("floor", simulator, _FEW, _FEW)
        streams = streams_of(floor["cpu_us"], FLOOR_SHARE)
        for name, stalled in (("floor", False), ("worker", False), ("worker", True)):
            with console.status(name):
                results.append(_ours(name, simulator, streams, stalled=stalled))
        for peer, stalled in product(PEERS, (False, True)):
            with console.status(peer.title):
                try:
                    results.append(_theirs(peer, simulator, streams, stalled=stalled))
                except (PeerError, subprocess.TimeoutExpired) as error:
                    missing.append(f"{_named(peer.title, stalled=stalled)}: {error}")
    title = f"{streams} streams, 50 chunks/s each, {ROUNDS * streams:,} requests; reported / true, in ms"
    ours = next(result for result in results if result.name == "worker")
    rows = [_row(result, ours) for result in results]
    table = Table(*HEAD, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for why in missing:
        console.print(f"did not run: {why}", style="red", markup=False)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False) + "\n")
    console.print(f"figures written to {OUT}")
    if missing:
        sys.exit(1)
    if "--keep" in sys.argv:
        PAGE.write_text(with_table(PAGE.read_text(), HEAD, rows))


if __name__ == "__main__":
    main()
