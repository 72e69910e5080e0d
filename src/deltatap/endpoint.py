"""The settings of the endpoint: the server to call, the key, and the way to it.

Finds problems in these settings, and describes them without any value of ``api_key``, ``headers`` or ``proxy``. Leaves
reading the settings to ``settings_loading.py``; does not open files or connections.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, Field, field_serializer
from pydantic_core import PydanticCustomError

from deltatap.api import registry
from deltatap.setting_types import File, Section

A_PROXY = "http://host:port, http://user:password@host:port or env"
# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Each of these headers would break the request or its answer.
_RESERVED = re.compile(
    "accept-encoding|connection|content-(encoding|length|type)|expect|host|keep-alive|te|trailer|transfer-encoding|upgrade",
    re.IGNORECASE,
)


def _known_api(name: str) -> str:
    if name not in registry.NAMES:
        known = [repr(known) for known in registry.NAMES]
        raise PydanticCustomError("literal_error", f"{', '.join(known[:-1])} or {known[-1]}")
    return name


class Source(Section):
    """Where a value is that the configuration must not contain. Workers read it themselves, except for a secret.

    Attributes:
        env: the name of the environment variable that holds the value.
        secret: ``scope/key`` of a Databricks secret, for notebooks. Only the driver can read secrets, so it passes the
            value to the workers in the UDF's closure.
    """

    env: Annotated[str, Field(min_length=1)] | None = None
    secret: Annotated[str, Field(pattern="^[^/]+/.+$")] | None = None


class ApiKey(Source):
    """Where the API key comes from.

    Attributes:
        identity: instead of a key, use tokens of the process's identity, and renew them before they expire. ``azure``
            uses azure-identity (Entra ID), ``databricks`` the unified authentication of the Databricks SDK.
    """

    identity: Literal["azure", "databricks"] | None = None


class Tls(Section):
    """The certificates of a TLS connection, as paths of PEM files.

    Attributes:
        ca_file: certificate authorities to trust in addition to those of the system.
        client_cert: the certificate, with its chain, that identifies deltatap to the server.
        client_key: the private key of `client_cert`, without a passphrase. None: the key is in the same file.
    """

    ca_file: File | None = None
    client_cert: File | None = None
    client_key: File | None = None


class Endpoint(Section):
    """The server to call, and the way to it.

    Attributes:
        headers: sent with every call. The text ``{run_id}`` stands for the id of the run; characters other
            than ASCII are percent-encoded.
        metadata: sent in the body of every request, as `metadata` (Databricks: `usage_context`), and not part of its
            hash. The text ``{run_id}`` stands for the id of the run.
        proxy: the URL of an HTTP proxy; ``env`` reads HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
        tls: which certificates to trust and to show.
    """

    name: str | None = None
    kind: Literal["openai", "azure", "databricks"] = "openai"
    api: Annotated[str, AfterValidator(_known_api)] = "chat"
    base_url: str = "http://127.0.0.1:8089/v1"
    model: str | None = "gpt-4o-mini"
    api_version: str | None = None
    api_key: ApiKey | None = ApiKey(env="OPENAI_API_KEY")
    headers: dict[str, str | Source] = Field(default={}, repr=False)
    metadata: dict[str, str] = Field(default={})
    proxy: str | Source | None = Field(default=None, repr=False)
    tls: Tls = Field(default_factory=Tls)
    include_usage: bool = True

    @property
    def azure_v1(self) -> bool:
        """Whether the base URL is Azure's v1 API, which differs from OpenAI's only in the header for the key."""
        return self.base_url.rstrip("/").endswith("/openai/v1")

    @property
    def key_header(self) -> tuple[str, str]:
        """The header that carries the key or token, and the text before it."""
        if self.kind == "databricks" or (self.api_key is not None and self.api_key.identity):
            return "Authorization", "Bearer "
        if self.kind == "azure":
            return "api-key", ""
        api = registry.specification(self.api)
        return api.key_header, api.key_prefix

    @property
    def added(self) -> dict[str, dict[str, str]]:
        """The objects to add to the body of every request."""
        return {"usage_context" if self.kind == "databricks" else "metadata": self.metadata} if self.metadata else {}

    @property
    def label(self) -> str:
        """The endpoint's name in the tables: ``name``, or the base URL if there is none."""
        return self.name or self.base_url

    @field_serializer("headers", when_used="json")
    def _headers_without_credentials(self, headers: dict[str, str | Source]) -> dict[str, Any]:
        return {
            name: value.model_dump() if isinstance(value, Source) else "***" if holds_credential(name) else value
            for name, value in headers.items()
        }

    @field_serializer("proxy", when_used="json")
    def _proxy_without_password(self, proxy: str | Source | None) -> object:
        return re.sub(r"//.*@", "//***@", proxy) if isinstance(proxy, str) else proxy and proxy.model_dump()


def holds_credential(header: str) -> bool:
    """Whether a header of this name usually holds a credential: its value is kept out of tables and messages."""
    return bool(re.search(r"auth(orization)?$|key$|token|secret|password|credential|cookie", header, re.IGNORECASE))


