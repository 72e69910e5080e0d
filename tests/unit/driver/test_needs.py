from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import tokens
from deltatap.driver import needs
from deltatap.driver.needs import Checked, Need, checked, preflight, prices_of, process_needs, require
from deltatap.errors import ConfigError, CredentialError
from deltatap.settings_loading import load_settings
from tests.unit.test_layers import imports

if TYPE_CHECKING:
    from pathlib import Path

    from deltatap.config import Settings


def settings(tmp_path: Path, **sections: Any) -> Settings:
    tree = {
        "state": {"dir": str(tmp_path / "state")},
        "endpoint": {"base_url": "http://127.0.0.1:9/v1", "api_key": None, "model": "mine"},
        "prices": None,
    }
    return load_settings(tree | sections)


def problems(settings: Settings, name: str) -> tuple[str, ...]:
    (need,) = (need for need in process_needs(settings) if need.name == name)
    return checked(need).problems


def raising(error: Exception) -> Need:
    def check() -> None:
        raise error

    return Need("x", check)


def test_the_result_of_a_check() -> None:
    assert checked(Need("x", lambda: "detail")) == Checked((), "detail")
    assert checked(Need("x", lambda: None)) == Checked((), "")
    assert checked(raising(ConfigError(["a", "b"]))) == Checked(("a", "b"))
    assert checked(raising(CredentialError("no token"))) == Checked(("no token",))
    with pytest.raises(ZeroDivisionError):
        checked(raising(ZeroDivisionError()))


def test_all_problems_are_reported_once() -> None:
    require([Need("x", lambda: None)])
    with pytest.raises(ConfigError) as error:
        require([raising(ConfigError(["a", "b"])), raising(ConfigError(["b", "c"]))])
    assert error.value.problems == ("a", "b", "c")


def test_preflight_reports_all_problems_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "api_key": {"env": "NOT_THERE"}}
    with pytest.raises(ConfigError) as error:
        preflight(settings(tmp_path, endpoint=endpoint, prices="nowhere.yml"))
    key, network, price = error.value.problems
    assert "NOT_THERE is not set" in key
    assert network.startswith("endpoint.base_url: cannot reach 127.0.0.1 port 9: ")
    assert network.endswith("`deltatap simulate` starts the simulator")
    assert price == "prices: nowhere.yml: cannot be read: No such file or directory"


def test_preflight_needs_the_fallback_encoding_s_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encodings: list[str] = []
    monkeypatch.setattr(needs, "encoding", encodings.append)
    problems(settings(tmp_path, tokens={"fallback_encoding": "cl100k_base"}), "vocabularies")
    assert encodings == ["cl100k_base", "cl100k_base"]
    encodings.clear()
    endpoint = {"api_key": None, "model": "gpt-4o"}
    problems(settings(tmp_path, tokens={"fallback_encoding": "cl100k_base"}, endpoint=endpoint), "vocabularies")
    assert encodings == ["cl100k_base", "o200k_base"]


def test_a_missing_vocabulary_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.encoding.cache_clear()
    monkeypatch.setattr(tokens, "VOCABULARIES", tmp_path)
    assert problems(settings(tmp_path), "vocabularies")
    tokens.encoding.cache_clear()


def test_the_state_folder_is_written_to_and_left_empty(tmp_path: Path) -> None:
    assert problems(settings(tmp_path), "state folder") == ()
    assert list((tmp_path / "state").iterdir()) == []
    (tmp_path / "file").touch()
    (problem,) = problems(settings(tmp_path, state={"dir": str(tmp_path / "file/state")}), "state folder")
    assert problem == f"state.dir: {tmp_path / 'file/state'}: cannot be written: Not a directory"


def test_a_budget_in_usd_needs_a_price_for_the_model(tmp_path: Path) -> None:
    assert prices_of(settings(tmp_path)).entries == ()
    with pytest.raises(ConfigError, match=r"budget\.cost_usd: model mine has no price"):
        prices_of(settings(tmp_path, budget={"cost_usd": 1}))
    prices_of(settings(tmp_path, budget={"cost_usd": 1}, endpoint={"api_key": None, "model": None}))


def test_check_imports_neither_the_loop_nor_the_worker() -> None:
    graph = imports()
    seen: set[str] = set()
    waiting = {"deltatap.driver.check"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= graph.get(module, set()) - seen
    assert "deltatap.driver.needs" in seen
    above = ("deltatap.udf", "deltatap.worker", "deltatap.driver.loop", "deltatap.driver.run")
    assert [module for module in sorted(seen) if module.startswith(above)] == []


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://host:8080/v1", ("host", 8080)),
        ("http://host/v1", ("host", 80)),
        ("https://host/v1", ("host", 443)),
        ("https://[::1]:9/v1", ("::1", 9)),
    ],
)
def test_the_network_need_connects_to_the_endpoint_within_connect_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, address: tuple[str, int]
) -> None:
    asked: list[Any] = []

    async def resolve(_loop: object, host: str, port: int, **_: object) -> Any:
        asked.append((host, port))
        await asyncio.Event().wait()

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", resolve)
    endpoint = {"api_key": None, "base_url": base_url}
    (problem,) = problems(settings(tmp_path, endpoint=endpoint, timeouts={"connect_s": 0.01}), "network")
    assert asked == [address]
    end = f"cannot reach {address[0]}: not connected after 0.01 s (timeouts.connect_s)"
    assert problem == f"endpoint.base_url: {end}"


@pytest.mark.parametrize("local", [True, False])
def test_the_network_need_hints_at_the_simulator_on_loopback(tmp_path: Path, *, local: bool) -> None:
    host = "127.0.0.1" if local else "nowhere.invalid"
    (problem,) = problems(settings(tmp_path, endpoint={"api_key": None, "base_url": f"http://{host}:9/v1"}), "network")
    assert problem.startswith(f"endpoint.base_url: cannot reach {host} port 9: ")
    assert ("deltatap simulate" in problem) == local, "the simulator runs on loopback only"
