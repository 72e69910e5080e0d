"""Where spans go: the URL and the headers, as the options of the command give them.

Reports problems with them, but never a header's value. Reads the secrets and variables that headers name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from deltatap import settings_file
from deltatap.endpoint import Source, sendable
from deltatap.errors import ConfigError
from deltatap.http.credentials import value_of

if TYPE_CHECKING:
    from collections.abc import Iterable

# The path of traces in OTLP/HTTP (https://opentelemetry.io/docs/specs/otlp/).
PATH = "/v1/traces"
# RFC 9110, section 5.6.2
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def traces_url(given: str) -> str:
    """The URL for traces. A URL without :data:`PATH` is the server's; the path is added.

    Raises:
        ConfigError: it is not an http(s) URL, or contains a password.
    """
    try:
        url = urlsplit(given)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid or not given.isascii() or not given.isprintable() or " " in given:
        raise ConfigError(["--otlp: expected an http:// or https:// URL, such as http://127.0.0.1:4318"])
    if "@" in url.netloc:
        raise ConfigError(["--otlp: must not contain a user name or password; use --header"])
    path = url.path.rstrip("/")
    return urlunsplit(url._replace(path=path if path.endswith(PATH) else path + PATH, fragment=""))


def shown(url: str) -> str:
    """The URL without its query, which may hold a key."""
    return urlunsplit(urlsplit(url)._replace(query=""))


def headers_of(given: Iterable[str]) -> dict[str, str]:
    """The headers of ``NAME=VALUE``.

    A value can be ``{env: VARIABLE}`` or ``{secret: scope/key}``; an empty value sends no header.

    Raises:
        ConfigError: one cannot be read or sent.
    """
    found = {}
    for each in given:
        name, mark, value = each.partition("=")
        name, value = name.strip(), value.strip()
        if not mark or not _NAME.fullmatch(name):
            # Text that is not NAME=VALUE may be a secret value.
            raise ConfigError(["--header: expected NAME=VALUE"])
        if value.startswith("{"):
            value = value_of(_source(name, value), f"--header {name}", None)
        if not sendable(value):
            raise ConfigError([f"--header {name}: a header can contain only printable ASCII characters"])
        if value:
            found[name] = value
    return found


def _source(name: str, value: str) -> Source:
    try:
        source = Source.model_validate(settings_file.parse(value))
    except ValueError:
        source = Source()
    if (source.env is None) == (source.secret is None):
        raise ConfigError([f"--header {name}: expected a value, {{env: VARIABLE}} or {{secret: scope/key}}"])
    return source
