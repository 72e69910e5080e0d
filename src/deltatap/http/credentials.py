"""The key, or a token that is renewed, read where it is used: in the process that makes the calls.

The one place where environment variables count. Knows when a token is too old to use and who gives a new one; knows no
event loop and no endpoint. A value never reaches a repr.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deltatap.errors import ConfigError, CredentialError, missing_extra, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.config import Endpoint

# https://learn.microsoft.com/azure/ai-services/openai/how-to/managed-identity
_AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"
# A token is renewed when a fifth of its life is left; of a long life so many seconds.
_MARGIN_S = 300.0
# The Databricks SDK renews its tokens 40 s before they end, when it is asked: so it is asked often.
_ASK_DATABRICKS_S = 30.0
_DATABRICKS_TRIES_S = 30
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Token:
    """A key or a token; `expires_at` in seconds since the epoch, None when it stays."""

    value: str = field(repr=False)
    expires_at: float | None = None


class Credential:
    """Gives the token to use now. From any thread; fetching one blocks."""

    def __init__(self, fetch: Callable[[], Token], now: Callable[[], float] = time.time) -> None:
        """Fetch nothing yet.

        Args:
            fetch: gives a token; raises whatever its library raises.
            now: the time in seconds since the epoch.
        """
        self._fetch, self._now = fetch, now
        self._lock = threading.Lock()
        self._tokens: list[Token] = []
        self._renew_at = float("-inf")

    @property
    def current(self) -> str | None:
        """The token, while it need not be renewed; never blocks."""
        return self._tokens[-1].value if self._now() < self._renew_at else None

    def token(self) -> str:
        """The token to use now, fetched anew when the one before is near its end.

        Raises:
            CredentialError: when none can be had.
        """
        with self._lock:
            if self.current is None:
                self._renew()
            return self._tokens[-1].value

    def refused(self, value: str) -> bool:
        """The server refused this token: fetch another, unless there is one by now. Whether there is another."""
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
                self._renew_at = min(current.expires_at, now + 1)  # it still holds; try again soon
                return
            raise CredentialError(f"no token: {type(error).__name__}: {one_line(error)}") from error
        # Asked early, a library gives the token that it has: each counts once among those to strike out.
        others = [known for known in self._tokens if known.value != token.value]
        self._tokens = [*others[1 - _KEPT :], token]
        if token.expires_at is None:
            self._renew_at = float("inf")
        else:
            self._renew_at = token.expires_at - min(_MARGIN_S, (token.expires_at - now) / 5)

    def hide(self, text: str) -> str:
        """The text, with every token struck out: some servers repeat what they refuse."""
        for token in self._tokens:
            text = text.replace(token.value, "***")
        return text


def handed_over(endpoint: Endpoint) -> Token | None:
    """The key of a secret scope, which the driver alone can read: workers get it in the UDF's closure. None of others.

    Raises:
        ConfigError: when this is no driver on Databricks, or the secret is not there, or is not ours to read.
    """
    key = endpoint.api_key
    if key is None or key.secret is None:
        return None
    where = f"endpoint.api_key.secret: {key.secret}"
    scope, _, name = key.secret.partition("/")
    try:
        # The notebook's own dbutils, or on any other machine one that asks the workspace.
        from databricks.sdk.runtime import dbutils  # noqa: PLC0415 - an extra; on Databricks it is there

        value = str(dbutils.secrets.get(scope, name)).strip()
    except ModuleNotFoundError as error:
        raise ConfigError([f"{where}: {missing_extra(error, 'databricks')}"]) from error
    except Exception as error:
        raise ConfigError([f"{where}: {type(error).__name__}: {one_line(error)}"]) from error
    if not value:
        raise ConfigError([f"{where}: is empty"])
    return Token(_sendable(value, where))


def credential_of(endpoint: Endpoint, handed: Token | None = None) -> Credential | None:
    """What the configuration names; None when it names nothing, and nothing is sent.

    Args:
        endpoint: the configuration.
        handed: in a worker, what :func:`handed_over` gave on the driver.

    Raises:
        ConfigError: when the variable or the secret is not there, or the library is not installed.
    """
    key = endpoint.api_key
    if key is None:
        return None
    if key.identity == "azure":
        return Credential(_azure())
    if key.identity == "databricks":
        return Credential(_databricks(endpoint))
    token = handed or handed_over(endpoint) or Token(_variable(str(key.env)))
    return Credential(lambda: token)


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        unset = f"the environment variable {name} is not set"
        how = "set it, or use --set endpoint.api_key= where the endpoint needs no key"
        raise ConfigError([f"endpoint.api_key.env: {unset}; {how}"])
    return _sendable(value, f"endpoint.api_key.env: {name}")


def _sendable(value: str, where: str) -> str:
    """The key, if a header can hold it: what cannot be sent would stand in the error that says so."""
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            [f"{where}: holds a character that no key has, such as a line break or one that is not ASCII"]
        )
    return value


def _azure() -> Callable[[], Token]:
    """Entra ID, by what this process is: a service principal by variables, a managed or workload identity, a login."""
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
    """The SDK's unified authentication for the endpoint's own workspace: a token goes to no other host."""
    try:
        from databricks.sdk.core import Config  # noqa: PLC0415 - an extra; on Databricks it is there
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
