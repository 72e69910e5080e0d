"""Options of a request: where they are read from, and wrong ones."""

from __future__ import annotations

import pytest

from deltatap.replay.options import BadOptionError, Options, Place, options_of, without_selection


def test_options_come_from_the_query_the_headers_and_the_metadata() -> None:
    body = {"metadata": {"deltatap_request_id": "a", "deltatap_run_id": "b", "own": "c"}, "model": "m"}
    headers = [("x-deltatap-run-id", "h"), ("x-deltatap-from-ms", "1.5"), ("accept", "x")]
    query = [("run_id", "q"), ("cut", "12"), ("stall", "500ms"), ("drop_usage", ""), ("api-version", "1")]
    assert options_of(query, headers, body) == Options(
        run_id="q", request_id="a", from_ms=1.5, cut=Place(12, None), stall=Place(None, 500.0), drop_usage=True
    )
    assert without_selection(body) == {"model": "m", "metadata": {"own": "c"}}
    assert without_selection({"metadata": {"deltatap_run_id": "b"}, "model": "m"}) == {"model": "m"}
    assert (
        options_of([], [], {"metadata": None}) == options_of([], [], {"metadata": {"deltatap_run_id": 1}}) == Options()
    )


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (("ctu", "8"), "no option ctu; the options are run_id, "),
        (("cut", "8s"), "cut: expected a number of chunks"),
        (("cut", "-1"), "cut: expected a number of chunks"),
        (("speed", "nan"), "speed: expected a number"),
        (("speed", "1e99"), "speed: expected a number"),
        (("loop", "0"), "loop: expected a whole number from 1"),
        (("loop", "1.5"), "loop: expected a whole number from 1"),
        (("merge", "x"), "merge: expected a number"),
        (("drop_usage", "maybe"), "drop_usage: expected true or false"),
        (("request_id", ""), "request_id: expected an id"),
    ],
)
def test_a_wrong_option_is_named(query: tuple[str, str], named: str) -> None:
    with pytest.raises(BadOptionError, match=named):
        options_of([query], [], {})
