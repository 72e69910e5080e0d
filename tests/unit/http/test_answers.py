"""Every case of tests/answers through a whole worker: socket, client, engine, journal and the Parquet file.

Each table of cases runs at once, on one event loop: the answers that break others must not break these. Then each
case's row is compared with what the case says. Cases that stop a run run alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from deltatap.delta.final import final_sql
from deltatap.http.credentials import credential_of
from deltatap.model import ERRORS
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.settings_loading import load_settings
from deltatap.worker import retry
from deltatap.worker.bootstrap import context_of, running_engine
from deltatap.worker.jobs import job_of
from deltatap.worker.journal import JournalWriter
from deltatap.worker.rows import JOURNAL_SCHEMA
from tests.answers import CASES
from tests.answers.case import ANY, CAPTURE, KEY, TIMEOUTS, answer_of
from tests.raw_server import raw_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.answers.case import Case
    from tests.raw_server import Answer, Asked, Cut

BY_NAME = {case.name: case for case in CASES}
CUTS: tuple[Cut, ...] = ("whole", "bytes", "random")
SEED = 15
# More streams at once take longer than the idle timeout to be sent byte by byte.
SHARE = 64


@dataclass(frozen=True)
class Result:
    """A case's rows, the calls that the server counted, and the error that stopped the engine."""

    rows: list[dict[str, Any]]
    calls: int
    fatal: str | None


@pytest.fixture(scope="module", autouse=True)
def _short_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "_BACKOFF_S", 0.001)
        patch.setenv("ANSWERS_KEY", KEY)
        yield


def capture(cases: Iterable[Case], folder: Path, cut: Cut) -> dict[str, Result]:
    """Capture all cases in one worker for each API; the server chooses the answer by the prompt."""
    results: dict[str, Result] = {}
    by_api: dict[str, list[Case]] = {}
    for case in cases:
        by_api.setdefault(case.api, []).append(case)

    def choose(asked: Asked) -> Answer:
        return answer_of(BY_NAME[asked.prompt], asked.before).cut(cut, SEED)

    for api, some in by_api.items():
        with raw_server(choose) as server:
            settings = load_settings(
                {
                    "endpoint": {"base_url": server.base_url, "api": api, "api_key": {"env": "ANSWERS_KEY"}},
                    # The bytes of the events must not hold the key, either.
                    "capture": {**CAPTURE, "keep_raw": cut == "random"},
                    "timeouts": TIMEOUTS,
                }
            )
            journal_folder = folder / f"{api}-{some[0].name[:8].encode().hex()}-{cut}"
            journal_folder.mkdir(parents=True)
            fatal = _run(some, settings, journal_folder)
            rows = [row for path in journal_folder.iterdir() for row in _rows(path)]
        for case in some:
            mine = [row for row in rows if row["request_id"] == case.name]
            results[case.name] = Result(mine, server.calls(case.name), fatal)
    return results


def _run(cases: list[Case], settings: Any, folder: Path) -> str | None:
    context = context_of(settings, Prices(), "run-1", 0)
    journal = JournalWriter(folder, "x", context, plan=1, part=0, flush_s=0.1)
    with (
        journal,
        running_engine(
            settings, credential_of(settings.endpoint), journal.put, look_ahead=len(cases) + 1, share=SHARE
        ) as engine,
    ):
        for at, case in enumerate(cases):
            # A model of its own: what one model's server refuses says nothing about the others.
            row = {"request_id": case.name, "prompt": case.name, "model": f"model-{at}"}
            request = build_request(row, api=case.api, model=None, defaults={}, keep=())
            # If an answer has stopped the engine, the job's row is delivered all the same.
            engine.submit(job_of(request, at, [], settings, case.mode))  # type: ignore[arg-type]
        engine.join()
        return None if engine.fatal is None else engine.fatal.type


