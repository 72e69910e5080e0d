from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deltatap.driver import plan as planning
from deltatap.driver.active import ActiveRun
from deltatap.driver.pacer import Spent
from deltatap.driver.plan import Plan, _listed, announce, make_plan, models, resumes, task_count, used_before
from deltatap.driver.progress import Snapshot
from deltatap.plan_state import PlanState
from deltatap.settings_loading import load_settings
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path


def plan(**values: Any) -> Plan:
    return Plan(**({"files": None, "tasks": 1, "requests": 10} | values))


def test_the_counts_of_earlier_starts_are_added() -> None:
    before = {"completed": 3, "interrupted": 1, "failed": None, "requests": 5, "input_tokens": 7, "cost_usd": 0.5}
    counts = plan(final=3, before=before).counts(
        Snapshot(10, {"completed": 2}, requests=4, input_tokens=1, cost_usd=0.25)
    )
    assert counts == {
        "owed": 13, "completed": 5, "interrupted": 1, "failed": 0, "requests": 9, "input_tokens": 8,
        "output_tokens": 0, "cost_usd": 0.75,
    }  # fmt: skip


def test_after_a_death_the_user_hears_of_calls_that_no_table_counts() -> None:
    stopped: Any = SimpleNamespace(run_id="r", seen_at=0.0)
    assert resumes(stopped) == "resumes run r"
    died: Any = SimpleNamespace(run_id="r", seen_at=1.8e9)
    assert "the provider may also bill calls that are not in the tables" in resumes(died)


@pytest.mark.parametrize(("resumed", "completed", "epoch"), [(False, 0, 4), (True, 0, None), (False, 1, None)])
def test_only_the_rows_of_a_first_start_are_known_to_be_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, resumed: bool, completed: int, epoch: int | None
) -> None:
    """The workers of a dead driver may still write captures for a resumed run."""

    def end(*_: object, **__: object) -> None:
        raise RuntimeError("the end of this test")

    monkeypatch.setattr(planning, "_earlier_starts", lambda _: ({"completed": completed}, 0))
    monkeypatch.setattr("deltatap.driver.plan.owed.owed_requests", end)
    run = ActiveRun(load_settings({}), *[cast("Any", None)] * 5)
    run = replace(run, console=Console(quiet=True), state=RunState(tmp_path), lease=cast("Any", SimpleNamespace(
        run_id="r", resumed=resumed, epoch=4, seen_at=0.0)))  # fmt: skip
    landing: Any = SimpleNamespace(drain=lambda: None, new_rows=SimpleNamespace(epoch=None))
    with pytest.raises(RuntimeError, match="the end of this test"):
        make_plan(run, landing, cast("Any", SimpleNamespace(slots=2)))
    assert landing.new_rows.epoch == epoch


def test_the_counts_of_a_run_fit_their_columns() -> None:
    counts = plan(before={"input_tokens": 2**63 - 1}).counts(Snapshot(10, input_tokens=5, output_tokens=2**70))
    assert (counts["input_tokens"], counts["output_tokens"]) == (2**63 - 1, 2**63 - 1)


def test_an_unknown_cost_stays_unknown() -> None:
    assert plan(before={"cost_usd": 0.5}).counts(Snapshot(10))["cost_usd"] is None


def test_budgets_count_what_earlier_starts_used() -> None:
    assert plan().spent == Spent()
    used = {"requests": 5, "input_tokens": 7, "output_tokens": 11, "cost_usd": None}
    assert plan(before=used).spent == Spent(5, 18, 0)


def test_a_run_that_continues_says_how_much_of_its_budget_is_used() -> None:
    spent = Spent(80, 18_000, 0.05)
    budget = load_settings({"budget": {"requests": 100, "cost_usd": 0.05}}).budget
    said = "earlier starts of this run have used part of the budget: 80 of 100 requests, $0.0500 of $0.0500"
    assert list(used_before(spent, budget)) == [said]
    assert list(used_before(Spent(), budget)) == [], "a first start"
    assert list(used_before(spent, load_settings({}).budget)) == [], "no budget"


@pytest.mark.parametrize(
    ("concurrency", "streams_per_worker", "slots", "tasks"),
    [(64, 256, 8, 1), (256, 256, 8, 1), (257, 256, 8, 2), (4000, 256, 8, 7), (4000, 256, 2, 1), (4000, 256, 1, 1)],
)
def test_enough_tasks_for_the_streams_and_a_slot_for_landing(
    concurrency: int, streams_per_worker: int, slots: int, tasks: int
) -> None:
    capture = {"concurrency": concurrency, "streams_per_worker": streams_per_worker}
    assert task_count(load_settings({"capture": capture}), slots) == tasks


