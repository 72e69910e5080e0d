"""``make bench-peers``: two load generators for LLM endpoints at the load of our bench, held against the same record.

Each is installed from PyPI into a virtual environment of its own under data/peers, at the first run (guidellm brings
torch: 6 GB), and runs with its defaults and without network: guidellm loads no tokenizer for prompts from a file, and
aiperf has one built in. What they report is put beside what the simulator wrote, their CPU beside ours and the floor's.

Told and true are percentiles of two distributions. Both peers open all streams at once, as a plain client does, and
ours a few ms apart; a burst holds up the server, too, which its record has. guidellm keeps no times of chunks: its
inter-token latency is a stream's mean, counted once for each of its tokens, so its p99 is of streams and not of gaps.

CPU of a peer is that of its processes from the first request's arrival to the last chunk, by samples; ours and the
floor's is that of the process from when all is loaded until it is done, the journal's last file included. What a peer
takes to start and to report is shown apart. The figures stand in data/bench-peers.json, too; with ``--keep`` the table
of docs/performance.md gets them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.clients import MODEL
from bench.page import with_table
from bench.processes import Watch, spent
from deltatap.tokens import VOCABULARIES
from tests.simulation import Simulation, start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FOLDER, OUT, PAGE = Path("data/peers"), Path("data/bench-peers.json"), Path("docs/performance.md")
HEAD = (
    *("client", "CPU µs a chunk", "to ours", "whole", "TTFT p50", "TTFT p99", "gap p50", "gap p99"),
    *("requests/s", "to ours", "server late p99"),
)
STREAMS, REQUESTS = 256, 1024
EVEN = ("--itl-ms", "20", "--sigma", "0", "--tokens", "100")
_INSTALL_S, _RUN_S = 1200, 180


class PeerError(Exception):
    """A peer could not be run; the message says why."""


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles in ms: of the time to the first chunk, and of the time from one to the next."""

    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a client cost and said.

    Attributes:
        name: of the client.
        cpu_us: CPU of a chunk while streams were open.
        whole_cpu_us: the same with the start and the report; None for the floor and us, whose start is Spark's.
        requests_s: from the first request's arrival to the last chunk.
        late_p99_ms: how late the simulator wrote pieces itself.
        true: by the simulator's record.
        told: by the client; None when it tells nothing.
    """

    name: str
    cpu_us: float
    whole_cpu_us: float | None
    requests_s: float
    late_p99_ms: float
    true: Times
    told: Times | None


@dataclass(frozen=True, slots=True)
class Peer:
    """A load generator.

    Attributes:
        requirement: what pip installs.
        column: what its file of prompts calls them.
        command: its arguments, by the server, the file of prompts and the folder for its report.
        told: reads its report.
    """

    requirement: str
    column: str
    command: Callable[[str, Path, Path], Sequence[str]]
    told: Callable[[Path], Times]

    @property
    def name(self) -> str:
        """The package's."""
        return self.requirement.partition("==")[0].partition("[")[0]

    @property
    def title(self) -> str:
        """The package's name and version."""
        return f"{self.name} {self.requirement.partition('==')[2]}"


def _guidellm(server: str, prompts: Path, folder: Path) -> Sequence[str]:
    backend = f"kind=openai_http,target={server},model={MODEL},validate_backend=false"
    return (
        *("run", "--backend", backend, "--profile", f"kind=concurrent,streams={STREAMS}"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}", "--data", f"kind=json_file,path={prompts}"),
        *("--output", f"kind=json,path={folder / 'report.json'}", "--disable-console"),
    )


