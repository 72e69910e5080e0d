"""Fixtures for tests of TLS, proxies and headers."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.networks import PASSWORD, Authority

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of two real proxies: one is open, one requires a user name and a password."""
    folder = tmp_path_factory.mktemp("proxies")
    program = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--log-level", "ERROR"]
    program += ["--num-workers", "1", "--num-acceptors", "1", "--data-dir", str(folder)]
    options = {"open": [], "guarded": ["--basic-auth", f"user:{PASSWORD}"]}
    started = []
    try:
        for name, extra in options.items():
            command = [*program, "--port-file", str(folder / name), *extra]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 30
        ports: dict[str, int] = {}
        while len(ports) < len(options):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            for name in options:
                with suppress(OSError, ValueError):
                    ports[name] = int((folder / name).read_text().split()[0])
        yield ports
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUEST_METHOD",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
