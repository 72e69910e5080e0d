"""deltatap streams LLM completions from Spark into Delta.

``capture_udf`` is for notebooks; the job is ``jobs/capture.py``, or ``deltatap capture``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatap.config import Settings, load_settings
    from deltatap.udf import capture_udf

__all__ = ["Settings", "capture_udf", "load_settings"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    """Import on first use: the simulator needs neither pandas nor Spark, and workers start often."""
    from importlib import import_module  # noqa: PLC0415

    modules = {"Settings": "config", "load_settings": "config", "capture_udf": "udf"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
