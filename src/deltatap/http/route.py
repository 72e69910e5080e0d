"""The way to the endpoint, with every value looked up: headers, proxy, certificates.

Knows what the configuration says about the way, and which of its values are secret. ``credentials.py`` reads the
values, ``proxy.py`` and ``tls.py`` use them, ``client.py`` adds the key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from deltatap.endpoint import Source, holds_credential
from deltatap.http.credentials import value_of
from deltatap.http.proxy import Proxy, proxy_of
from deltatap.http.tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from deltatap.endpoint import Endpoint
    from deltatap.http.credentials import Secrets

# Characters of run ids that a header cannot hold. They are percent-encoded.
_NOT_IN_HEADERS = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the endpoint.

    Attributes:
        headers: sent with every call.
        proxy: the proxy on the way; None if there is none.
        tls: the certificates; None for an endpoint without TLS.
        secrets: values that no table and no message may contain, in addition to the key.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: Proxy | None = None
    tls: ssl.SSLContext | None = None
    secrets: frozenset[str] = field(default=frozenset(), repr=False)


def route_of(endpoint: Endpoint, secrets: Secrets | None = None, run_id: str = "") -> Route:
    """The way that the configuration describes, in this process.

    Args:
        endpoint: the configuration.
        secrets: in a worker, the result of :func:`~deltatap.http.credentials.read_secrets` on the driver.
        run_id: replaces ``{run_id}`` in headers.

    Raises:
        ConfigError: a variable, a secret or a file is missing or not valid.
    """
    headers, hidden = {}, set()
    for name, given in endpoint.headers.items():
        if isinstance(given, Source):
            value = value_of(given, f"endpoint.headers.{name}", secrets)
        else:
            value = given.replace("{run_id}", _NOT_IN_HEADERS.sub(lambda found: quote(found[0]), run_id))
        headers[name] = value
        if isinstance(given, Source) or holds_credential(name):
            # A value such as "Bearer abc" has a scheme; a server may repeat the credential without it.
            hidden |= {value, value.rpartition(" ")[2]}
    proxy = proxy_of(endpoint, secrets)
    tls = tls_context(endpoint.tls) if endpoint.base_url.lower().startswith("https:") else None
    return Route(headers, proxy, tls, frozenset(hidden | set(proxy.secrets if proxy else ())))
