"""The simulator's limits per minute: what each call is told, and which calls count."""

from __future__ import annotations

from functools import partial

from deltatap.simulator.record import Record
from deltatap.simulator.refusals import limit_headers

LIMITED = partial(limit_headers, requests_per_minute=None, tokens_per_minute=100)


def test_a_refused_call_does_not_count() -> None:
    record = Record(keep=1)
    assert LIMITED(record, 0.0, 60) == {
        "x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "40", "x-ratelimit-reset-tokens": "0.000s",
    }  # fmt: skip
    refused = LIMITED(record, 15.0, 60)
    assert (refused["retry-after"], refused["x-ratelimit-remaining-tokens"]) == ("45.000", "0")
    assert "retry-after" not in LIMITED(record, 16.0, 40)


def test_a_call_above_the_whole_limit_is_answered_alone() -> None:
    """Otherwise no wait would be long enough."""
    record = Record(keep=1)
    assert "retry-after" not in LIMITED(record, 0.0, 101)
    assert LIMITED(record, 59.99, 1)["retry-after"] == "0.050"
    assert "retry-after" not in LIMITED(record, 60.0, 101)


def test_without_limits_no_header_is_sent() -> None:
    assert limit_headers(Record(keep=1), 0.0, 60, requests_per_minute=None, tokens_per_minute=None) == {}
