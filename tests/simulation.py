"""Starts the simulator as a real process on a free port, and reads its records."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deltatap.simulator.answers import Pace
from deltatap.simulator.app import SimulatorSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The simulator requires this key once a test sets api_key_env to the variable.
KEY_VARIABLE, KEY = "DELTATAP_TEST_KEY", "sk-test-4711-do-not-tell"


@dataclass(frozen=True)
class Simulation:
    """A running simulator. With `ca_file`, it serves over TLS, and its certificate is of this authority."""

    base_url: str
    ca_file: str | None = None

    def calls(self) -> list[dict[str, Any]]:
        """Return the records of all calls, in order."""
        answer = self._ask("calls")
        assert answer["dropped"] == 0
        calls: list[dict[str, Any]] = answer["calls"]
        return calls

    def counts(self) -> dict[str, Any]:
        """Return the numbers of calls and of finished answers, in total and by request hash."""
        return self._ask("counts")

    def moderations(self) -> list[dict[str, Any]]:
        """Return the records of all calls of /moderations, in order."""
        calls: list[dict[str, Any]] = self._ask("moderations")["calls"]
        return calls

    def stats(self) -> dict[str, Any]:
        """Return the number of open streams, and how late pieces were written."""
        return self._ask("stats")

    def reset(self) -> None:
        """Forget all calls."""
        self._ask("reset", {})

    def change(self, **settings: Any) -> None:
        """Change the simulator's settings. `pace` may have a subset of its fields."""
        self._ask("settings", settings)

    def restore(self, **pace: float) -> None:
        """Forget all calls and restore every setting: no faults, no waits, 20 tokens, unless `pace` says otherwise."""
        self.reset()
        self.change(**asdict(SimulatorSettings(pace=Pace(**{"speed": 0, "tokens": 20, **pace}))))

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.base_url.removesuffix('/v1')}/sim/{what}", data=None if body is None else json.dumps(body).encode()
        )
        tls = None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(request, timeout=60, context=tls) as response:  # noqa: S310 - loopback
            answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def start_simulator(*options: str, env: dict[str, str] | None = None) -> Iterator[Simulation]:
    """Start ``deltatap simulate``, and end it afterwards."""
    with started_simulator("deltatap", "simulate", "--port", "0", *options, env=env) as simulation:
        yield simulation


@contextmanager
def started_simulator(
    module: str, *options: str, env: dict[str, str] | None = None, ca_file: str | None = None
) -> Iterator[Simulation]:
    """Start a simulator from a Python module, and end it afterwards."""
    command = [sys.executable, "-m", module, *options]
    env = {**(os.environ if env is None else env), KEY_VARIABLE: KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("simulator: "), line
        try:
            yield Simulation(line.removeprefix("simulator: ").strip(), ca_file)
        finally:
            process.terminate()
