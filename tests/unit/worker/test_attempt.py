"""An attempt at a part, without Spark: what it captures and journals, and what a retried attempt skips."""

from __future__ import annotations

import errno
import json
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltatap.delta import columns
from deltatap.endpoint import Tls
from deltatap.messages import Control
from deltatap.plan_state import LANDED
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.state import RunState
from deltatap.worker import attempt, link
from deltatap.worker import journal as journaling
from deltatap.worker.arrivals import due_times
from deltatap.worker.attempt import CaptureTask, capture_part
from tests import prompts
from tests.networks import serving
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.simulation import Simulation

KEY = "sk-test-4711-do-not-tell"


def task(folder: Path, simulator: Simulation, rows: list[dict[str, Any]], **sections: Any) -> CaptureTask:
    """A plan of one part."""
    sections = {"state": {"flush_s": 0.02, "files_per_s": 1000}, **sections}
    settings = load_settings(prompts.config(folder, simulator.base_url, **sections))
    state = RunState(folder / "state" / "run-1")
    state.prepare()
    requests = [build_request(row, api="chat", model="gpt-4o-mini", defaults={}, keep=()) for row in rows]
    built = {name: [getattr(r, name) for r in requests] for name in columns.arrow_schema(columns.REQUESTS).names}
    state.plan(1).prepare()
    parts = state.plan(1).parts
    parts.mkdir()
    table = pa.table(
        {**built, "mode": ["stream"] * len(rows), "retries": [None] * len(rows)}, columns.arrow_schema(columns.OWED)
    )
    pq.write_table(table, parts / "part-00000-x.parquet")
    return CaptureTask(settings, Prices(), "run-1", state.folder, 1)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "POLL_S", 0.02)
    monkeypatch.setattr(journaling, "_RETRY_S", 0.02)
    monkeypatch.setattr(attempt, "_WAIT_S", 0.05)


