"""Killed processes and cut connections with ``capture.resume``: if an id had arrived, its request is not sent twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import yaml

from deltatap.delta.tables import quoted
from deltatap.state import RunState
from tests import prompts
from tests.jobs import FLUSH_S, finished, kill, running, start, streaming_workers, wait_until
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyspark.sql import SparkSession


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = 200


def known(folder: Path) -> set[str]:
    """The ids of responses that are on disk."""
    states = [RunState(path) for path in (folder / "state").iterdir() if path.is_dir()]
    return {stream.response_id for state in states for stream in state.kept_streams().values() if stream.response_id}


def test_no_request_is_sent_twice_whose_id_had_arrived(
    spark: SparkSession, tables: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    prompts.write(spark, tables / "prompts", [(f"r{n:04d}", f"Prompt {n}?") for n in range(PROMPTS)])
    log, config = tmp_path / "log", tmp_path / "config.yml"
    with start_simulator("--ttft-ms", "150", "--itl-ms", "15", "--tokens", "60") as simulator:
        places = {f"cut@{place}": 0.06 for place in (1, 2, 4, 7, 11, 17, 26, 40)}
        simulator.change(faults={**places, "cut_first": 0.02}, in_a_row=3)
        tree = prompts.config(
            tables, simulator.base_url, state={"flush_s": FLUSH_S, "files_per_s": 100}, spark={"master": "local-cluster[2,1,1024]"},
            capture={"concurrency": 12, "resume": True}, endpoint={"api": "responses"},
        )  # fmt: skip
        config.write_text(yaml.safe_dump(tree))

        ids: set[str] = set()
        first = start(config, log)
        wait_until(finished(simulator, 0.3 * PROMPTS), first, log)
        kill([first, *first.children(recursive=True)])  # driver, JVM, executors and Python workers
        ids |= known(tables)

        second = start(config, log)
        wait_until(finished(simulator, 0.5 * PROMPTS), second, log)
        kill(streaming_workers(second, simulator)[:1])
        ids |= known(tables)
        wait_until(finished(simulator, 0.7 * PROMPTS), second, log)
        victims = streaming_workers(second, simulator)
        executors = running(second, "CoarseGrainedExecutorBackend")
        kill([next(each for each in executors if victims[0] in each.children(recursive=True))])
        ids |= known(tables)
        assert second.wait(timeout=600) == 0, log.read_text()
        calls = simulator.calls()

    rows = spark.table(quoted(str(tables / "captures"))).collect()
    assert Counter(row["status"] for row in rows) == {"completed": PROMPTS}, log.read_text()
    assert len({row["request_id"] for row in rows}) == PROMPTS
    posts: dict[str, list[dict[str, object]]] = {}
    for call in calls:
        if call["method"] == "POST":
            posts.setdefault(call["key"], []).append(call)
    again = [call for each in posts.values() for call in each[:-1]]
    unseen = Counter("cut" if call["response_id"] is None else "killed" for call in again)
    record_property("sent again", dict(unseen))
    assert len(ids) > 3, "the kills found open streams"
    assert not [call for call in again if call["response_id"] in ids]
    assert unseen["killed"] <= 6, "few requests are killed between their first event and the next write"
    marks = Counter(mark["outcome"] for row in rows for mark in row["resumed"] or ())
    record_property("marks", dict(marks))
    assert marks["stream"] > PROMPTS / 4
    assert "expired" not in marks
    generated = {call["response_id"]: call["texts"].get("0", "") for call in calls if call["method"] == "POST"}
    assert all(row["text"] == generated[row["response_id"]] for row in rows)
    for row in rows:
        events = [chunk["event"] for chunk in row["chunks"]]
        assert events == sorted(events)
        lost = any(mark["times_lost"] for mark in row["resumed"] or ())
        assert lost == (row["ttft_ms"] is None)
        assert lost == any(chunk["ms"] is None for chunk in row["chunks"])
    assert not list((tables / "state").iterdir()), "a finished run leaves no state"
