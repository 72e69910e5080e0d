from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from deltatap.plan_state import LANDED, Part
from deltatap.state import RunState

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    made = RunState(tmp_path / "state" / "run-1")
    made.prepare()
    made.plan(1).prepare()
    return made


def test_the_newest_claim_holds_its_part(state: RunState) -> None:
    plan = state.plan(1)
    first, other = plan.claim(0), plan.claim(1)
    assert plan.holds(first)
    second = plan.claim(0)
    assert not plan.holds(first)
    assert plan.holds(second)
    assert plan.holds(other)


def test_one_of_two_simultaneous_claims_holds_the_part(state: RunState) -> None:
    plan = state.plan(1)
    names = ["00000-000001-aaaa", "00000-000001-bbbb"]
    for name in names:
        (plan.folder / "claims" / name).touch()
    assert [plan.holds(name) for name in names] == [False, True]


def test_a_new_claim_has_a_greater_number_also_if_it_does_not_see_the_others(state: RunState) -> None:
    plan = state.plan(1)
    claims = [plan.claim(3, now_s) for now_s in (1000.0, 1000.0, 990.0, 1001.0)]
    assert [claim.split("-")[1] for claim in claims] == [
        f"{ms:013d}" for ms in (1_000_000, 1_000_001, 1_000_002, 1_001_000)
    ]
    assert claims == sorted(claims) == plan.claims(3)
    for claim in claims:
        (plan.folder / "claims" / claim).unlink()
    assert plan.claim(3, 1001.001) > claims[-1]
    assert plan.holds(claims[-1]) is False


def test_a_claim_that_is_not_visible_yet_is_held(state: RunState) -> None:
    plan = state.plan(1)
    claim = plan.claim(0)
    (plan.folder / "claims" / claim).unlink()
    assert plan.holds(claim)


def test_an_incomplete_record_of_landed_rows_is_not_used(state: RunState) -> None:
    plan = state.plan(1).at_once()
    plan.add_landed(np.array([(0, row) for row in range(4)], LANDED))
    (path,) = (plan.folder / "landed").iterdir()
    whole = path.read_bytes()
    for content in (whole[:16], b"", whole[:-1] + b"x"):
        path.write_bytes(content)
        with pytest.raises(OSError, match="not whole"):
            plan.landed()
    path.write_bytes(whole)
    # Records of an older version have no checksum.
    (path.parent / f"{'a' * 32}.rows").write_bytes(np.array([(0, 9)], LANDED).tobytes())
    assert plan.landed_rows(0).tolist() == [0, 1, 2, 3, 9]


def test_the_manifest_names_the_parts(state: RunState) -> None:
    plan = state.plan(1, [Part("parts-2/b.parquet", 3, 10), Part("parts-2/a.parquet", 1, 5)])
    assert [path.name for path in plan.part_files()] == ["b.parquet", "a.parquet"], "whatever a listing says"
    (plan.folder / "parts-2").mkdir()
    (plan.folder / "parts-2" / "a.parquet").write_bytes(b"12345")
    with plan.open_part(1) as file:
        assert file.read() == b"12345"
    (plan.folder / "parts-2" / "b.parquet").write_bytes(b"half")
    with pytest.raises(OSError, match="has 4 of 10 bytes"):
        plan.at_once().open_part(0)


def test_landed_rows_are_kept_in_few_files(state: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.plan_state._MERGE_LANDED_ABOVE", 8)
    plan = state.plan(1)
    plan.add_landed(np.array([], LANDED))
    for row in range(30):
        plan.add_landed(np.array([(row % 2, row), (row % 2, row)], LANDED))
    assert plan.landed_rows(0).tolist() == list(range(0, 30, 2))
    assert plan.landed_rows(1).tolist() == list(range(1, 30, 2))
    assert plan.landed_rows(2).tolist() == []
    assert len(plan.landed()) == 30
    assert len(list((plan.folder / "landed").iterdir())) <= 9


def test_parts_are_numbered_by_name(state: RunState) -> None:
    plan = state.plan(1)
    plan.parts.mkdir()
    for name in ("part-00001-b.parquet", "part-00000-a.parquet", "_SUCCESS"):
        (plan.parts / name).touch()
    assert [path.name for path in plan.part_files()] == ["part-00000-a.parquet", "part-00001-b.parquet"]
    assert [each.folder.name for each in state.plans()] == ["plan-1"]
    (plan.folder / "parts-2").mkdir()
    (plan.folder / "parts-2" / "part-00000-c.parquet").touch()
    assert [path.name for path in plan.part_files()] == ["part-00000-c.parquet"], "the write was repeated"
