"""Keys, renewable tokens and other secret values, read in the process that makes the calls.

The only module that reads environment variables and secret scopes for them. Knows when a token must be renewed and
which library issues a new one; uses no event loop and no HTTP. A value never appears in a repr.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deltatap.endpoint import Source, sendable
from deltatap.errors import ConfigError, CredentialError, missing_extra, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.endpoint import Endpoint

# The usual form of the name of an environment variable.
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# https://learn.microsoft.com/azure/ai-services/openai/how-to/managed-identity
_AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"
# A token is renewed when a fifth of its lifetime is left, at most this many seconds before it expires.
_MARGIN_S = 300.0
# The Databricks SDK renews a token 40 s before it expires, but only when it is asked for the token, so ask often.
_ASK_DATABRICKS_S = 30.0
_DATABRICKS_TRIES_S = 30
# Number of tokens to remember: a server can repeat a token that was replaced.
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Token:
    """A key or a token; `expires_at` in seconds since the epoch, None if it does not expire."""

    value: str = field(repr=False)
    expires_at: float | None = None


class Credential:
    """Provides the token to use now. Thread-safe; fetching a token blocks."""

    def __init__(self, fetch: Callable[[], Token], now: Callable[[], float] = time.time) -> None:
        """Fetch nothing yet.

        Args:
            fetch: returns a token; may raise any exception of its library.
            now: seconds since the epoch.
        """
        self._fetch, self._now = fetch, now
        self._lock = threading.Lock()
        self._tokens: list[Token] = []
        self._renew_at = float("-inf")

    @property
    def current(self) -> str | None:
        """The token, or None if it must be renewed; never blocks."""
        return self._tokens[-1].value if self._now() < self._renew_at else None

    def token(self) -> str:
        """Return the token to use now; fetch a new one if the last one expires soon.

        Raises:
            CredentialError: no valid token is available.
        """
        with self._lock:
            if self.current is None:
                self._renew()
            return self._tokens[-1].value

    def refused(self, value: str) -> bool:
        """Replace a refused token if it is still the current one. Return whether there is a new one."""
        with self._lock:
            if self._tokens[-1].value == value:
                self._renew_at = float("-inf")
                self._renew()
            return self._tokens[-1].value != value

    def _renew(self) -> None:
        now = self._now()
        try:
            token = self._fetch()
        except ConfigError:
            raise
        except Exception as error:
            current = self._tokens[-1] if self._tokens else None
            if current is not None and current.expires_at is not None and now < current.expires_at:
                self._renew_at = min(current.expires_at, now + 1)  # still valid; try again soon
                return
            raise CredentialError(f"cannot get a token: {type(error).__name__}: {one_line(error)}") from error
        # A library that is asked early returns the same token again, so remember each token only once.
        others = [known for known in self._tokens if known.value != token.value]
        self._tokens = [*others[1 - _KEPT :], token]
        if token.expires_at is None:
            self._renew_at = float("inf")
        else:
            self._renew_at = token.expires_at - min(_MARGIN_S, (token.expires_at - now) / 5)

    @property
    def known(self) -> frozenset[str]:
        """The latest tokens, since some servers repeat a token that they refuse."""
        return frozenset(token.value for token in self._tokens)


@dataclass(frozen=True, slots=True)
class Secrets:
    """Values from secret scopes, by ``scope/key``. Only the driver can read them; it passes them to the workers."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_secrets(endpoint: Endpoint) -> Secrets:
    """Read every secret that the configuration of the endpoint names.

    Raises:
        ConfigError: this is not a driver on Databricks, or a secret does not exist, or you may not read it.
    """
    sources: dict[str, object] = {f"endpoint.headers.{name}": value for name, value in endpoint.headers.items()}
    sources |= {"endpoint.api_key": endpoint.api_key, "endpoint.proxy": endpoint.proxy}
    return Secrets(
        {
            value.secret: _read_secret(value.secret, where)
            for where, value in sources.items()
            if isinstance(value, Source) and value.secret is not None
        }
    )


