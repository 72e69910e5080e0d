"""deltatap streams LLM completions from Spark into Delta.

``capture_udf`` is for notebooks; the job is ``jobs/capture.py``, or ``deltatap capture``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatap.config import Settings, load_settings
    from deltatap.errors import ConfigError, DeltatapError
    from deltatap.udf import capture_udf

__all__ = ["ConfigError", "DeltatapError", "Settings", "capture_udf", "load_settings"]

_MODULES = {
    "ConfigError": "errors",
    "DeltatapError": "errors",
    "Settings": "config",
    "capture_udf": "udf",
    "load_settings": "config",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    """Import on first use: the simulator needs neither pandas nor Spark, and workers start often."""
    from importlib import import_module  # noqa: PLC0415

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