def conflicts(endpoint: Endpoint) -> list[str]:
    """Problems between keys of the endpoint that are valid on their own."""
    return [*_url_problems(endpoint), *_key_problems(endpoint), *_network_problems(endpoint)]


def _url_problems(endpoint: Endpoint) -> list[str]:
    where, base_url = "endpoint.base_url", endpoint.base_url
    try:
        url = urlsplit(base_url)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # an invalid port or IPv6 address
        return [f"{where}: expected an http:// or https:// URL"]
    if not valid or not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        return [f"{where}: expected an http:// or https:// URL without spaces"]
    problems = []
    if "@" in url.netloc:
        problems.append(f"{where}: must not contain a user name or password; use endpoint.api_key")
    if "?" in base_url or "#" in base_url:
        how = "endpoint.api_version for api-version, endpoint.headers or request for anything else"
        problems.append(f"{where}: must not contain a query (?) or a fragment (#); use {how}")
    path = url.path.rstrip("/")
    paths = sorted({registry.specification(name).path for name in registry.NAMES}, key=len, reverse=True)
    base = next((path.removesuffix(end) for end in paths if path.endswith(end)), path)
    if endpoint.kind == "azure":
        base, _, deployment = base.partition("/openai/deployments/")
        if deployment:
            problems.append(f"{where}: must end before /openai/deployments; the deployment's name is endpoint.model")
    if base != path:
        better = urlunsplit((url.scheme, url.netloc.rpartition("@")[2], base, "", ""))
        problems.append(f"{where}: must not contain the path of the API, which deltatap appends; write {better}")
    return problems


def _key_problems(endpoint: Endpoint) -> list[str]:
    problems = []
    key = endpoint.api_key
    if key is not None and not _names_one(key):
        problems.append("endpoint.api_key: expected exactly one of env, secret and identity")
    if endpoint.api_version is not None and endpoint.kind != "azure":
        problems.append("endpoint.api_version: is only valid for kind azure")
    if endpoint.kind == "azure" and endpoint.api_version is None and not endpoint.azure_v1:
        problems.append(
            "endpoint.api_version: is missing; set one, such as 2024-10-21, or use a base_url that ends with /openai/v1"
        )
    return problems


def _network_problems(endpoint: Endpoint) -> list[str]:
    """Problems of the headers, the proxy and the certificates."""
    problems = []
    if isinstance(endpoint.proxy, Source) and not _names_one(endpoint.proxy):
        problems.append("endpoint.proxy: expected exactly one of env and secret")
    elif isinstance(endpoint.proxy, str) and endpoint.proxy != "env" and (bad := proxy_problem(endpoint.proxy)):
        problems.append(f"endpoint.proxy: {bad}")
    if endpoint.tls.client_key is not None and endpoint.tls.client_cert is None:
        problems.append("endpoint.tls.client_cert: is missing; client_key is its key")
    seen: set[str] = set()
    for name, value in endpoint.headers.items():
        if (bad := _header_problem(endpoint, name, value)) is not None:
            problems.append(f"endpoint.headers.{name}: {bad}" if _TOKEN.fullmatch(name) else f"endpoint.headers: {bad}")
        elif name.lower() in seen:
            problems.append(f"endpoint.headers.{name}: is set twice; header names are case-insensitive")
        seen.add(name.lower())
    return problems


def _header_problem(endpoint: Endpoint, name: str, value: str | Source) -> str | None:
    """Why a header cannot be sent; None if it can."""
    if not _TOKEN.fullmatch(name):
        return "a name contains a character that header names cannot contain"
    if _RESERVED.fullmatch(name):
        return "must not be set: deltatap sets it"
    if name.lower().startswith("proxy-"):
        return "must not be set: write the proxy's user name and password into endpoint.proxy"
    key_header, _ = endpoint.key_header
    if endpoint.api_key is not None and name.lower() == key_header.lower():
        return "endpoint.api_key sets this header; to send your own value, set endpoint.api_key to null"
    if isinstance(value, Source):
        return None if _names_one(value) else "expected exactly one of env and secret"
    return None if sendable(value) else "a header can contain only printable ASCII characters, and no line breaks"


def sendable(value: str) -> bool:
    """Whether a header can have this value."""
    return value.isascii() and value.isprintable()


def proxy_problem(url: str) -> str | None:
    """The problem with the URL of a proxy; None if there is none. The text does not contain the URL."""
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        return f"expected {A_PROXY}"
    if parts.scheme in ("https", "socks", "socks4", "socks4a", "socks5", "socks5h"):
        return f"deltatap does not support {parts.scheme}:// proxies, only http:// ones (also for https:// endpoints)"
    if parts.scheme != "http" or not valid or parts.path not in ("", "/") or parts.query or parts.fragment:
        return f"expected {A_PROXY}"
    return None


def _names_one(source: Source) -> bool:
    return len(source.model_dump(exclude_none=True)) == 1
