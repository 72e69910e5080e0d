"""The HTTP proxy between deltatap and the endpoint: which one a URL needs, and how it opens a tunnel.

Knows ``endpoint.proxy``, the environment's variables, and the request CONNECT with its answer. Owns no socket:
``dial.py`` passes one. No message and no repr contains the password.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx2

from deltatap.endpoint import Source, proxy_problem
from deltatap.errors import ConfigError
from deltatap.http.credentials import value_of

if TYPE_CHECKING:
    import socket

    from deltatap.endpoint import Endpoint
    from deltatap.http.credentials import Secrets

_MAX_HEAD_BYTES = 16 * 2**10
_OK, _AUTHENTICATE, _FORBIDDEN, _SERVER_ERROR = 200, 407, 403, 500


class ProxyError(httpx2.ProxyError):
    """The proxy refused or failed; the endpoint was not reached.

    Attributes:
        code: the ``error.code`` of the row.
    """

    code = "proxy"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.

    Attributes:
        host, port: its address.
        credentials: the value of Proxy-Authorization; None without a user name.
        secrets: what no table and no message may contain.
    """

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"the proxy {address(self.host, self.port)}"

    def failure(self, status: int, phrase: str, server: str) -> ProxyError:
        """The error for an answer of the proxy.

        Args:
            status: of the answer.
            phrase: the text after the status.
            server: host and port of the endpoint.
        """
        answer = f"{status} {phrase}".strip()[:100]
        if status == _AUTHENTICATE and self.credentials is None:
            return ProxyError(f"{self} requires a user name and a password ({answer}): add them to endpoint.proxy")
        if status == _AUTHENTICATE:
            return ProxyError(f"{self} refused the user name and password in endpoint.proxy ({answer})")
        if status == _FORBIDDEN:
            return ProxyError(f"{self} does not allow connections to {server} ({answer}): ask its administrator")
        if status >= _SERVER_ERROR:
            return ProxyError(f"{self} cannot connect to {server} ({answer})")
        return ProxyError(f"{self} refused to connect to {server} ({answer})")


def address(host: str, port: int) -> str:
    """Host and port in the form that URLs use."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_of(endpoint: Endpoint, secrets: Secrets | None) -> Proxy | None:
    """The proxy for the endpoint's URL; None if it is called directly.

    Args:
        endpoint: the configuration.
        secrets: in a worker, the result of :func:`~deltatap.http.credentials.read_secrets` on the driver.

    Raises:
        ConfigError: the proxy's URL is not valid, or the variable or secret that holds it is missing.
    """
    given, where = endpoint.proxy, "endpoint.proxy"
    if isinstance(given, Source):
        given = value_of(given, where, secrets)
    elif given == "env":
        given, where = _from_environment(endpoint.base_url), "endpoint.proxy: env: the environment's proxy"
    if given is None:
        return None
    if (problem := proxy_problem(given)) is not None:
        raise ConfigError([f"{where}: {problem}"])
    url = urlsplit(given)
    host, port = str(url.hostname), url.port or 80
    if url.username is None and url.password is None:
        return Proxy(host, port)
    user, password = unquote(url.username or ""), unquote(url.password or "")
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    hidden = dict.fromkeys(text for text in (password, url.password, credentials) if text)
    return Proxy(host, port, f"Basic {credentials}", tuple(hidden))


def _from_environment(base_url: str) -> str | None:
    url, proxies = urlsplit(base_url), urllib.request.getproxies()
    host = str(url.hostname)
    found = proxies.get(url.scheme) or proxies.get("all")
    if not found or host == "localhost" or _in_network(host, ["127.0.0.0/8", "::1"]):
        return None
    direct = [entry.strip() for entry in proxies.get("no", "").split(",")]
    port = url.port or (443 if url.scheme == "https" else 80)
    # The standard library only compares names. It does not know networks such as 10.0.0.0/8, or patterns such as
    # *.corp.
    named = urllib.request.proxy_bypass(address(host, port))
    if named or _in_network(host, direct) or any(e.startswith("*.") and host.endswith(e[1:].lower()) for e in direct):
        return None
    return found if "://" in found else f"http://{found}"


def _in_network(host: str, networks: list[str]) -> bool:
    """Whether a host is an address in one of these networks; entries that are not networks are ignored."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in networks:
        try:
            if ip in ipaddress.ip_network(entry.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


async def open_tunnel(stream: socket.socket, proxy: Proxy, server: str) -> None:
    """Ask the proxy for a connection to the endpoint. After that, the socket is connected to the endpoint.

    Args:
        stream: connected to the proxy; does not block.
        proxy: its address and the credentials for it.
        server: host and port of the endpoint.

    Raises:
        ProxyError: the proxy refused, did not answer as a proxy does, or closed the connection.
    """
    loop = asyncio.get_running_loop()
    credentials = f"Proxy-Authorization: {proxy.credentials}\r\n" if proxy.credentials else ""
    head = b""
    # A reset ends the answer, just as a close does.
    with suppress(ConnectionError):
        await loop.sock_sendall(stream, f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{credentials}\r\n".encode())
        while _more(head) and (data := await loop.sock_recv(stream, 4096)):
            head += data
    if not head:
        raise ProxyError(f"{proxy} closed the connection before it answered")
    found = _STATUS_LINE.match(head)
    if found is None:
        start = "".join(c if c.isprintable() else "." for c in head[:60].decode("latin-1"))
        raise ProxyError(f"{proxy} did not answer as an HTTP proxy does: {start}")
    status, phrase = int(found[1]), found[2].decode("latin-1").strip()
    if not _OK <= status < 300:  # noqa: PLR2004 - RFC 9110, section 9.3.6: any 2xx
        raise proxy.failure(status, phrase, server)
    # The server sends nothing before it is greeted, so nothing may follow the head.
    if not _END.search(head) or _END.split(head, maxsplit=1)[1]:
        raise ProxyError(f"{proxy} did not end its answer as an HTTP proxy does")


_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})([^\r\n]*)")


def _more(head: bytes) -> bool:
    """Whether more of the head of an answer to CONNECT may follow."""
    return b"HTTP/1."[: len(head)] == head[:7] and len(head) < _MAX_HEAD_BYTES and not _END.search(head)
