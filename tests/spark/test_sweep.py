"""A sweep with real Spark: two short stages, one budget for both, and a continuation that pays for nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deltatap import cli
from deltatap.delta.tables import quoted
from tests import prompts
from tests.runs import captured, run_rows

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.simulation import Simulation

PACE = {"speed": 1, "ttft_ms": 50, "ttft_sigma": 0, "itl_ms": 1, "itl_sigma": 0, "tokens": 5, "tokens_sigma": 0}


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_interrupted(
    spark: SparkSession, tables: Path, simulator: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    # An answer takes 55 ms or more, and one is generated at a time. 80 in one second wait for up to 3.4 s.
    simulator.change(slots=1)
    prompts.write(spark, tables / "prompts", [(f"r{n:03d}", f"Prompt {n}?") for n in range(90)])
    path = tables / "c.yml"

    def sweep(**budget: int) -> tuple[int, dict[str, Any], str]:
        tree = prompts.config(tables, simulator.base_url, analysis={"slo": {"ttft_ms": 1000}}, budget=budget)
        path.write_text(yaml.safe_dump(tree))
        code = cli.run(cli.sweep, path, rates="10,80", duration=1.0, share=0.9, as_json=True, out=tables / "sweep.html")
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    code, cut, said = sweep(requests=30)
    assert (code, cut["ended"], len(cut["stages"])) == (cli.OK, False, 1)
    assert "budget.requests: 20 is used up" in cut["reason"], "the first stage used 10 of 30"
    assert "to continue it, raise the budget and run the command again" in said
    code, whole, said = sweep()
    assert (code, whole["ended"], whole["sweep"]) == (cli.OK, True, cut["sweep"])
    assert "stage 1" not in said
    assert f"resumes run {whole['sweep']}-02" in said
    slow, fast = whole["stages"]
    assert (slow["requests"], fast["requests"], fast["holds"]) == (10, 80, False)
    # On a machine that is very busy, the first stage may not hold either.
    assert (whole["rate"], whole["low"], whole["high"]) == ((10.0, 10.0, 80.0) if slow["holds"] else (None, None, 10.0))
    calls = Counter(row["run_id"] for row in captured(spark, tables))
    assert calls == {f"{whole['sweep']}-01": 10, f"{whole['sweep']}-02": 80}
    assert simulator.counts()["calls"] == 90, "no request of a stage is sent twice"
    labels = {row["labels"]["stage"]: row["labels"]["rate"] for row in run_rows(spark, tables)}
    assert labels == {"1": "10", "2": "80"}
    assert "goodput" in (tables / "sweep.html").read_text(encoding="utf-8")
    assert spark.table(quoted(str(tables / "captures"))).where("scheduled_ms IS NULL").isEmpty()