def _read_secret(secret: str, where: str) -> str:
    where = f"{where}.secret: {secret}"
    scope, _, name = secret.partition("/")
    try:
        # In a notebook, this is the notebook's dbutils. Elsewhere, it is a client of the workspace.
        from databricks.sdk.runtime import dbutils  # noqa: PLC0415 - an extra; part of Databricks runtimes

        value = str(dbutils.secrets.get(scope, name)).strip()
    except ModuleNotFoundError as error:
        raise ConfigError([f"{where}: {missing_extra(error, 'databricks')}"]) from error
    except Exception as error:
        raise ConfigError([f"{where}: {type(error).__name__}: {one_line(error)}"]) from error
    if not value:
        raise ConfigError([f"{where}: is empty"])
    return _sendable(value, where)


def value_of(source: Source, where: str, secrets: Secrets | None, *, else_: str = "") -> str:
    """Return the value that a source names.

    Args:
        source: of the value: an environment variable or a secret.
        where: the key of the configuration.
        secrets: in a worker, the result of :func:`read_secrets` on the driver.
        else_: what the user can do instead of setting the variable.

    Raises:
        ConfigError: the variable or the secret is missing, or a header cannot hold it.
    """
    if source.secret is not None:
        known = secrets.values if secrets else {}
        return known.get(source.secret) or _read_secret(source.secret, where)
    where = f"{where}.env: "
    value = os.environ.get(str(source.env), "").strip()
    if not value:
        # People paste keys where the name of a variable is expected.
        named = source.env if _NAME.fullmatch(str(source.env)) else "that is named here"
        raise ConfigError([f"{where}the environment variable {named} is not set; set it{else_}"])
    return _sendable(value, f"{where}{source.env}")


def credential_of(endpoint: Endpoint, secrets: Secrets | None = None) -> Credential | None:
    """The credential that the configuration names. Without one, it is None, and calls are sent without it.

    Args:
        endpoint: the configuration.
        secrets: in a worker, the result of :func:`read_secrets` on the driver.

    Raises:
        ConfigError: the variable or the secret is missing, or a library is not installed.
    """
    key = endpoint.api_key
    if key is None:
        return None
    if key.identity == "azure":
        return Credential(_azure())
    if key.identity == "databricks":
        return Credential(_databricks(endpoint))
    none = ", or use --set endpoint.api_key= if the endpoint needs no key"
    token = Token(value_of(key, "endpoint.api_key", secrets, else_=none))
    return Credential(lambda: token)


def _sendable(value: str, where: str) -> str:
    """Return the key if a header can hold it. Otherwise the HTTP library would quote the key in its error."""
    if not sendable(value):
        raise ConfigError(
            [f"{where}: contains a character that headers cannot contain, such as a line break or a non-ASCII letter"]
        )
    return value


def _azure() -> Callable[[], Token]:
    """Entra ID: a service principal from variables, a managed or workload identity, or a developer's login."""
    try:
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError([f"endpoint.api_key.identity: {missing_extra(error, 'azure')}"]) from error
    identity = DefaultAzureCredential()

    def fetch() -> Token:
        token = identity.get_token(_AZURE_SCOPE)
        return Token(token.token, float(token.expires_on))

    return fetch


def _databricks(endpoint: Endpoint) -> Callable[[], Token]:
    """The SDK's unified authentication for the endpoint's own workspace, so that no other host gets a token."""
    try:
        from databricks.sdk.core import Config  # noqa: PLC0415 - an extra; part of Databricks runtimes
    except ModuleNotFoundError as error:
        raise ConfigError([f"endpoint.api_key.identity: {missing_extra(error, 'databricks')}"]) from error
    url = urlsplit(endpoint.base_url)
    config: Config | None = None

    def fetch() -> Token:
        nonlocal config
        if config is None:
            config = Config(host=f"{url.scheme}://{url.netloc}", retry_timeout_seconds=_DATABRICKS_TRIES_S)
        value = config.authenticate()["Authorization"].removeprefix("Bearer ")
        return Token(value, time.time() + _ASK_DATABRICKS_S)

    return fetch
