"""The default ports: servers that are used together must not want the same one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from deltatap.cli.recording import record
from deltatap.cli.serving import replay
from deltatap.cli.watching import watch

EXAMPLE = Path(__file__).parents[3] / "examples" / "front-end" / "package.json"


def test_no_two_servers_have_the_same_default_port() -> None:
    ports = [inspect.signature(command).parameters["port"].default for command in (replay, record, watch)]
    ports.append(int(json.loads(EXAMPLE.read_text(encoding="utf-8"))["scripts"]["start"].split()[-1]))
    assert len(set(ports)) == len(ports)