def _guidellm_told(folder: Path) -> Times:
    metrics = json.loads((folder / "report.json").read_text())["benchmarks"][0]["metrics"]
    first, gap = (
        metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return Times(first["p50"], first["p99"], gap["p50"], gap["p99"])


def _aiperf(server: str, prompts: Path, folder: Path) -> Sequence[str]:
    return (
        *("profile", "-m", MODEL, "--endpoint-type", "chat", "--streaming", "--url", server, "--tokenizer", "builtin"),
        *("--input-file", str(prompts), "--custom-dataset-type", "single-turn"),
        *("--concurrency", str(STREAMS), "--request-count", str(REQUESTS)),
        *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--artifact-dir", str(folder)),
    )


def _aiperf_told(folder: Path) -> Times:
    report = json.loads((folder / "profile_export_aiperf.json").read_text())
    first, gap = report["time_to_first_token"], report["inter_chunk_latency"]
    return Times(first["p50"], first["p99"], gap["p50"], gap["p99"])


# perf is what guidellm recommends: orjson and msgspec.
PEERS = (
    Peer("guidellm[perf]==0.8.1", "prompt", _guidellm, _guidellm_told),
    Peer("aiperf==0.13.0", "text", _aiperf, _aiperf_told),
)


def times(firsts: Iterable[float], streams: Iterable[Sequence[float]]) -> Times:
    """Percentiles, of ms to the first chunk and of the moments in ms of each stream's chunks."""
    gaps = np.concatenate([np.diff(moments) for moments in streams])
    return Times(*map(float, (*np.percentile(list(firsts), (50, 99)), *np.percentile(gaps, (50, 99)))))


def true_times(calls: Sequence[Mapping[str, Any]]) -> Times:
    """What the simulator did, by its record."""
    written = [[at * 1e3 for at, _ in call["chunks"]] for call in calls]
    return times((ms[0] - call["started"] * 1e3 for ms, call in zip(written, calls, strict=True)), written)


def _ours(name: str, simulator: Simulation) -> Result:
    simulator.reset()
    command = [sys.executable, "-m", "bench.clients", name, simulator.base_url, str(STREAMS), str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_S)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    streams = [ms for _, ms, _ in found["streams"]]
    told = times((ms[0] for ms in streams), streams) if streams else None
    return _result(name, simulator, lambda *_: found["cpu_us"] * found["chunks"] / 1e6, None, told)


def _theirs(peer: Peer, simulator: Simulation) -> Result:
    binary = _installed(peer)
    simulator.reset()
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({peer.column: f"p{number}"}) + "\n" for number in range(REQUESTS)))
        command: list[str | Path] = [binary, *peer.command(simulator.base_url.removesuffix("/v1"), prompts, folder)]
        watch = _run(command, folder)
        whole_s = sum(spent(watch.samples, -math.inf, math.inf).values())
        try:
            told = peer.told(folder)
        except (OSError, LookupError) as error:
            raise PeerError(f"no report as expected: {error!r}\n{_tail(folder)}") from error
        return _result(
            peer.title,
            simulator,
            lambda start, end: sum(spent(watch.samples, start, end).values()),
            whole_s,
            told,
        )


def _run(command: Sequence[str | Path], folder: Path) -> Watch:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TIKTOKEN_CACHE_DIR": str(VOCABULARIES)}
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
    """The peer's program, installed if it is not."""
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
    cpu_s: Callable[[float, float], float],
    whole_s: float | None,
    told: Times | None,
) -> Result:
    calls = simulator.calls()
    whole = sum(call["ended"] == "done" for call in calls)
    if whole != REQUESTS or len(calls) != REQUESTS:
        raise PeerError(f"expected {REQUESTS} whole answers, the simulator wrote {whole} of {len(calls)}")
    chunks = sum(len(call["chunks"]) for call in calls)
    start, end = min(call["started"] for call in calls), max(call["chunks"][-1][0] for call in calls)
    return Result(
        name=name,
        cpu_us=cpu_s(start, end) / chunks * 1e6,
        whole_cpu_us=None if whole_s is None else whole_s / chunks * 1e6,
        requests_s=REQUESTS / (end - start),
        late_p99_ms=simulator.stats()["late_ms"]["p99"],
        true=true_times(calls),
        told=told,
    )


def _row(result: Result, ours: Result) -> list[str]:
    told, true = result.told, result.true
    pairs = [(None if told is None else getattr(told, name), getattr(true, name)) for name in Times.__slots__]
    whole = "" if result.whole_cpu_us is None else f"{result.whole_cpu_us:,.0f}"
    return [
        result.name,
        f"{result.cpu_us:,.1f}",
        f"{result.cpu_us / ours.cpu_us:.2f}",
        whole,
        *(f"{'-' if said is None else f'{said:,.1f}'} / {was:,.1f}" for said, was in pairs),
        f"{result.requests_s:,.1f}",
        f"{result.requests_s / ours.requests_s:.2f}",
        f"{result.late_p99_ms:,.1f}",
    ]


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    missing = []
    results = []
    with start_simulator(*EVEN) as simulator:
        for name in ("floor", "worker"):
            with console.status(name):
                results.append(_ours(name, simulator))
        for peer in PEERS:
            with console.status(peer.title):
                try:
                    results.append(_theirs(peer, simulator))
                except (PeerError, subprocess.TimeoutExpired) as error:
                    missing.append(f"{peer.title}: {error}")
    title = f"{STREAMS} streams, 50 chunks/s each, {REQUESTS:,} requests; told / true, in ms"
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
    console.print(f"the figures stand in {OUT}")
    if missing:
        sys.exit(1)
    if "--keep" in sys.argv:
        PAGE.write_text(with_table(PAGE.read_text(), HEAD, rows))


if __name__ == "__main__":
    main()
