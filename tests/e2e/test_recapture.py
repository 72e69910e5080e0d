"""A mixed capture is replayed through every API, and captured again from the replay: the rows are equal."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.api.registry import NAMES, specification
from tests.recaptured import captured_rows, mixed, replaying, write_table
from tests.simulation import start_simulator
from tests.unit.api.test_captured import answer, known, outputs, reasons

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MODES = ("stream", "complete")
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Rows]]:
    """The URL of a replay, and the rows by request_id."""
    folder = tmp_path_factory.mktemp("replay")
    rows: list[dict[str, Any]] = []
    with start_simulator("--ttft-ms", "30", "--itl-ms", "5", "--tokens", "12") as simulator:
        for api in NAMES:
            asked = [{**row, "request_id": f"{row['request_id']}-{mode}"} for row in mixed(api) for mode in MODES]
            modes = [mode for _ in mixed(api) for mode in MODES]
            rows += captured_rows(folder / api, simulator.base_url, api, asked, modes)
    with replaying(write_table(folder, rows)) as url:
        yield url, {row["request_id"]: row for row in rows}


def can_say(url: str, asked: str, row: dict[str, Any]) -> bool:
    """Whether an API can express a row. The server says why not."""
    path = f"{url}{specification(asked).path}?request_id={row['request_id']}&speed=0&cut=0"
    request = urllib.request.Request(path, b'{"stream": true}')  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - loopback
            return bool(response.status)
    except urllib.error.HTTPError as error:
        return error.code != 422 or "cannot express this answer: it has" not in json.load(error)["error"]["message"]
    except OSError:
        return True


@pytest.mark.parametrize("asked", NAMES)
def test_each_row_is_captured_again_as_an_equal_row(
    asked: str, replayed: tuple[str, Rows], tmp_path: Path, record_property: Any
) -> None:
    url, rows = replayed
    said = {id_: row for id_, row in rows.items() if can_say(url, asked, row)}
    assert {id_ for id_, row in rows.items() if row["api"] == asked} <= set(said)
    again = [
        {"request_id": id_, "prompt": "Again.", "model": "gpt-4o-mini",
         "params": json.dumps({"metadata": {"deltatap_request_id": id_}, **({"n": 2} if "n2" in id_ else {})})}
        for id_ in said
    ]  # fmt: skip
    found = captured_rows(tmp_path, url, asked, again, [row["mode"] for row in said.values()])
    assert len(found) == len(said) > 20
    late_ms: list[float] = []
    for row in found:
        before = said[row["request_id"]]
        same = (row["status"], answer(row, reasons(row, asked)), texts(row))
        assert same == (before["status"], answer(before, reasons(before, before["api"])), texts(before)), row[
            "request_id"
        ]
        late = [now - then for now, then in zip(times(row), times(before), strict=True)]
        late_ms += late
        check_error(row, before)
        if before["usage_reported"] and (before["status"] == "completed" or row["usage_reported"]):
            assert known(row) == known(before), row["request_id"]
    # Several rows are captured at once, so this process is busy, and its clocks of single calls start late.
    assert -5 < median(late_ms) < 20
    record_property("late_ms_p50", median(late_ms))


def texts(row: dict[str, Any]) -> list[Any]:
    """The text of each chunk. An API can need several events for a piece of a call, so its pieces are joined."""
    return [
        (choice, kind, each)
        for (choice, kind), its in groupby(
            sorted(outputs(row, joined=False), key=lambda each: each[:2]), lambda each: each[:2]
        )
        for each in (["".join(text for *_, text in its)] if kind == "tool_calls" else [text for *_, text in its])
    ]


def times(row: dict[str, Any]) -> list[float]:
    return [ms for _, kind, ms, _ in outputs(row, joined=False) if kind != "tool_calls"]


def check_error(row: dict[str, Any], before: dict[str, Any]) -> None:
    if before["error"] is None:
        assert row["error"] is None
        return
    names = ["type", "http_status", "retry_after_s"]
    if before["error"]["type"] not in ("protocol", "connection", "stream_interrupted"):
        names += ["message", *(["code"] if before["error"]["code"] else [])]
    assert [row["error"][name] for name in names] == [before["error"][name] for name in names], row["request_id"]
