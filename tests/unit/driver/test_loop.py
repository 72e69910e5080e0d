from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltatap.driver.loop import _shares
from deltatap.messages import Heartbeat


def beats(count: int, *, ended: int = 0) -> list[Heartbeat]:
    return [Heartbeat(1, f"{at:05d}-000001-x", 1, ended=at < ended) for at in range(count)]


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 5000), st.integers(1, 5000))
def test_shares_never_exceed_the_run_s_streams_nor_a_worker_s(
    workers: int, ended: int, streams: int, most: int
) -> None:
    shares = _shares(beats(workers, ended=ended), streams, most)
    assert len(shares) == max(0, workers - ended)
    assert sum(shares.values()) <= streams
    assert max(shares.values(), default=0) <= most
    if shares and streams // len(shares) < most:
        assert sum(shares.values()) == streams, "nothing is left over"
