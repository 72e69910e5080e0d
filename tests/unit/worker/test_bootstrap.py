from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from deltatap.settings_loading import load_settings
from deltatap.worker.bootstrap import settled, streams_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def _restored() -> Iterator[None]:
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.freeze()  # as tests/conftest.py does


@pytest.mark.usefixtures("_restored")
def test_a_settled_process_lets_the_event_loop_run_and_gets_its_own_settings_back() -> None:
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)
    with settled():
        assert sys.getswitchinterval() == pytest.approx(0.0005)
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold()[0] == 1000
    assert sys.getswitchinterval() == pytest.approx(0.005)
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.usefixtures("_restored")
def test_objects_that_were_frozen_before_stay_frozen() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with settled():
        pass
    assert gc.get_freeze_count() >= before


@pytest.mark.parametrize(("per_worker", "in_all", "streams"), [(10, 64, 10), (500, 64, 64)])
def test_a_worker_holds_no_more_streams_open_than_the_run_may(per_worker: int, in_all: int, streams: int) -> None:
    settings = load_settings(
        {"endpoint": {"api_key": None}, "capture": {"streams_per_worker": per_worker, "concurrency": in_all}}
    )
    assert streams_of(settings) == streams
