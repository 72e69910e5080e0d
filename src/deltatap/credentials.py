"""The key, read where it is used: in the process that makes the calls.

The one place where an environment variable counts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from deltatap.config import Endpoint


def api_key(endpoint: Endpoint) -> str | None:
    """The key, from the environment variable that the configuration names; None when it names none.

    Raises:
        ConfigError: when the variable is not set or empty.
    """
    if endpoint.api_key is None:
        return None
    name = endpoint.api_key.env
    key = os.environ.get(name, "").strip()
    if not key:
        unset = f"the environment variable {name} is not set"
        how = "set it, or use --set endpoint.api_key= where the endpoint needs no key"
        raise ConfigError([f"endpoint.api_key.env: {unset}; {how}"])
    return key
