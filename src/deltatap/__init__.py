"""deltatap streams LLM completions from Spark into Delta.

The names in ``__all__`` are the public Python interface. Everything else may change without notice. To run a capture as
a job, use ``jobs/capture.py`` or ``deltatap capture``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatap.config import Settings
    from deltatap.driver.load_spark import load_prompts
    from deltatap.errors import ConfigError, DeltatapError
    from deltatap.settings_loading import load_settings
    from deltatap.spark.session import local_session
    from deltatap.udf import capture_udf

    __version__: str

__all__ = [
    "ConfigError",
    "DeltatapError",
    "Settings",
    "__version__",
    "capture_udf",
    "load_prompts",
    "load_settings",
    "local_session",
]

# Where each public name is defined: module, name.
_DEFINED = {
    "ConfigError": ("deltatap.errors", "ConfigError"),
    "DeltatapError": ("deltatap.errors", "DeltatapError"),
    "Settings": ("deltatap.config", "Settings"),
    "capture_udf": ("deltatap.udf", "capture_udf"),
    "load_prompts": ("deltatap.driver.load_spark", "load_prompts"),
    "load_settings": ("deltatap.settings_loading", "load_settings"),
    "local_session": ("deltatap.spark.session", "local_session"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name
    """Import a public name on first use: workers and the command line start often, and pandas and Spark load slowly."""
    from importlib import import_module, metadata  # noqa: PLC0415

    if name == "__version__":
        return metadata.version("deltatap")
    if name not in _DEFINED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _DEFINED[name]
    return getattr(import_module(module), attribute)
