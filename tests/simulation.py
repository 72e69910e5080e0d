"""The simulator as a real process on a free port, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Simulation:
    """A running simulator."""

    base_url: str

    def calls(self) -> list[dict[str, Any]]:
        """Every call, in order, with what was written for it."""
        told = self._ask("calls")
        assert told["dropped"] == 0
        calls: list[dict[str, Any]] = told["calls"]
        return calls

    def counts(self) -> dict[str, Any]:
        """How many calls and whole answers, in all and by request hash."""
        return self._ask("counts")

    def stats(self) -> dict[str, Any]:
        """Open streams, and how late pieces were written."""
        return self._ask("stats")

    def reset(self) -> None:
        """Forget all calls."""
        self._ask("reset", {})

    def change(self, **settings: Any) -> None:
        """Change faults, in_a_row or the pace."""
        self._ask("settings", settings)

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.base_url.removesuffix('/v1')}/sim/{what}", data=None if body is None else json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - loopback
            answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def start_simulator(*options: str, env: dict[str, str] | None = None) -> Iterator[Simulation]:
    """Start ``deltatap simulate`` and end it."""
    command = [sys.executable, "-m", "deltatap", "simulate", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("simulator: "), line
        try:
            yield Simulation(line.removeprefix("simulator: ").strip())
        finally:
            process.terminate()
