from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from deltatap.config import load_settings
from deltatap.worker.bootstrap import settle, streams_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def _restored() -> Iterator[None]:
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("_restored")
def test_a_settled_process_lets_the_event_loop_run() -> None:
    gc.unfreeze()
    settle()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] == 1000


@pytest.mark.parametrize(("per_worker", "in_all", "streams"), [(10, 64, 10), (500, 64, 64)])
def test_a_worker_holds_no_more_streams_open_than_the_run_may(per_worker: int, in_all: int, streams: int) -> None:
    settings = load_settings(
        {"endpoint": {"api_key": None}, "capture": {"streams_per_worker": per_worker, "concurrency": in_all}}
    )
    assert streams_of(settings) == streams
