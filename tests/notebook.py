"""A fake ``dbutils`` in the runtime module where the Databricks SDK looks for it, on the driver only."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


def with_secrets(monkeypatch: pytest.MonkeyPatch, secrets: Mapping[str, str]) -> None:
    """Make ``dbutils.secrets.get`` return these secrets, by ``scope/key``."""

    def get(scope: str, key: str) -> str:
        if f"{scope}/{key}" not in secrets:
            raise RuntimeError(f"Secret does not exist with scope: {scope} and key: {key}\n\tat com.databricks…")
        return secrets[f"{scope}/{key}"]

    globals_of_a_notebook = {"dbutils": SimpleNamespace(secrets=SimpleNamespace(get=get))}
    namespace = SimpleNamespace(get_namespace_globals=lambda: globals_of_a_notebook)
    runtime = ModuleType("dbruntime")
    vars(runtime)["UserNamespaceInitializer"] = SimpleNamespace(getOrCreate=lambda: namespace)
    monkeypatch.setitem(sys.modules, "dbruntime", runtime)
    # The SDK looks once, at import. Force an import during the test, and drop the module after it.
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", runtime)
    del sys.modules["databricks.sdk.runtime"]
