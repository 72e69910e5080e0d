"""The public UDF's body without Spark: one row's trouble stays in its row."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from deltatap import prompts, udf
from deltatap.prices import Prices
from deltatap.settings_loading import load_settings
from tests.scripted import Scripted, called


class Answers(Scripted):
    """A client that answers each prompt with its own text."""

    def scripted(self, body: str) -> Any:
        if "raise" in body:
            return KeyError("sk-secret")
        return called(text="lone \ud800" if "surrogate" in body else "Hi")


def test_one_row_s_trouble_stays_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(row: dict[str, Any], **options: Any) -> Any:
        if row["prompt"] == "unbuildable":
            raise RecursionError
        return prompts.build_request(row, **options)

    monkeypatch.setattr(udf, "build_request", fail)
    monkeypatch.setattr("deltatap.worker.bootstrap.make_client", lambda *_, **__: Answers())
    settings = load_settings({"endpoint": {"api_key": None}, "prices": None})
    column = pd.Series(["good", "raise", "surrogate", "unbuildable", "fine"])
    (found,) = udf.capture_batches(iter([column]), settings, Prices(), max_requests=9)
    errors = [None if error is None else (error["type"], error["code"]) for error in found["error"]]
    assert errors == [None, ("internal", "request"), ("internal", "complete"), ("internal", "request"), None]
    assert list(found["status"]) == ["completed", "failed", "interrupted", "failed", "completed"]
    assert found["text"][2] == "lone \ufffd"
    assert "sk-secret" not in str(found.to_dict())


def test_nan_in_an_object_is_no_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """A null would be dropped, and the request would be paid for."""
    monkeypatch.setattr("deltatap.worker.bootstrap.make_client", lambda *_, **__: Answers())
    settings = load_settings({"endpoint": {"api_key": None}, "prices": None})
    nan = float("nan")
    rows = pd.DataFrame({"Prompt": ["Hi", "Hi"], "request_id": [7.0, nan], "params": [{"top_p": nan}, {"x": None}]})
    (found,) = udf.capture_batches(iter([rows]), settings, Prices(), max_requests=9)
    assert list(found["status"]) == ["failed", "completed"]
    assert found["error"][0]["message"].startswith("params contains NaN")
    assert found["request_id"][0] == "7"


def test_two_fields_of_one_name_are_refused() -> None:
    settings = load_settings({"endpoint": {"api_key": None}, "prices": None})
    rows = pd.DataFrame([["a", "b"]], columns=["prompt", "PROMPT"])
    with pytest.raises(ValueError, match="column prompt: expected one column of this name, found prompt, PROMPT"):
        list(udf.capture_batches(iter([rows]), settings, Prices(), max_requests=9))
