"""A recording proxy in this process, without Spark: its rows are those in its journal."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from deltatap.http.dial import Dialer
from deltatap.http.route import route_of
from deltatap.prices import Prices
from deltatap.record.forwarding import Target
from deltatap.record.recorder import Recorder
from deltatap.record.server import Server
from deltatap.record.session import Shared
from deltatap.settings_loading import load_settings
from deltatap.simulator.server import listen
from deltatap.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        port: where it listens.
        base_url: of a client.
        state: the folder with its journal.
        server: to stop it or to look at it.
        rows: the rows of its journal, once it has ended.
    """

    port: int
    base_url: str
    state: RunState
    server: Server
    recorder: Recorder
    rows: list[dict[str, Any]] = field(default_factory=list)

    def journaled(self, least: int = 1) -> list[dict[str, Any]]:
        """The rows in the journal, once there are this many."""
        deadline = time.monotonic() + 20
        while True:
            rows = rows_of(self.state)
            if len(rows) >= least:
                return rows
            assert time.monotonic() < deadline, f"{len(rows)} rows, expected {least}"
            time.sleep(0.02)


def rows_of(state: RunState) -> list[dict[str, Any]]:
    """The rows in a journal, in the order of their start."""
    found = [row for path in state.journal.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: row["started_at"])


@contextmanager
def recording(upstream: str, folder: Path, *, grace_s: float = 5.0, **endpoint: Any) -> Iterator[Proxy]:
    """Record what goes to an endpoint. At the end, `rows` has every row."""
    settings = load_settings(
        {
            "endpoint": {"base_url": upstream, "name": "recorded", "api_key": None, **endpoint},
            "prices": None,
            "state": {"dir": str(folder), "flush_s": 0.05},
        }
    )
    state = RunState.of(folder, "recording")
    state.prepare()
    route = route_of(settings.endpoint)
    target = Target.of(settings.endpoint.base_url, route.proxy)
    with (
        listen("127.0.0.1", 0) as listening,
        Recorder(settings, Prices(), "recording", state, 1, route.secrets) as recorder,
    ):
        port = listening.getsockname()[1]

        def shared() -> Shared:
            dialer = Dialer(time.monotonic, route.proxy, route.tls)
            return Shared(target, dialer, settings.timeouts.connect_s, recorder, route.secrets)

        server = Server(listening, shared)
        server.start()
        proxy = Proxy(port, f"http://127.0.0.1:{port}{target.path}", state, server, recorder)
        try:
            yield proxy
        finally:
            server.stop(grace_s)
    proxy.rows = rows_of(state)
    assert server.failure is None
