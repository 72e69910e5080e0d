"""What is checked before anything else is done, without Spark and without a paid call: all of it, told at once."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deltatap.errors import ConfigError, CredentialError, DeltatapError
from deltatap.http.credentials import credential_of
from deltatap.prices import load_prices
from deltatap.state import RunState
from deltatap.tokens import encoding, known_encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deltatap.config import Settings
    from deltatap.http.credentials import Token
    from deltatap.prices import Prices


def preflight(settings: Settings) -> Prices:
    """Check all that can be checked without Spark and without a paid call; the prices.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = [problem for _, found in examine(settings) for problem in found]
    try:
        prices = prices_of(settings)
    except ConfigError as error:
        raise ConfigError(list(dict.fromkeys([*problems, *error.problems]))) from error
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return prices


def examine(settings: Settings, key: Token | None = None) -> Iterator[tuple[str, list[str]]]:
    """What driver and workers both need, a thing at a time, and what is wrong with it where this runs.

    Args:
        settings: of the run.
        key: what the driver handed to a worker.
    """
    fallback = settings.tokens.fallback_encoding
    probe = RunState(Path(settings.state.dir) / f".probe-{uuid.uuid4().hex}")
    needs: list[tuple[str, Callable[[], object]]] = [
        ("key", lambda: _authenticate(settings, key)),
        (
            "vocabularies",
            lambda: [encoding(fallback), encoding(known_encoding(settings.endpoint.model or "") or fallback)],
        ),
        ("state folder", probe.prepare),
        ("network", lambda: _reach(settings)),
    ]
    for what, need in needs:
        try:
            need()
        except ConfigError as error:
            yield what, list(error.problems)
        except DeltatapError as error:
            yield what, [str(error)]
        else:
            yield what, []
    probe.remove()


def prices_of(settings: Settings) -> Prices:
    """The prices; a budget in money needs one for the model.

    Raises:
        ConfigError: when a file is none of prices, or the model's cost cannot be bounded.
    """
    prices, model = load_prices(settings.prices), settings.endpoint.model
    if settings.budget.cost_usd is not None and model is not None and prices.find(model) is None:
        unbounded = f"model {model} has no price, so its cost cannot be bounded; add it to prices"
        raise ConfigError([f"budget.cost_usd: {unbounded}"])
    return prices


def _authenticate(settings: Settings, key: Token | None) -> None:
    credential = credential_of(settings.endpoint, key)
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
