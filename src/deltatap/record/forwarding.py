"""The head of a client's request: where it goes, how it is rewritten, and which values of a request are secret.

Pure. The path and almost all headers stay as they are. ``requests.py`` parses heads, ``session.py`` sends them.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote

import httpx2

from deltatap.api import registry
from deltatap.endpoint import holds_credential

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deltatap.api.base import Api
    from deltatap.http.proxy import Proxy
    from deltatap.record.requests import Head

# RFC 9110, section 7.6.1: hop-by-hop headers. The connections to the client and to the server are a pair, so `close`
# and `keep-alive` mean the same on both. A chunked body is passed on in chunks.
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade",
     b"http2-settings", b"host")
)  # fmt: skip
_KEPT_TOKENS = frozenset((b"close", b"keep-alive"))
# The codings that deltatap can decode. Others are not requested for answers that it records.
_DECODABLE = frozenset((b"gzip", b"x-gzip", b"deflate", b"identity"))
_ABSOLUTE = re.compile(rb"(?i)https?://[^/?#]*")
# Shorter values of a cookie can be words; a session id is longer.
_SECRET_COOKIE = 16
# The fields of a body that tell a server how to call other servers: tools of Responses, MCP servers of Messages, and
# Azure's data sources; and the names of fields inside them that hold no credentials: JSON schemas, and conditions whose
# `key` is a name.
_CALLED = {"tools": frozenset(("parameters", "input_schema", "filters")), "mcp_servers": (), "data_sources": ()}
# A text under a name in JSON, even if it is cut.
_NAMED_TEXT = re.compile(r'"([^"\\]{1,100})"\s*:\s*"((?:[^"\\]++|\\.)*+)')
# The path that clients add before an API's path if the base URL has none.
_USUAL = "/v1"


@dataclass(frozen=True, slots=True)
class Target:
    """The server to which requests are forwarded.

    Attributes:
        scheme, host, port: of the server.
        netloc: host and port as in a Host header.
        path: of the base URL, without a slash at its end.
        forwarded_by: the HTTP proxy that forwards plain HTTP requests; None if there is none.
    """

    scheme: str
    host: str
    port: int
    netloc: bytes
    path: str
    forwarded_by: Proxy | None = None

    @classmethod
    def of(cls, base_url: str, proxy: Proxy | None = None) -> Self:
        """The server of a base URL."""
        url = httpx2.URL(base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        forwarded_by = proxy if url.scheme == "http" else None
        return cls(url.scheme, url.host, port, url.netloc, url.path.rstrip("/"), forwarded_by)


def path_of(target: bytes) -> bytes:
    """The path and the query of a request target; a client that is configured to use a proxy sends the whole URL."""
    path = _ABSOLUTE.sub(b"", target, count=1)
    return path if path.startswith((b"/", b"*")) else b"/" + path


def api_of(head: Head, base_path: str) -> Api | None:
    """The API that a request calls; None if the request is forwarded without being recorded."""
    if head.method != "POST":
        return None
    path = path_of(head.target).partition(b"?")[0].decode("latin1").rstrip("/")
    for api in registry.specifications():
        if path in (f"{base_path}{api.path}", f"{_USUAL}{api.path}"):
            return api
        if api.per_deployment and re.fullmatch(
            rf"(?:{re.escape(base_path)}|/openai)/deployments/[^/]+{api.path}", path
        ):
            return api
    return None


def deployment_of(head: Head) -> str | None:
    """The deployment that the path names, as in Azure's older URLs."""
    found = re.search(rb"/deployments/([^/?]+)/", path_of(head.target))
    return None if found is None else unquote(found[1].decode("latin1"))


def is_chunked(head: Head) -> bool:
    """Whether the body of a request is chunked."""
    return any(b"chunked" in value.lower() for value in head.values(b"transfer-encoding"))


