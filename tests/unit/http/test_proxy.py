"""Calls and checks through real proxies: each problem becomes one clear line."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from deltatap.config import Settings, Timeouts
from deltatap.driver.check import _models
from deltatap.errors import ConfigError
from deltatap.http.client import EndpointClient
from deltatap.http.proxy import proxy_of
from deltatap.http.route import route_of
from tests.calls import refusal
from tests.networks import COMPLETED, PASSWORD, QUOTED, WIRE, Authority, call, calls, network, serving, settings_of

if TYPE_CHECKING:
    from deltatap.model import Call

pytestmark = pytest.mark.usefixtures("environment")


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize("proxy", ["open", "guarded"])
def test_a_stream_through_a_proxy(authority: Authority, proxies: dict[str, int], proxy: str, *, with_tls: bool) -> None:
    user = f"user:{QUOTED}@" if proxy == "guarded" else ""
    scheme = "https" if with_tls else "http"
    with serving(authority.serving("localhost") if with_tls else None) as server:
        settings = settings_of(
            f"{scheme}://localhost:{server.port}/v1",
            proxy=f"http://{user}127.0.0.1:{proxies[proxy]}",
            tls={"ca_file": authority.file},
        )
        assert network(settings) == ()
        server.connections = 0
        first, second = calls(settings, 2)
        for made in (first, second):
            assert (made.status, made.received.choices[0].text) == ("completed", "Hi")
            assert made.dispatch_ms is not None
            ms = made.received.chunks.ms
            assert ms[-1] - ms[0] > 10, "chunks arrive as they are sent"
        assert server.connections == 1 or not with_tls, "the tunnel is used again"
        if with_tls:
            assert not any(b"proxy-authorization" in head.lower() for head in server.heads)
        assert _models(settings).detail.startswith("the endpoint lists 1 models")


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "requires a user name and a password (407 Proxy Authentication Required): add them to endpoint.proxy"),
        (
            "user:wr0ng-pass@",
            "refused the user name and password in endpoint.proxy (407 Proxy Authentication Required)",
        ),
    ],
)
def test_a_proxy_that_refuses_the_credentials(
    authority: Authority, proxies: dict[str, int], user: str, expected: str, *, with_tls: bool
) -> None:
    with serving(authority.serving("localhost") if with_tls else None) as server:
        settings = settings_of(
            f"{'https' if with_tls else 'http'}://localhost:{server.port}/v1",
            proxy=f"http://{user}127.0.0.1:{proxies['guarded']}",
        )
        message = f"the proxy 127.0.0.1:{proxies['guarded']} {expected}"
        assert call(settings) == ("connection", "proxy", message)
        assert message in _models(settings).detail
        if with_tls:
            assert network(settings) == (f"endpoint.proxy: {message}",)
        assert server.heads == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nnope", "does not allow connections to localhost:1 (403 Forbidden): ask its administrator"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "cannot connect to localhost:1 (502 Bad Gateway)"),
        (b"HTTP/1.1 504\r\n\r\n", "cannot connect to localhost:1 (504)"),
        (b"HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n", "refused to connect to localhost:1 (302 Found)"),
        (b"HTTP/1.1 429 Slow\r\n", "refused to connect to localhost:1 (429 Slow)"),
        (b"HTTP/1.1 407 Auth\r\n\r\n", "requires a user name and a password (407 Auth): add them to endpoint.proxy"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "did not answer as an HTTP proxy does: SSH-2.0-OpenSSH_9.6.."),
        (b"\x15\x03\x01\x00\x02\x02\x46", "did not answer as an HTTP proxy does: ......F"),
        (b"HTTP/1.1 twohundred OK\r\n\r\n", "did not answer as an HTTP proxy does: HTTP/1.1 twohundred OK...."),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", "did not end its answer as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n\r\nwelcome", "did not end its answer as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: %b\r\n" % (b"y" * 100) * 400, "did not end its answer as an HTTP proxy does"),
        (b"", "closed the connection before it answered"),
    ],
)  # fmt: skip
def test_every_other_answer_of_a_proxy(answer: bytes, expected: str) -> None:
    with serving(answer=answer) as proxy:
        settings = settings_of("https://localhost:1/v1", proxy=f"http://127.0.0.1:{proxy.port}")
        message = f"the proxy 127.0.0.1:{proxy.port} {expected}"
        assert call(settings) == ("connection", "proxy", message)
        assert network(settings) == (f"endpoint.proxy: {message}",)
        assert proxy.heads[0].startswith(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n")


def test_a_proxy_that_cannot_be_reached() -> None:
    with serving() as proxy:
        pass
    settings = settings_of("https://localhost:1/v1", proxy=f"http://user:{QUOTED}@127.0.0.1:{proxy.port}")
    message = f"cannot connect to the proxy 127.0.0.1:{proxy.port}: Connection refused; check endpoint.proxy"
    assert call(settings) == ("connection", "proxy", message)
    assert network(settings) == (f"endpoint.proxy: {message}",)


@pytest.mark.parametrize("resets", [True, False])
def test_a_proxy_that_resets_the_connection_or_does_not_answer(*, resets: bool) -> None:
    async def made(settings: Settings) -> Call:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if resets:
                now = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            else:
                await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            endpoint = settings.endpoint.model_copy(update={"proxy": url})
            client = EndpointClient(endpoint, Timeouts(connect_s=10 if resets else 0.05))
            try:
                return await asyncio.create_task(client.call(WIRE))
            finally:
                await client.close()

    error = asyncio.run(made(settings_of("https://localhost:1/v1"))).error
    assert error is not None
    assert (error.type, error.code) == (("connection", "proxy") if resets else ("timeout", "connect"))
    assert error.message.endswith("closed the connection before it answered" if resets else "(timeouts.connect_s)")


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "-", "nowhere.invalid"])
def test_a_name_that_no_host_has(host: str) -> None:
    settings = settings_of(f"https://{host}/v1")
    type_, _, message = call(settings)
    assert type_ == "connection"
    assert message.startswith(f"{host}:443: ")
    assert network(settings)[0].startswith(f"endpoint.base_url: cannot reach {host} port 443: ")


def test_an_ipv6_server_behind_a_proxy() -> None:
    with serving() as proxy:
        assert call(settings_of("http://[::1]:7/v1", proxy=f"http://u:p@127.0.0.1:{proxy.port}")) == COMPLETED
        head = proxy.heads[0]
        assert head.startswith(b"POST http://[::1]:7/v1/chat/completions HTTP/1.1\r\nHost: [::1]:7\r\n")
        assert b"\r\nProxy-Authorization: Basic dTpw\r\n" in head
    with serving(answer=b"HTTP/1.1 502 Bad Gateway\r\n\r\n") as proxy:
        _, _, message = call(settings_of("https://[::1]:7/v1", proxy=f"http://127.0.0.1:{proxy.port}"))
        assert message.endswith(" cannot connect to [::1]:7 (502 Bad Gateway)")
        assert proxy.heads == [b"CONNECT [::1]:7 HTTP/1.1\r\nHost: [::1]:7\r\n\r\n"]


def test_the_endpoints_own_403_is_not_the_proxys(authority: Authority, proxies: dict[str, int]) -> None:
    refused = refusal("403 Forbidden", b'{"error": {"message": "no"}}')
    with serving(authority.serving("localhost"), answer=refused) as server:
        settings = settings_of(
            f"https://localhost:{server.port}/v1",
            proxy=f"http://127.0.0.1:{proxies['open']}",
            tls={"ca_file": authority.file},
        )
        assert call(settings) == ("permission", None, "no")


def proxy_for(url: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(settings_of(url, proxy="env").endpoint, None)
    return None if found is None else f"{found.host}:{found.port}"


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://api.x.org/v1", {}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"https_proxy": "http://u:w@p:3128/"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTP_PROXY": "http://p:3128"}, None),
        ("http://api.x.org/v1", {"HTTP_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"ALL_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "no_proxy": "a, .x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.x.org:443"}, None),
        ("https://api.x.org:8443/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.x.org:443"}, "p:1"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "pi.x.org,,10.0.0.0/8"}, "p:1"),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3"}, None),
        ("https://[fd00::7]/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "[fd00::7]"}, None),
        ("https://[fd00::7]/v1", {"HTTPS_PROXY": "http://[fd00::1]:3128"}, "fd00::1:3128"),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
    ],
)
def test_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], expected: str | None
) -> None:
    assert proxy_for(url, environment, monkeypatch) == expected


@pytest.mark.parametrize("value", ["socks5://p:1", "https://p:1", "ftp://p:1", "http://p:x"])
def test_a_proxy_of_the_environment_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^endpoint.proxy: env: the environment's proxy: (expected|deltatap does not)"
    ):
        proxy_for("https://api.x.org/v1", {"HTTPS_PROXY": value}, monkeypatch)


def test_a_proxys_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://user:{QUOTED}@p:3128"
    monkeypatch.setenv("COMPANY_PROXY", url)
    for given in (url, {"env": "COMPANY_PROXY"}):
        settings = settings_of("https://api.x.org/v1", proxy=given)
        Settings.model_validate(settings.model_dump(mode="json"))
        route = route_of(settings.endpoint)
        assert route.proxy is not None
        assert route.proxy.credentials == "Basic dXNlcjpwQHNzL3dvOnJk"
        assert {PASSWORD, QUOTED, "dXNlcjpwQHNzL3dvOnJk"} <= route.secrets
        for shown in (settings.model_dump_json(), repr(settings), repr(route), str(route.proxy)):
            assert not [secret for secret in route.secrets if secret in shown]
