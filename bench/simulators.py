"""Simulators for the benchmarks: over plain TCP, or over TLS with a certificate from a separate authority.

A call is recorded as started when its request reached the simulator's socket, if a witness may watch loopback.

``python -m bench.simulators PEM`` serves over TLS with this key and certificate.
"""

from __future__ import annotations

import ssl
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

from bench.witness import Witness, witness
from deltatap.simulator.answers import ENCODING, Pace
from deltatap.simulator.app import Simulator, SimulatorSettings
from deltatap.simulator.server import listen, serve
from deltatap.tokens import encoding
from tests.simulation import Simulation, start_simulator, started_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "127.0.0.1"
# The pace of every benchmark but one: each answer has 100 tokens, and a chunk every 20 ms, starting after 200 ms.
TTFT_S, GAP_S, TOKENS = 0.2, 0.02, 100
# How many chunks per second one stream delivers if its requests follow each other.
CHUNKS_S = TOKENS / (TTFT_S + (TOKENS - 1) * GAP_S)
EVEN = ("--ttft-ms", f"{TTFT_S * 1e3:g}", "--itl-ms", f"{GAP_S * 1e3:g}", "--sigma", "0", "--tokens", f"{TOKENS}")


@dataclass(frozen=True)
class Witnessed(Simulation):
    """A running simulator, and the witness of its requests."""

    seen: Witness | None = None

    def calls(self) -> list[dict[str, Any]]:
        """Return the records of all calls. A call started when its request arrived, if the witness saw it."""
        calls = super().calls()
        if self.seen is not None:
            for call in calls:
                call["started"] = self.seen.arrived(call["port"], call["started"]) or call["started"]
        return calls


@contextmanager
def simulating(*options: str) -> Iterator[Simulation]:
    """A simulator over plain TCP."""
    with start_simulator(*options) as simulation, _witnessed(simulation) as witnessed:
        yield witnessed


@contextmanager
def plain() -> Iterator[Simulation]:
    """A simulator over plain TCP, with the pace of most benchmarks."""
    with simulating(*EVEN) as simulation:
        yield simulation


@contextmanager
def secure() -> Iterator[Simulation]:
    """The same over TLS."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        authority, pem, ca_file = trustme.CA(), Path(name) / "server.pem", Path(name) / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        authority.issue_cert(_HOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
        started = started_simulator("bench.simulators", str(pem), ca_file=str(ca_file))
        with started as simulation, _witnessed(simulation) as witnessed:
            yield witnessed


@contextmanager
def _witnessed(simulation: Simulation) -> Iterator[Witnessed]:
    with witness(int(simulation.base_url.removesuffix("/v1").rpartition(":")[2])) as seen:
        yield Witnessed(simulation.base_url, simulation.ca_file, seen)


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    settings = SimulatorSettings(pace=Pace(TTFT_S * 1e3, 0, GAP_S * 1e3, 0, TOKENS, 0))
    encoding(ENCODING)  # loaded before the first call, which would otherwise wait for it
    with listen(_HOST, 0) as listening:
        serve(Simulator(settings).application(), listening, tls=context)


if __name__ == "__main__":
    main()
