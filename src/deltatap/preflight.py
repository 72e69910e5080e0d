"""What is checked before anything else is done, without Spark and without a paid call: all of it, told at once."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deltatap.credentials import credential_of
from deltatap.errors import ConfigError, CredentialError, DeltatapError
from deltatap.prices import load_prices
from deltatap.state import RunState
from deltatap.tokens import encoding, known_encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.config import Settings
    from deltatap.prices import Prices


def preflight(settings: Settings) -> Prices:
    """Check all that can be checked without Spark and without a paid call; the prices.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems: list[str] = []
    prices = None
    checks: list[Callable[[], Any]] = [
        lambda: _authenticate(settings),
        lambda: encoding(settings.tokens.fallback_encoding),
        lambda: encoding(known_encoding(settings.endpoint.model or "") or settings.tokens.fallback_encoding),
        lambda: RunState(Path(settings.state.dir) / ".probe").prepare(),
        lambda: _reach(settings),
    ]
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
        except DeltatapError as error:
            problems.append(str(error))
    RunState(Path(settings.state.dir) / ".probe").remove()
    try:
        prices = load_prices(settings.prices)
    except ConfigError as error:
        problems += error.problems
    else:
        model = settings.endpoint.model
        if settings.budget.cost_usd is not None and model is not None and prices.find(model) is None:
            problems.append(
                f"budget.cost_usd: model {model} has no price, so its cost cannot be bounded; add it to prices"
            )
    if problems or prices is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return prices


def _authenticate(settings: Settings) -> None:
    credential = credential_of(settings.endpoint)
    if credential is not None:
        try:
            credential.token()
        except CredentialError as error:
            raise ConfigError([f"endpoint.api_key: {error}"]) from error


def _reach(settings: Settings) -> None:
    url = urlsplit(settings.endpoint.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((str(url.hostname), port), timeout=settings.timeouts.connect_s).close()
    except OSError as error:
        here = url.hostname in ("127.0.0.1", "localhost", "::1")
        hint = "; is the server running? `deltatap simulate` starts the simulator" if here else ""
        why = error.strerror or str(error) or type(error).__name__
        raise ConfigError([f"endpoint.base_url: cannot reach {url.hostname} port {port}: {why}{hint}"]) from error
