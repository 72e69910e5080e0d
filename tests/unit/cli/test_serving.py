"""`simulate` and `replay`: wrong options, and ports that are in use."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from deltatap import cli
from tests.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_simulate_exits_with_1_if_the_server_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("deltatap.simulator.server.serve", crash)
    code, output = invoke("simulate", "--port", "0")
    assert code == cli.FAILED
    assert "✗ OSError: no memory" in output


def test_simulate_on_an_address_of_another_machine_exits_with_2() -> None:
    problem = "✗ cannot listen on 192.0.2.1 port 8089: Cannot assign requested address\n"
    assert invoke("simulate", "--host", "192.0.2.1") == (cli.CONFIGURATION, problem)


def test_simulate_refuses_a_port_out_of_range() -> None:
    code, output = invoke("simulate", "--port", "99999")
    assert code == cli.CONFIGURATION
    assert "less than or equal to 65535" in " ".join(output.replace("│", "").split())


def test_simulate_on_a_used_port_names_the_port_and_exits_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, output = invoke("simulate", "--port", port)
    hint = "choose another port with --port, or --port 0 for a free one"
    assert (code, output) == (cli.CONFIGURATION, f"✗ 127.0.0.1 port {port} is already in use; {hint}\n")


def test_replay_on_a_used_port_exits_with_2_before_it_reads_a_table(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, output = invoke("replay", "--port", port, "--config", config)
    hint = "choose another port with --port, or --port 0 for a free one"
    assert (code, output) == (cli.CONFIGURATION, f"✗ 127.0.0.1 port {port} is already in use; {hint}\n")


@pytest.mark.parametrize("fault", ["nope=0.1", "cut=x", "cut"])
def test_simulate_refuses_a_fault_that_it_cannot_read(fault: str) -> None:
    code, output = invoke("simulate", "--fault", fault)
    assert code == cli.CONFIGURATION
    assert f"--fault {fault}: expected FAULT=RATE" in " ".join(output.split())


@pytest.mark.parametrize("rate", ["2", "-0.1", "nan"])
def test_simulate_refuses_a_rate_outside_of_0_to_1(rate: str) -> None:
    code, output = invoke("simulate", "--fault", f"cut={rate}")
    assert code == cli.CONFIGURATION
    assert f"--fault cut={rate}: expected a rate from 0 to 1, found {rate}" in " ".join(output.replace("│", "").split())