def _rows(path: Path) -> list[dict[str, Any]]:
    table = pq.read_table(path, partitioning=None)
    assert table.schema.equals(JOURNAL_SCHEMA)
    table.validate(full=True)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[Cut, dict[str, Result]]:
    """The results of the cases that affect no others, by cut. The test processes of a run share them."""
    together = [case for case in CASES if not case.alone]
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    shared = folder / "answers.pickle"
    with (folder / "answers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: the first process captures, and the others wait
        if not shared.exists():
            results = {cut: capture(together, tmp_path_factory.mktemp("answers"), cut) for cut in CUTS}
            shared.write_bytes(pickle.dumps(results))
        found: dict[Cut, dict[str, Result]] = pickle.loads(shared.read_bytes())  # noqa: S301 - written by this run
    return found


def is_final(row: dict[str, Any]) -> bool:
    """What the definition of a final row, which is SQL, says about a row."""
    with sqlite3.connect(":memory:") as db:
        db.execute("ATTACH ':memory:' AS c")
        db.execute("CREATE TABLE captures (status)")
        db.execute("CREATE TABLE c.error (type, code)")
        error = row["error"] or {"type": None, "code": None}
        db.execute("INSERT INTO captures VALUES (?)", (row["status"],))
        db.execute("INSERT INTO c.error VALUES (?, ?)", (error["type"], error["code"]))
        condition = final_sql("c", keep_interrupted=False).replace("c.status", "status")
        ((final,),) = db.execute(f"SELECT coalesce({condition}, 0) FROM captures, c.error").fetchall()
    db.close()
    return bool(final)


def check(case: Case, result: Result) -> None:
    """Compare a case's row with what the case says."""
    assert len(result.rows) == 1, "exactly one row"
    (row,) = result.rows
    check_outcome(case, row, result.calls)
    check_content(case, row)
    check_columns(case, row)
    shown = json.dumps(row, default=lambda value: value.decode("latin1") if isinstance(value, bytes) else str(value))
    assert KEY not in shown


def check_outcome(case: Case, row: dict[str, Any], calls: int) -> None:
    error = row["error"] or {"type": None, "message": "", "code": None}
    told = f"{row['status']} {row['text']!r:.80} {error} {calls} calls"
    assert case.status in {None, row["status"]}, told
    assert case.error in {ANY, error["type"]}, told
    assert case.says in error["message"], told
    assert len(error["message"]) < 1_000, "bounded"
    assert case.calls in {None, calls}, told
    retried = [(call["error_type"], call["http_status"], call["e2e_ms"]) for call in row["retries"]]
    assert calls == 1 + len(retried), f"each call is in the row: {retried} {told}"
    assert case.owed in {None, not is_final(row)}, told


def check_content(case: Case, row: dict[str, Any]) -> None:
    # No text and an empty text say the same of a call without output.
    assert case.text == ANY or (row["text"] or None) == (case.text or None), f"{row['text']!r:.80}"
    assert case.tools is None or like(tools_of(row), case.tools), tools_of(row)
    if row["chunks"]:
        content = [chunk["text"] for chunk in row["chunks"] if chunk["kind"] == "content" and chunk["choice"] == 0]
        assert not content or "".join(content) == row["text"], "the chunks join to the text"


def check_columns(case: Case, row: dict[str, Any]) -> None:
    for name, count in case.usage.items():
        assert (row["usage_reported"] or {}).get(name) == count, row["usage_reported"]
    for name, value in case.columns.items():
        found = row[name]
        if name == "retries":
            found = [(retried["error_type"], retried["http_status"]) for retried in found]
        elif isinstance(value, dict):
            found = {key: found[key] for key in value}
        assert found == value


def tools_of(row: dict[str, Any]) -> list[tuple[str | None, str, str]]:
    """The tool calls of the first choice."""
    calls = json.loads(row["choices"][0]["tool_calls"] or "[]")
    return [(call.get("id"), call["function"].get("name", ""), call["function"].get("arguments", "")) for call in calls]


def like(found: list[tuple[str | None, str, str]], expected: tuple[tuple[str | None, str, str], ...]) -> bool:
    """Whether the calls are the expected ones; arguments are compared as JSON."""
    return len(found) == len(expected) and all(
        wanted in {ANY, value} or _json(value) == _json(wanted) != wanted
        for tool, other in zip(found, expected, strict=True)
        for value, wanted in zip(tool, other, strict=True)
    )


def _json(text: str | None) -> object:
    try:
        return json.loads(text or "")
    except ValueError:
        return text


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", [case for case in CASES if not case.alone], ids=str)
def test_an_answer_becomes_the_right_row(captured: dict[Cut, dict[str, Result]], case: Case, cut: Cut) -> None:
    result = captured[cut][case.name]
    check(case, result)
    assert result.fatal is None


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", [case for case in CASES if case.alone], ids=str)
def test_an_answer_that_concerns_the_whole_run(tmp_path: Path, case: Case, cut: Cut) -> None:
    result = capture([case], tmp_path, cut)[case.name]
    check(case, result)
    stops = case.error is not None and ERRORS[case.error].stops_run
    assert (result.fatal is not None) is stops
