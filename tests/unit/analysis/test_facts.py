from __future__ import annotations

import json
from typing import Any

from deltatap.analysis import facts
from deltatap.analysis.facts import Changed, changed, of_run, said


def answer(fingerprint: str | None, rows: int, model: str = "m") -> dict[str, object]:
    same: dict[str, object] = {"service_tier": None, "region": "East US", "clock": "kernel"}
    return {"response_model": model, "system_fingerprint": fingerprint, "rows": rows} | same


def test_an_endpoint_is_described_by_what_most_answers_say() -> None:
    found = said([answer("fp_1", 3), answer(None, 2), answer("fp_2", 4, "other"), answer("fp_1", 2)])
    assert found == {
        "response_model": "m", "system_fingerprint": "fp_1", "service_tier": "none", "region": "East US",
        "clock": "kernel",
    }  # fmt: skip
    assert said([]) == {}


def test_what_decides_the_calls_is_a_fact_and_the_rest_is_not() -> None:
    config = {
        "endpoint": {"model": "m", "tls": {"ca_file": None}}, "request": {"stop": ["a"]}, "run": {"labels": {"n": "1"}},
        "prompts": {"sql": "SELECT " + "x" * 90}, "state": {"dir": "/s"}, "spark": {"master": "local"},
    }  # fmt: skip
    found = of_run({"versions": {"python": "3.12", "deltatap": "1"}, "config": json.dumps(config)})
    assert found.pop("prompts.sql") == "SELECT " + "x" * 52 + "…"
    assert found == {
        "deltatap version": "1",
        "python version": "3.12",
        "endpoint.model": "m",
        "endpoint.tls.ca_file": "null",
        "request.stop": '["a"]',
    }
    assert of_run({"versions": None, "config": None}) == {}


def test_only_what_most_runs_of_both_stretches_have_has_changed() -> None:
    before = [{"fp": "1", "night": str(night), "same": "x"} for night in range(3)] + [{"fp": "9", "same": "x"}]
    after = [{"fp": "2", "night": str(night), "same": "x"} for night in range(5, 7)] + [{"fp": "1", "same": "x"}]
    assert changed(before, after) == (Changed("fp", "1", "2"),)
    assert str(changed(before, after)[0]) == "fp 1 → 2"


def test_a_key_that_a_newer_version_adds_has_not_changed_but_a_parameter_has() -> None:
    found = changed([{"capture.new": "null"}], [{"request.top_p": "0.5", "endpoint.headers.x": "1"}])
    assert found == (Changed("request.top_p", "none", "0.5"), Changed("endpoint.headers.x", "none", "1"))


def priced(run_id: str, *prices: dict[str, Any]) -> dict[str, object]:
    return {"run_id": run_id, "versions": {}, "config": "{}", "prices": json.dumps(prices) if prices else None}


def test_a_price_that_changed_between_runs_is_named() -> None:
    old: dict[str, Any] = {"request_model": "a", "input": "2", "output": "8", "model": "a", "date": None, "source": "s"}
    new, flex = {**old, "input": "1.5"}, {**old, "service_tier": "flex", "input": "1"}
    runs = [priced("1", old), priced("2"), priced("3", old, flex), priced("4", new, flex), priced("5", new)]
    assert [(run_id, str(change)) for run_id, change in facts.price_changes(runs)] == [
        ("4", "price of a input 2, output 8 → input 1.5, output 8")
    ]
    assert facts.of_run(runs[2]) == {"price of a": "input 2, output 8", "price of a (flex)": "input 1, output 8"}
    assert facts.price_changes([{"run_id": "older version", "versions": {}, "config": "{}"}]) == []
    failed, mini = {**old, "model": "a-1"}, {**old, "model": "a-mini", "input": "1"}
    assert facts.prices_of(priced("7", old, mini, failed)) == {
        "price of a": "input 1, output 8 and input 2, output 8"
    }, "an equal price counts once"
    steps = {**old, "steps": [{"above": 200000, "input": "4", "output": "9"}]}
    assert facts.prices_of(priced("6", old, steps)) == {
        "price of a": "input 2, output 8 and input 2, output 8; above 200,000 tokens: input 4"
    }
