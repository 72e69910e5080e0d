"""The needs of a run, as one list. :func:`preflight`, ``run.py`` and ``check.py`` check them, without a paid call.

``run.py`` decides when to check the needs, and ``check.py`` reports them one by one.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from deltatap.driver import where
from deltatap.errors import ConfigError, CredentialError, DeltatapError
from deltatap.http.credentials import credential_of
from deltatap.http.proxy import ProxyError
from deltatap.http.route import route_of
from deltatap.http.tls import TlsError
from deltatap.http.transport import Http1Transport
from deltatap.prices import load_prices
from deltatap.program import program
from deltatap.prompt_columns import COLUMNS
from deltatap.spark.serverless import is_serverless
from deltatap.state import RunState
from deltatap.tokens import encoding, known_encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.http.credentials import Secrets
    from deltatap.prices import Prices


NETWORK = "network"
# The effect of capture.resume on privacy and costs.
PRIVACY = (
    "the provider stores every streamed answer (store: true) for as long as its data retention policy says, even after "
    "the run; generation continues after a stop"
)


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a run needs.

    Attributes:
        name: the name of the need, for the user.
        check: raises a :class:`DeltatapError` if the need is not met; else returns a detail for the user, or None.
    """

    name: str
    check: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check: the problems, or a detail if there are none."""

    problems: tuple[str, ...] = ()
    detail: str = ""


def checked(need: Need) -> Checked:
    """Check a need."""
    try:
        return Checked(detail=need.check() or "")
    except ConfigError as error:
        return Checked(error.problems)
    except DeltatapError as error:
        return Checked((str(error),))


def require(needs: Iterable[Need]) -> None:
    """Check all needs.

    Raises:
        ConfigError: with all problems of all needs.
    """
    if problems := [problem for need in needs for problem in checked(need).problems]:
        raise ConfigError(list(dict.fromkeys(problems)))


def preflight(settings: Settings) -> Prices:
    """Check everything that a run needs and that can be checked without Spark.

    Returns:
        The prices.

    Raises:
        ConfigError: with all problems of all needs.
    """
    require([where_need(settings), *process_needs(settings), price_need(settings)])
    return prices_of(settings)


def process_needs(settings: Settings, secrets: Secrets | None = None) -> list[Need]:
    """Return the needs of the driver and of each Spark worker.

    Args:
        settings: of the run.
        secrets: in a worker, what the driver has read from secret scopes.
    """
    return [
        Need("key", lambda: _key(settings, secrets)),
        Need("vocabularies", lambda: _vocabularies(settings)),
        Need("state folder", lambda: _state_folder(settings)),
        Need(NETWORK, lambda: _network(settings, secrets)),
    ]


def where_need(settings: Settings) -> Need:
    """Whether calls can be made in the place that the settings name."""

    def check() -> None:
        if (problem := where.impossible(settings.capture, serverless=is_serverless())) is not None:
            raise ConfigError([problem])

    return Need("where", check)


def price_need(settings: Settings) -> Need:
    """The prices, which only the driver reads."""

    def check() -> None:
        prices_of(settings)

    return Need("price", check)


def table_needs(spark: SparkSession, settings: Settings) -> list[Need]:
    """The prompts, and the captures and runs tables, which are created if they do not exist."""
    from deltatap.delta.prepare import prepare_tables  # noqa: PLC0415 - needs without Spark are checked first
    from deltatap.driver.source import source  # noqa: PLC0415 - the same

    def prompts() -> str:
        templates = settings.prompts.templates
        filled = [column for template in templates.values() for column in template.columns]
        ours = [name for name in source(spark, settings).columns if name in COLUMNS and name not in templates]
        used = dict.fromkeys([*ours, *filled, *settings.prompts.keep])
        return f"{settings.prompts.source}: uses {', '.join(used)}"

    return [Need("prompts", prompts), Need("tables", lambda: prepare_tables(spark, settings))]


def prices_of(settings: Settings) -> Prices:
    """The prices that the settings name.

    Raises:
        ConfigError: if a file is not valid, or ``budget.cost_usd`` is set and the model has no price.
    """
    prices, model = load_prices(settings.prices, settings.endpoint.base_url), settings.endpoint.model
    if settings.budget.cost_usd is not None and model is not None and prices.find(model) is None:
        unbounded = f"model {model} has no price, so its cost cannot be bounded; add it to prices"
        raise ConfigError([f"budget.cost_usd: {unbounded}"])
    return prices


def _key(settings: Settings, secrets: Secrets | None) -> None:
    credential = credential_of(settings.endpoint, secrets)
    if credential is not None:
        try:
            credential.token()
        except CredentialError as error:
            raise ConfigError([f"endpoint.api_key: {error}"]) from error


def _vocabularies(settings: Settings) -> None:
    fallback = settings.tokens.fallback_encoding
    encoding(fallback)
    encoding(known_encoding(settings.endpoint.model or "") or fallback)


def _state_folder(settings: Settings) -> None:
    if ":" in settings.state.dir and re.search(r"[\\*?\[\]{}]", settings.state.dir):
        why = "Spark cannot read a path that has a colon and one of \\ * ? [ ] { }; choose another folder"
        raise ConfigError([f"state.dir: {settings.state.dir}: {why}"])
    probe = RunState(Path(settings.state.dir) / f".probe-{uuid.uuid4().hex}")
    try:
        probe.prepare()
    finally:
        probe.remove()


def _network(settings: Settings, secrets: Secrets | None) -> None:
    """Connect as a call does: through the proxy, with the certificates."""
    route, connect_s = route_of(settings.endpoint, secrets), settings.timeouts.connect_s
    url = httpx2.URL(settings.endpoint.base_url)

    async def reach() -> None:
        transport = Http1Transport(proxy=route.proxy, tls=route.tls)
        try:
            async with asyncio.timeout(connect_s):
                await transport.reach(url)
        finally:
            await transport.aclose()

    try:
        # In a separate thread, because a notebook's thread already runs an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, reach()).result()
    except TimeoutError as error:
        through = f" through {route.proxy}" if route.proxy else ""
        why = f"cannot reach {url.host}{through}: not connected after {connect_s:g} s (timeouts.connect_s)"
        raise ConfigError([f"endpoint.base_url: {why}"]) from error
    except ProxyError as error:
        raise ConfigError([f"endpoint.proxy: {error}"]) from error
    except TlsError as error:
        raise ConfigError([f"endpoint.base_url: {error}"]) from error
    except httpx2.TransportError as error:
        local = url.host in ("127.0.0.1", "localhost", "::1")
        hint = f"; is the server running? `{program()} simulate` starts the simulator" if local else ""
        server, _, why = str(error).partition(": ")
        where = "cannot reach {} port {}".format(*server.rsplit(":", 1))
        raise ConfigError([f"endpoint.base_url: {where}: {why}{hint}"]) from error
