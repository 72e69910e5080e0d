"""The list of APIs. No other module knows which APIs exist.

A module is imported when its API is first used, so checking a name imports nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltatap.api.base import Api

NAMES = (
    "chat",
    "completions",
    "responses",
    "messages",
)


@cache
def specification(name: str) -> Api:
    """The API with this name: the object `API` of the module with the same name.

    Raises:
        KeyError: if there is no such API.
    """
    if name not in NAMES:
        raise KeyError(name)
    api: Api = import_module(f"deltatap.api.{name}").API
    return api


def specifications() -> list[Api]:
    """All APIs."""
    return [specification(name) for name in NAMES]
