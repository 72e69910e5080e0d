from __future__ import annotations

import pytest

from deltatap.worker import retry


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries start at once, so that tests wait only for events."""
    monkeypatch.setattr(retry, "_BACKOFF_S", 0.001)