@contextmanager
def driver(
    folder: Path, *, share: int = 8, epoch: int = 1, stop: str | None = None, begins_at: float | None = None
) -> Iterator[None]:
    """Publish shares as the driver does."""
    state, over = RunState(folder), threading.Event()

    def publish() -> None:
        beat = 0
        while not over.wait(0.01):
            beat += 1
            shares = {heartbeat.claim: share for heartbeat in state.heartbeats() if not heartbeat.ended}
            state.publish(Control(epoch, beat, shares, stop=stop, begins_at=begins_at))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def journal(task: CaptureTask) -> list[dict[str, Any]]:
    files = sorted(RunState(task.folder).journal.glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


def asked(count: int) -> list[dict[str, Any]]:
    return [{"request_id": f"r{n}", "prompt": f"p{n}"} for n in range(count)]


def test_every_row_of_a_part_is_journaled(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, [*asked(30), {"request_id": "bad", "prompt": " "}])
    with driver(work.folder):
        receipt = capture_part(work, 0)
    assert (receipt.known, receipt.requests) == (0, 30)
    rows = journal(work)
    assert sorted(row["row"] for row in rows) == list(range(31))
    assert [row["request_id"] for row in rows if row["status"] == "failed"] == ["bad"]
    sent = {call["key"]: call["texts"]["0"] for call in simulator.calls()}
    assert {row["request_hash"]: row["text"] for row in rows if row["status"] == "completed"} == sent
    (last,) = RunState(work.folder).heartbeats()
    assert last.ended
    assert dict(last.rows) == {"completed": 30, "failed": 1}


def test_texts_are_checked_and_flagged_streams_are_cut(tmp_path: Path, simulator: Simulation) -> None:
    """Half of the streams have a word that the simulator flags; they would go on for a long time after it."""
    simulator.change(pace={"tokens": 60, "itl_ms": 20, "itl_sigma": 0, "speed": 1, "ttft_ms": 1, "tokens_sigma": 0})
    rows = [*asked(4), *({"request_id": f"bad{n}", "prompt": f"b{n}", "model": "gpt-4o!planted@5"} for n in range(4))]
    work = task(tmp_path, simulator, rows, moderation={"every_chars": 20, "stop": True})
    with driver(work.folder):
        capture_part(work, 0)
    found = {row["request_id"]: row for row in journal(work)}
    for name, row in found.items():
        checks = json.loads(row["partial_moderation"])
        flagged = [check for check in checks if check["flagged"]]
        for check in checks:
            read = [chunk["text"] for chunk in row["chunks"][: check["chunk"] + 1] if chunk["kind"] == "content"]
            assert len("".join(read)) == check["chars"]
            assert check["ms"] == row["chunks"][check["chunk"]]["ms"]
            assert check["flagged"] == ("forbidden" in "".join(read))
        if not name.startswith("bad"):
            assert (row["status"], flagged, checks[-1]["chars"]) == ("completed", [], len(row["text"]))
            continue
        assert (row["status"], row["error"]["type"], row["error"]["code"]) == (
            "interrupted",
            "content_policy",
            "moderation",
        )
        assert len(flagged) == 1
        assert "forbidden" in row["text"]
        assert flagged[0]["chars"] <= flagged[0]["seen"] <= len(row["text"])
        assert row["usage_tiktoken"]["output_tokens"] < 40
    sent = [call for call in simulator.calls() if call["prompt"].startswith("b")]
    assert [call["ended"] for call in sent] == ["client_gone"] * 4, "no token is generated after the cut"


def test_a_retried_attempt_captures_only_lost_rows(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, asked(20))
    with driver(work.folder):
        capture_part(work, 0)
    state = RunState(work.folder)
    rows = journal(work)
    # Ten rows have landed and their files are deleted, five are in the journal, and the file of five is lost.
    for path in state.journal.glob("*.parquet"):
        path.unlink()
    state.plan(1).add_landed(np.array([(0, row["row"]) for row in rows[:10]], LANDED))
    kept = pa.Table.from_pylist(rows[10:15], columns.arrow_schema(columns.JOURNAL))
    pq.write_table(kept, state.journal / "kept.parquet")
    simulator.reset()
    with driver(work.folder):
        receipt = capture_part(work, 0)
    assert (receipt.known, receipt.requests) == (15, 5)
    assert {call["key"] for call in simulator.calls()} == {row["request_hash"] for row in rows[15:]}


def test_the_journal_is_read_before_the_landed_rows(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that leave the journal just before it is read have landed by the second read."""
    work = task(tmp_path, simulator, asked(6))
    with driver(work.folder):
        capture_part(work, 0)
    state, read_journal = RunState(work.folder), journaling.journaled_rows

    def after_landing(*arguments: Any, **options: Any) -> Any:
        state.plan(1).add_landed(np.array([(0, row) for row in range(6)], LANDED))
        for path in state.journal.glob("*.parquet"):
            path.unlink()
        return read_journal(*arguments, **options)

    monkeypatch.setattr(attempt, "journaled_rows", after_landing)
    with driver(work.folder):
        assert capture_part(work, 0).requests == 0


def test_only_an_attempt_after_a_dead_one_waits_for_its_files(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    work = task(tmp_path, simulator, asked(2))
    state = RunState(work.folder)
    monkeypatch.setattr(attempt, "_WAIT_S", 17.0)
    monkeypatch.setattr(
        "deltatap.worker.attempt.time.sleep", lambda seconds: waits.append(seconds) if seconds == 17.0 else None
    )
    with driver(work.folder):
        capture_part(work, 0)
        capture_part(work, 0)
        assert waits == [], "the first one has ended"
        capture_part(work, 0, retried=True)
        capture_part(replace(work, again=True), 0)
        assert waits == [17.0] * 2, "whatever a listing says"
        state.plan(1).claim(0)
        capture_part(work, 0)
        assert waits == [17.0] * 3


def test_a_file_that_is_half_there_is_waited_for_before_its_rows_are_sent_again(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task(tmp_path, simulator, asked(5))
    with driver(work.folder):
        capture_part(work, 0)
    files = list(RunState(work.folder).journal.glob("*.parquet"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content[: len(content) // 2])

    def appear() -> None:
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)

    monkeypatch.setattr(attempt, "_WAIT_S", 30.0)
    later = threading.Timer(0.5, appear)
    later.start()
    with driver(work.folder):
        assert capture_part(work, 0).requests == 0
    later.join()


def test_nothing_starts_without_a_share(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, asked(3), timeouts={"grace_s": 0})
    thread = threading.Thread(target=capture_part, args=(work, 0))
    with driver(work.folder, share=0):
        thread.start()
        state = RunState(work.folder)
        while not any(heartbeat.beat >= 3 for heartbeat in state.heartbeats()):
            time.sleep(0.01)
    assert simulator.counts()["calls"] == 0
    with driver(work.folder, stop="stopped"):
        thread.join(30)
    assert not thread.is_alive()
    assert journal(work) == [], "a request that was never sent is not a row"


def test_an_older_attempt_stops_when_a_newer_one_claims_the_part(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, [{"request_id": f"s{n}", "prompt": f"p{n}", "model": "m!stall@1"} for n in range(9)],
                timeouts={"grace_s": 0})  # fmt: skip
    thread = threading.Thread(target=capture_part, args=(work, 0))
    with driver(work.folder, share=2):
        thread.start()
        while simulator.counts()["calls"] < 2:
            time.sleep(0.01)
        newer = RunState(work.folder).plan(1).claim(0)
        thread.join(30)
    assert not thread.is_alive()
    assert simulator.counts()["calls"] == 2
    assert RunState(work.folder).plan(1).holds(newer)
    assert [row["status"] for row in journal(work)] == ["interrupted"] * 2, "received output is kept"


def test_a_worker_of_an_older_epoch_stops(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, asked(5), timeouts={"grace_s": 0})
    with driver(work.folder, epoch=2):
        receipt = capture_part(work, 0)
    assert receipt.requests == 0
    assert simulator.counts()["calls"] == 0


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMULATOR_KEY", KEY)
    with start_simulator("--speed", "0", "--tokens", "5", "--api-key-env", "SIMULATOR_KEY") as simulator:
        work = task(tmp_path, simulator, asked(3), endpoint={"api_key": {"env": "SIMULATOR_KEY"}})
        with driver(work.folder):
            capture_part(work, 0)
        assert {call["http_status"] for call in simulator.calls()} == {200}
    assert len(journal(work)) == 3
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holders == []
    output = capfd.readouterr()
    assert KEY not in output.out + output.err + repr(work) + repr(work.settings)


def test_identical_requests_are_called_once_even_if_their_worker_dies(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends after its first file of the journal, and another attempt continues."""
    same = [{"request_id": f"r{n}", "prompt": "p"} for n in range(9)]
    work = task(tmp_path, simulator, same, capture={"reuse": True})
    write, written = journaling.write_journal, list[Any]()

    def once(*arguments: Any) -> Any:
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments))
        return written[0]

    monkeypatch.setattr(journaling, "_FLUSH_ROWS", 2)
    with driver(work.folder):
        monkeypatch.setattr(journaling, "write_journal", once)
        with suppress(KeyboardInterrupt):
            capture_part(work, 0)
        monkeypatch.setattr(journaling, "write_journal", write)
        capture_part(work, 0, retried=True)
    assert simulator.counts()["calls"] == 1
    assert sorted(row["row"] for row in journal(work)) == list(range(9))


