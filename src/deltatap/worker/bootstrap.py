"""The setup before the first call of a process: the context of its rows, a running engine, interpreter settings.

The job's attempts and the public UDF both start here. They decide what the engine captures and where captures go.
"""

from __future__ import annotations

import gc
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltatap.api.registry import specification
from deltatap.http.client import EndpointClient
from deltatap.worker.counting import Context
from deltatap.worker.engine import Engine
from deltatap.worker.resuming import Resuming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deltatap.config import Settings
    from deltatap.http.credentials import Credential
    from deltatap.http.route import Route
    from deltatap.messages import KeptStream
    from deltatap.model import Capture
    from deltatap.prices import Prices
    from deltatap.worker.resuming import Key

# The interpreter lets another thread run after this time; Python's default of 5 ms would delay the event loop.
_SWITCH_S = 0.0005


def context_of(settings: Settings, prices: Prices, run_id: str, place: int) -> Context:
    """The context that all rows of a worker share; `place` is its part or partition."""
    prices.warm_up()
    return Context(
        run_id=run_id,
        endpoint=settings.endpoint.label,
        api=settings.endpoint.api,
        worker=f"{socket.gethostname()}/{place}",
        fallback_encoding=settings.tokens.fallback_encoding,
        prices=prices,
    )


def streams_of(settings: Settings) -> int:
    """The maximum number of streams that one worker holds open."""
    return min(settings.capture.streams_per_worker, settings.capture.concurrency)


@contextmanager
def running_engine(
    settings: Settings,
    credential: Credential | None,
    deliver: Callable[[Capture], None],
    *,
    look_ahead: int,
    share: int = 0,
    route: Route | None = None,
    hold: Callable[[Capture], None] | None = None,
    resuming: Resuming | None = None,
) -> Iterator[Engine]:
    """An engine with its client, running until the context ends.

    Args:
        settings: the configuration.
        credential: the endpoint's; None when it needs none.
        deliver: see :class:`Engine`.
        look_ahead: see :class:`Engine`.
        share: see :class:`Engine`.
        route: the way to the endpoint; None: the way that the configuration describes.
        hold: receives each capture whose checks take longer than a flush interval.
        resuming: see :class:`Engine`; None: answers of earlier workers are unknown.
    """
    if resuming is None:
        resuming = resuming_of(settings)
    engine = Engine(
        lambda: make_client(settings, credential, route),
        limits=settings.capture,
        look_ahead=look_ahead,
        deliver=deliver,
        share=share,
        moderation=settings.moderation,
        limited=settings.limits.requests_per_minute is not None,
        hold=None if hold is None else (settings.state.flush_s, hold),
        resuming=resuming,
    )
    with engine, settled():
        yield engine


def resuming_of(settings: Settings, earlier: Mapping[Key, KeptStream] | None = None) -> Resuming | None:
    """The answers that a worker resumes; None if the API cannot do that. `earlier`: streams of killed workers."""
    able = bool(specification(settings.endpoint.api).resume)
    return Resuming(settings.endpoint.label, earlier) if able else None


def make_client(settings: Settings, credential: Credential | None, route: Route | None = None) -> EndpointClient:
    """The client of a worker; call it on the engine's event loop."""
    return EndpointClient(
        settings.endpoint,
        settings.timeouts,
        keep_raw=settings.capture.keep_raw,
        credential=credential,
        route=route,
    )


@contextmanager
def settled() -> Iterator[None]:
    """Keep garbage collection and other threads from delaying the event loop. Enter this after everything is loaded.

    Garbage collections become small and rare, and skip the objects that exist now. Threads switch ten times as often.
    At the end, the process gets its own settings back, because it may be the driver's.
    """
    threshold, interval, frozen = gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 20, 100)
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        # Spark's Python workers share the memory of the objects that their daemon froze.
        if not frozen:
            gc.unfreeze()
