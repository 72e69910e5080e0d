"""Bodies and hashes stay byte-identical: a changed hash would make every captured request owed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltatap.prompts import build_request, wire

CASES = json.loads(Path(__file__).with_name("requests.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['api']} {case['hash'][:8]}")
def test_a_row_has_the_same_body_and_hash_as_before(case: dict[str, Any]) -> None:
    defaults = {"temperature": 0} if case["api"] == "responses" else {"temperature": 0, "max_tokens": 100}
    request = build_request(case["row"], api=case["api"], model="gpt-4o-mini", defaults=defaults, keep=())
    resumed = build_request(case["row"], api=case["api"], model="gpt-4o-mini", defaults=defaults, keep=(), resume=True)
    assert resumed == request
    assert (request.request_id, request.request_hash, request.body) == (case["id"], case["hash"], case["body"])
    if request.body is not None:
        for mode in ("stream", "complete"):
            sent = wire(request.body, api=case["api"], mode=mode, include_usage=True)
            kept = wire(request.body, api=case["api"], mode=mode, include_usage=True, resume=True)
            added = {"background": True, "store": True} if kept.resumable else {}
            assert json.loads(kept.body) == json.loads(sent.body) | added
            assert kept.resumable == (case["api"] == "responses" and mode == "stream")
            assert [sent.body, sent.model, sent.choices, sent.usage] == case[mode]