def test_a_temporarily_full_disk_loses_no_capture(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task(tmp_path, simulator, asked(30))
    write = journaling.write_journal
    refused: list[Any] = []

    def full(*arguments: Any) -> Path:
        if len(refused) < 2:
            refused.append(arguments)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(journaling, "write_journal", full)
    with driver(work.folder):
        receipt = capture_part(work, 0)
    assert len(refused) == 2
    assert receipt.requests == simulator.counts()["calls"] == 30, "no request is repeated"
    assert sorted(row["row"] for row in journal(work)) == list(range(30))


def test_a_disk_that_stays_full_stops_the_worker(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task(tmp_path, simulator, asked(400), capture={"concurrency": 2}, timeouts={"grace_s": 0})

    def full(*_: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journaling, "write_journal", full)
    monkeypatch.setattr(journaling, "_GIVE_UP_S", 0.0)
    with driver(work.folder, share=1), pytest.raises(OSError, match="No space left on device"):
        capture_part(work, 0)
    assert simulator.counts()["calls"] < 400, "captures that cannot be kept are not paid for"


def test_captures_continue_during_a_slow_flush(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write takes as long as thirty answers, as on a slow file system."""
    work = task(tmp_path, simulator, asked(60), state={"flush_s": 0.05})
    write = journaling.write_journal
    meanwhile: list[int] = []

    def slow(*arguments: Any) -> Path:
        if not meanwhile:
            before = simulator.counts()["finished"]
            while simulator.counts()["finished"] < min(60, before + 30):
                time.sleep(0.02)
            meanwhile.append(simulator.counts()["finished"] - before)
        return write(*arguments)

    monkeypatch.setattr(journaling, "write_journal", slow)
    with driver(work.folder, share=2):
        capture_part(work, 0)
    assert meanwhile
    assert sorted(row["row"] for row in journal(work)) == list(range(60))


def test_one_file_holds_a_bounded_number_of_chunks(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaling, "_FLUSH_CHUNKS", 1)
    work = task(tmp_path, simulator, asked(5), state={"flush_s": 60})
    with driver(work.folder):
        capture_part(work, 0)
    files = list((work.folder / "journal").glob("*.parquet"))
    assert len(files) == 5, "also in a long flush interval"
    assert sorted(row["row"] for row in journal(work)) == list(range(5))


@pytest.mark.parametrize("step_s", [-7200.0, 7200.0])
def test_a_step_of_the_wall_clock_changes_no_duration(
    tmp_path: Path, simulator: Simulation, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """The wall clock jumps during a cool-down after a 429. No wait gets longer, and every duration is right."""
    rows = [{"request_id": "limited", "prompt": "p", "model": "m!429=0.3:1"}, *asked(20)]
    work = task(tmp_path, simulator, rows)
    wall, real = time.time, time.time
    monkeypatch.setattr(time, "time", lambda: real() + (step_s if simulator.counts()["calls"] > 3 else 0.0))
    with driver(work.folder, share=2):
        capture_part(work, 0)
    monkeypatch.setattr(time, "time", wall)
    found = journal(work)
    assert len(found) == 21
    for row in found:
        assert row["status"] == "completed"
        assert 0 <= row["headers_ms"] <= row["e2e_ms"] < 60_000
        assert row["finished_at"] >= row["started_at"]
        assert row["queued_ms"] < 60_000


def test_a_worker_sends_the_headers_with_the_id_of_the_run(tmp_path: Path, simulator: Simulation) -> None:
    with serving() as server:
        work = task(tmp_path, simulator, asked(1))
        update = {"base_url": f"http://127.0.0.1:{server.port}/v1", "headers": {"X-Run": "run {run_id}"}}
        settings = work.settings.model_copy(update={"endpoint": work.settings.endpoint.model_copy(update=update)})
        work = replace(work, settings=settings)
        with driver(work.folder):
            capture_part(work, 0)
        (head,) = server.heads
        assert b"x-run: run run-1\r\n" in head.lower()
        assert [row["status"] for row in journal(work)] == ["completed"]


def test_a_worker_without_the_certificates_of_the_driver_says_so(tmp_path: Path, simulator: Simulation) -> None:
    work = task(tmp_path, simulator, asked(1))
    update = {"base_url": "https://127.0.0.1:9/v1", "tls": Tls(ca_file="/nowhere.pem")}
    settings = work.settings.model_copy(update={"endpoint": work.settings.endpoint.model_copy(update=update)})
    assert capture_part(replace(work, settings=settings), 0).requests == 0
    (last,) = RunState(work.folder).heartbeats()
    expected = "endpoint.tls.ca_file: /nowhere.pem: cannot be read: No such file or directory (in the Spark worker, "
    assert str(last.fatal).startswith(expected)


def test_the_workers_of_several_parts_follow_one_schedule(tmp_path: Path, simulator: Simulation) -> None:
    schedule = {"per_second": 40, "seed": 1}
    work = task(tmp_path, simulator, asked(30), capture={"arrivals": schedule, "concurrency": 32})
    parts = RunState(work.folder).plan(1).parts
    (whole,) = parts.glob("*.parquet")
    rows = pq.read_table(whole)
    for number, part in enumerate((rows.slice(0, 20), rows.slice(20))):
        pq.write_table(part, parts / f"part-{number:05d}-x.parquet")
    work = replace(work, calls=(20, 10))
    begins_at = time.time() + 1.0  # both are ready by then
    with driver(work.folder, begins_at=begins_at):
        threads = [threading.Thread(target=capture_part, args=(work, part)) for part in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    arrivals = work.settings.capture.arrivals
    assert arrivals is not None
    due = np.sort(np.concatenate([due_times(arrivals, (20, 10), part) for part in range(2)]))
    rows_by_start = sorted(journal(work), key=lambda row: row["started_at"])
    late = np.array([row["scheduled_ms"] for row in rows_by_start])
    starts = np.array([row["started_at"].timestamp() for row in rows_by_start]) - begins_at
    assert len(starts) == 30
    assert (late >= 0).all()
    # Each call started when its row says: at a time of the one schedule, plus the delay in the row.
    scheduled = np.sort(starts - late / 1e3)
    assert np.abs(scheduled - due).max() < 0.02
