"""Preflight: what a run checks first, without Spark and without a paid call. All problems are reported at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltatap.driver.needs import price_need, prices_of, process_needs, require

if TYPE_CHECKING:
    from deltatap.config import Settings
    from deltatap.prices import Prices


def preflight(settings: Settings) -> Prices:
    """Check everything that can be checked without Spark and without a paid call.

    Returns:
        The prices.

    Raises:
        ConfigError: with all problems.
    """
    require([*process_needs(settings), price_need(settings)])
    return prices_of(settings)