def forwarded(head: Head, to: Target, *, recorded: bool) -> bytes:
    """The head as the server gets it.

    Args:
        head: as the client sent it.
        to: the server.
        recorded: whether deltatap has to be able to decode the answer.
    """
    tokens = [token.strip() for value in head.values(b"connection") for token in value.split(b",")]
    hop = _HOP | {token.lower() for token in tokens}
    headers = [(name, value) for name, value in head.headers if name.lower() not in hop]
    if recorded:
        headers = [
            (name, _decodable(value) if name.lower() == b"accept-encoding" else value) for name, value in headers
        ]
    if kept := [token for token in tokens if token.lower() in _KEPT_TOKENS]:
        headers.append((b"Connection", b", ".join(kept)))
    target = path_of(head.target)
    if (proxy := to.forwarded_by) is not None:
        target = b"http://%b%b" % (to.netloc, target)
        if proxy.credentials is not None:
            headers.append((b"Proxy-Authorization", proxy.credentials.encode()))
    line = b"%b %b HTTP/%b\r\n" % (head.method.encode(), target, head.version.encode())
    lines = (b"%b: %b\r\n" % header for header in ((b"Host", to.netloc), *headers))
    return b"".join((line, *lines, b"\r\n"))


def _decodable(accepted: bytes) -> bytes:
    """An Accept-Encoding without the codings that deltatap cannot decode."""
    codings = [each.strip() for each in accepted.split(b",")]
    return b", ".join(each for each in codings if each.partition(b";")[0].strip().lower() in _DECODABLE) or b"identity"


def secrets_of(head: Head) -> frozenset[str]:
    """The values in a head that no row and no message may contain."""
    found: set[str] = set()
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("latin1").lower(), raw_value.decode("latin1").strip()
        found |= _in_field(name, value)
    query = path_of(head.target).partition(b"?")[2].decode("latin1")
    found |= set(_in_query(query))
    return frozenset(found - {""})


def secrets_in(body: Mapping[str, Any]) -> frozenset[str]:
    """The credentials that a body gives the server for other servers, such as those of MCP."""
    found: set[str] = set()
    for field, other in _CALLED.items():
        waiting: list[tuple[str, object]] = [("", body.get(field))]
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, dict):
                waiting += [each for each in value.items() if each[0] not in other]
            elif isinstance(value, list):
                waiting += [(name, each) for each in value]
            elif isinstance(value, str):
                found |= _in_field(name, value.strip())
                if name.lower().endswith("url"):
                    found |= set(_in_query(value.partition("?")[2]))
    return frozenset(found - {""})


def secrets_in_text(body: str) -> frozenset[str]:
    """The credentials in a body that is not valid JSON, or that has not arrived completely."""
    found = (_in_field(name, value) for name, value in _NAMED_TEXT.findall(body))
    return frozenset({secret for secrets in found for secret in secrets} - {""})


def _in_field(name: str, value: str) -> set[str]:
    """The secrets in the value of a header, or of a field with such a name."""
    if name.lower() == "cookie":
        pairs = (each.partition("=")[2].strip(' "') for each in value.split(";"))
        return {pair for pair in pairs if len(pair) >= _SECRET_COOKIE}
    if not holds_credential(name):
        return set()
    # A list of values, each with or without a scheme.
    words = {each.split()[-1].strip('"') for each in value.split(",") if each.strip()}
    return {value, *words, *_basic(value)}


def _basic(value: str) -> Iterable[str]:
    """From basic authentication (RFC 7617): the user name with the password, and the password alone."""
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        pair = b64decode(encoded.strip(), validate=True).decode("utf-8", "replace")
    except (Base64Error, ValueError):
        return ()
    return pair, pair.partition(":")[2]


def _in_query(query: str) -> Iterator[str]:
    for name, value in parse_qsl(query):
        if holds_credential(name):
            yield value
    for pair in query.split("&"):  # percent-encoded as in the URL, which a server may repeat
        name, _, value = pair.partition("=")
        if holds_credential(unquote(name)):
            yield value
