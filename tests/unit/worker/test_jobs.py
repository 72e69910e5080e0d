from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltatap import prompts
from deltatap.api.registry import specification
from deltatap.delta import columns
from deltatap.model import Wire
from deltatap.prices import Prices
from deltatap.prompts import build_request
from deltatap.rates import Price
from deltatap.settings_loading import load_settings
from deltatap.worker import jobs
from deltatap.worker.jobs import jobs_of_part

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PRICE = Price(model="gpt-4o-mini", input=1, cached_input=0.5, output=10, date=date(2026, 1, 1), source="here")


def part(folder: Path, *rows: tuple[str, str], params: str | None = None) -> Path:
    """A part of these request ids and modes; a prompt that is blank makes a bad row."""
    schema = columns.arrow_schema(columns.OWED)
    planned = []
    for request_id, mode in rows:
        row = {
            "request_id": request_id,
            "prompt": " " if request_id.startswith("bad") else "Hi",
            "params": params,
            "x": "kept",
        }
        request = build_request(row, api="chat", model="gpt-4o-mini", defaults={}, keep=("x",))
        fields = {name: getattr(request, name) for name in columns.arrow_schema(columns.REQUESTS).names}
        planned.append({**fields, "mode": mode, "retries": None})
    path = folder / "part.parquet"
    pq.write_table(pa.Table.from_pylist(planned, schema), path)
    return path


def settings(**sections: Any) -> Any:
    return load_settings({"endpoint": {"api_key": None}, **sections})


def test_the_id_of_the_run_is_sent_in_the_body_and_enters_no_hash(tmp_path: Path) -> None:
    path = part(tmp_path, ("a", "stream"))
    (plain,) = jobs_of_part(path, set(), settings(), Prices())
    for kind, name in (("openai", "metadata"), ("databricks", "usage_context")):
        tagged = settings(
            endpoint={"api_key": None, "kind": kind, "metadata": {"job": "nightly", "run": "{run_id}"}}
        ).of_run("run/é 1")
        (job,) = jobs_of_part(path, set(), tagged, Prices())
        assert plain.wire is not None
        assert job.wire is not None
        assert json.loads(job.wire.body) == json.loads(plain.wire.body) | {name: {"job": "nightly", "run": "run/é 1"}}
        assert job.request == plain.request


def test_known_rows_are_skipped_and_modes_of_a_request_are_chained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BATCH_ROWS", 3)  # pairs also span batches
    path = part(tmp_path, ("a", "stream"), ("a", "complete"), ("b", "complete"), ("b", "stream"), ("c", "stream"), ("c", "complete"), ("d", "stream"))  # fmt: skip
    found = [
        (job.row, job.mode, job.then and (job.then.row, job.then.mode))
        for job in jobs_of_part(path, {4}, settings(), Prices())
    ]
    assert found == [
        (0, "stream", (1, "complete")),
        (2, "complete", (3, "stream")),
        (5, "complete", None),
        (6, "stream", None),
    ]


def test_identical_requests_share_a_job_if_answers_are_reused(tmp_path: Path) -> None:
    rows = [("a", "stream"), ("a", "complete"), ("b", "complete"), ("b", "stream"), ("c", "stream"), ("bad", "stream"), ("bad2", "stream")]  # fmt: skip
    path = part(tmp_path, *rows)
    reuse = settings(capture={"reuse": True})

    def shape(known: set[int]) -> list[Any]:
        return [
            (job.row, [each.row for each in job.alike], job.then and (job.then.row, [each.row for each in job.then.alike]))
            for job in jobs_of_part(path, known, reuse, Prices())
        ]  # fmt: skip

    assert shape(set()) == [(0, [3, 4], (1, [2])), (5, [], None), (6, [], None)]
    assert shape({0, 1}) == [(2, [], (3, [4])), (5, [], None), (6, [], None)]
    assert len(list(jobs_of_part(path, set(), settings(), Prices()))) == 5
    first = next(jobs_of_part(path, set(), reuse, Prices()))
    assert [(each.request.request_id, each.request.keep, each.wire) for each in first.alike] == [
        ("b", {"x": "kept"}, first.wire),
        ("c", {"x": "kept"}, first.wire),
    ]


def test_a_job_carries_its_request_and_what_to_send(tmp_path: Path) -> None:
    good, bad = jobs_of_part(part(tmp_path, ("a", "stream"), ("bad", "stream")), set(), settings(), Prices())
    assert (good.request.request_id, good.request.keep, good.earlier) == ("a", {"x": "kept"}, [])
    assert good.wire is not None
    assert '"stream":true' in good.wire.body
    assert good.expected is None, "nothing is counted without limits"
    assert (bad.wire, bad.request.error is None) == (None, False)


def test_limits_need_the_expected_use_of_each_job(tmp_path: Path) -> None:
    path = part(tmp_path, ("a", "stream"), ("a", "complete"), ("bad", "stream"), params='{"n": 3, "max_tokens": 50}')
    limited = settings(budget={"tokens": 1000})
    first, bad = jobs_of_part(path, set(), limited, Prices((PRICE,)))
    for job in (first, first.then):
        assert job is not None
        assert job.expected is not None
        assert (job.expected.input_tokens, job.expected.max_output, job.expected.choices) == (8, 50, 3)
        assert job.expected.price == PRICE
    assert bad.expected is None


def test_a_request_that_cannot_be_built_is_a_fault_of_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def fail(body: str, **options: Any) -> Any:
        if "poison" in body:
            raise RecursionError
        return prompts.wire(body, **options)

    monkeypatch.setattr(jobs, "wire", fail)
    path = part(tmp_path, ("a", "stream"), ("b", "stream"), ("c", "stream"))
    table = pq.read_table(path)
    bodies = table["body"].to_pylist()
    bodies[1] = bodies[1].replace("Hi", "poison")
    pq.write_table(table.set_column(table.column_names.index("body"), "body", pa.array(bodies)), path)
    good, bad, other = jobs_of_part(path, set(), settings(), Prices())
    assert (good.fault, other.fault, bad.wire) == (None, None, None)
    assert bad.fault is not None
    assert (bad.fault.type, bad.fault.code) == ("internal", "request")
    assert "request b: build the request: RecursionError" in caplog.text


def test_the_input_of_a_body_that_fits_no_rule_is_counted_as_text() -> None:
    odd = Wire('{"model":"m","messages":["Hi",5]}', "m", "stream", 1)
    found = jobs.input_tokens(odd.body, specification("chat"), "m", "o200k_base")
    assert found.tokens > 5
    assert found.approximate


def test_an_absurd_number_of_choices_is_bounded() -> None:
    huge = Wire('{"model":"m","messages":[],"n":100000000}', "m", "stream", 10**8)
    assert jobs.expected_use(huge, settings(), Prices()).choices == 1_000_000


def test_each_call_has_its_due_time_in_every_attempt(tmp_path: Path) -> None:
    path = part(tmp_path, ("a", "stream"), ("bad", "stream"), ("b", "stream"), ("c", "stream"))

    def found(known: set[int], **capture: Any) -> list[tuple[int, float | None]]:
        jobs = jobs_of_part(path, known, settings(capture=capture), Prices(), np.array([0.5, 1.5, 2.5]))
        return [(job.row, job.due_s) for job in jobs]

    assert found(set()) == [(0, 0.5), (1, None), (2, 1.5), (3, 2.5)]
    assert found({0, 2}) == [(1, None), (3, 2.5)]
    # All have the same body, so they are called once.
    assert found(set(), reuse=True) == [(0, 0.5), (1, None), (2, 1.5)]