def test_the_models_of_a_plan(tmp_path: Path) -> None:
    files = PlanState(tmp_path / "plan-1")
    files.parts.mkdir(parents=True)
    for at, names in enumerate((["b", None, "a"], ["a", "c"])):
        pq.write_table(pa.table({"model": pa.array(names, pa.string())}), files.parts / f"part-{at}.parquet")
    assert models(files) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a"], "model a"), (["a", "b"], "models a, b"), (list("abcdefg"), "models a, b, c, d, e and 2 more")],
)
def test_models_in_a_message(names: list[str], text: str) -> None:
    assert _listed(names) == text


@pytest.mark.parametrize(
    ("empty", "note"),
    [
        (False, "nothing is owed: every request has a final row; no call was made"),
        (True, "prompts main.llm.prompts has no rows: nothing to capture"),
    ],
)
def test_a_run_without_requests_says_why(monkeypatch: pytest.MonkeyPatch, empty: bool, note: str) -> None:  # noqa: FBT001 - a parameter
    monkeypatch.setattr("deltatap.driver.source.source", lambda *_: SimpleNamespace(isEmpty=lambda: empty))
    settings = load_settings({"prompts": {"table": "main.llm.prompts"}})
    run: Any = SimpleNamespace(settings=settings, spark=None)
    assert announce(run, plan(requests=0), slots=4) == [note]


def test_the_budget_that_is_used_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.driver.plan.models", lambda _: [])
    monkeypatch.setattr("deltatap.driver.plan.source.misspelled", lambda *_: [])
    lines: list[str] = []
    settings = load_settings({"budget": {"tokens": 500}})
    say = lambda text, style=None: lines.append(text)  # noqa: ARG005, E731
    run: Any = SimpleNamespace(settings=settings, spark=None, say=say, lease=SimpleNamespace(run_id="r1"))
    announce(run, plan(before={"requests": 3, "input_tokens": 7, "output_tokens": 11}), slots=4)
    assert lines[1:] == ["earlier starts of this run have used part of the budget: 18 of 500 tokens"]


def test_a_run_says_when_its_requests_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.driver.plan.models", lambda _: [])
    monkeypatch.setattr("deltatap.driver.plan.source.misspelled", lambda *_: [])

    def said(**limits: Any) -> list[str]:
        lines: list[str] = []
        settings = load_settings({"capture": {"arrivals": {"per_second": 2}}, "limits": limits, "prices": None})
        lease = SimpleNamespace(run_id="r1")
        say = lambda text, style=None: lines.append(text)  # noqa: ARG005, E731
        run: Any = SimpleNamespace(settings=settings, spark=None, say=say, lease=lease)
        assert announce(run, plan(calls=(5, 4)), slots=4) == []
        return lines

    arrivals = "arrivals: poisson, 2 per second (seed 0), about 4.5 s for 9 requests"
    assert said()[1:] == [arrivals]
    assert said(requests_per_minute=120)[1:] == [arrivals]
    slow = (
        "limits.requests_per_minute allows 60 requests, but 120 arrive in a minute: requests will start later and later"
    )
    assert said(requests_per_minute=60)[1:] == [arrivals, slow]


def parts_of(plan: PlanState, name: str, *sizes: int) -> list[Path]:
    (plan.folder / name).mkdir(parents=True)
    paths = [plan.folder / name / f"part-{at:05d}-x.parquet" for at in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        pq.write_table(pa.table({"model": ["m"] * size}), path)
    return paths


def test_a_manifest_holds_every_request_that_spark_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver waits while a listing is old, and while a part is incomplete."""
    plan = PlanState(tmp_path / "plan-1")
    first, second = parts_of(plan, "parts", 3, 4)
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    looks: list[None] = []

    def sleep(_: float) -> None:
        looks.append(None)
        if len(looks) == 2:
            second.write_bytes(content)

    monkeypatch.setattr("deltatap.driver.plan.time.sleep", sleep)
    found = planning.manifest(plan, "parts", 7)
    assert len(looks) == 2
    assert [(part.name, part.rows, part.size) for part in found] == [
        (f"parts/{path.name}", rows, path.stat().st_size) for path, rows in ((first, 3), (second, 4))
    ]


@pytest.mark.parametrize("requests", [1, 8])
def test_an_empty_or_partial_listing_is_never_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    plan = PlanState(tmp_path / "plan-1")
    parts_of(plan, "parts", *([] if requests == 1 else [3, 4]))
    monkeypatch.setattr(planning, "_WAIT_S", 0.0)
    monkeypatch.setattr("deltatap.driver.plan.time.sleep", lambda _: None)
    with pytest.raises(OSError, match=f"of {requests} planned requests are visible"):
        planning.manifest(plan, "parts", requests)


def test_a_plan_without_requests_has_no_rows(tmp_path: Path) -> None:
    plan = PlanState(tmp_path / "plan-1")
    parts_of(plan, "parts", 0)
    assert [part.rows for part in planning.manifest(plan, "parts", 0)] == [0]
