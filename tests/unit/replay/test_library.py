"""The answer for a request: by its id, its body or its last prompt."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from deltatap.replay.library import AmbiguousError, Library, NotFoundError
from deltatap.replay.options import Options
from deltatap.replay.recordings import recording
from tests.replaying import BODY, OTHER, error, row


def find(
    found: list[dict[str, Any]], body: Any = BODY, api: str = "chat", *, streamed: bool = True, **options: Any
) -> Any:
    made = Library(map(recording, found)).find(body, api, Options(**options), streamed=streamed)
    return made.request_id, made.run_id


FAILED = {"status": "failed", "error": error("rate_limit", None, 429)}


def test_an_answer_to_the_same_body_is_found_in_the_same_mode_completed_first_then_the_newest() -> None:
    rows = [
        row(request_id="old"),
        row(request_id="new"),
        row(request_id="failed", **FAILED),
        row(request_id="w", mode="complete"),
    ]
    assert find(rows)[0] == "new"
    assert find(rows, streamed=False)[0] == "w"
    assert find(rows[2:3])[0] == "failed"
    assert find(rows[:1], streamed=False)[0] == "old", "a stream is an answer to a request for a whole one"


def test_an_answer_is_found_by_its_request_id_and_run() -> None:
    rows = [row(run_id="x"), row(run_id="y"), row(run_id="y", request_id="b")]
    assert find(rows, {}, request_id="a") == ("a", "y")
    assert find(rows, {}, request_id="a", run_id="x") == ("a", "x")
    assert find(rows, run_id="x") == ("a", "x")
    assert find(rows, {"messages": "else"}, "messages", request_id="b") == ("b", "y")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"request_id": "c"}, "no answer with the request id c was captured"),
        ({"run_id": "z"}, "no answer of the run z can be replayed"),
        ({"request_id": "b", "run_id": "x"}, "no answer with the request id b was captured in the run x"),
        ({}, "a request without a body needs the option request_id"),
    ]
    for options, why in wrong:
        with pytest.raises(NotFoundError, match=f"^{why}$"):
            find(rows, {}, **options)


def test_an_answer_to_the_same_prompt_has_the_same_model() -> None:
    other = row(request_model="n", request_hash="h", **FAILED)
    assert find([row(), other], OTHER) == ("a", "run-1")
    with pytest.raises(NotFoundError, match=r"no answer of the model k was captured for this prompt, only of m, n"):
        find([row(), other], {**OTHER, "model": "k"})
    with pytest.raises(NotFoundError, match="neither its request_hash nor its last prompt"):
        find([row()], {**OTHER, "messages": [{"role": "user", "content": "Else."}]})
    without = {name: value for name, value in OTHER.items() if name != "model"}
    assert find([row()], without) == ("a", "run-1")
    with pytest.raises(AmbiguousError):
        find([row(), row(request_model="n", request_hash="h")], without)


def test_different_requests_with_the_same_prompt_are_ambiguous() -> None:
    rows = [row(request_id="a", request_hash="1"), row(request_id="b", request_hash="2")]
    with pytest.raises(AmbiguousError, match="2 captured answers have this last prompt and model") as caught:
        find(rows, OTHER)
    assert [each.request_id for each in caught.value.choices] == ["a", "b"]
    assert find([rows[0], rows[1] | FAILED], OTHER)[0] == "a", "completed rows come first"
    assert find([rows[0], rows[1] | {"request_id": "a", "run_id": "later"}], OTHER) == ("a", "later")


@pytest.mark.parametrize(
    ("options", "to_add"),
    [
        (
            {"request_id": "T 1"},
            "add run_id (newest: run_id=run-3) as query parameters, or as headers (x-deltatap-run-id)",
        ),
        ({"run_id": "run-3"}, "add request_id (newest: request_id=T%202) as"),
        ({}, "add request_id and run_id (newest: request_id=T%202 and run_id=run-3) as"),
    ],
)
def test_an_ambiguous_request_learns_what_to_add(options: dict[str, Any], to_add: str) -> None:
    rows = [
        row(request_id="T 1", run_id="run-2"),
        row(request_id="T 1", run_id="run-3", request_model="n", request_hash="h"),
        row(request_id="T 2", run_id="run-3"),
    ]
    without = {name: value for name, value in OTHER.items() if name != "model"}
    with pytest.raises(AmbiguousError, match=re.escape(to_add)):
        find(rows, without, **options)
    assert find(rows, without, request_id="T 1", run_id="run-2") == ("T 1", "run-2")


def test_answers_of_the_same_api_come_first() -> None:
    request = json.dumps({"model": "m", "input": "Say it."})
    rows = [row(request_id="own", api="responses", request=request, request_hash="r"), row()]
    assert find(rows, {"model": "m", "input": "Say it.", "x": 1}, "responses")[0] == "own"
    assert find(rows, {"model": "m", "input": "Say it."}, "messages", request_id="own")[0] == "own"
    assert find(rows[1:], {"model": "m", "prompt": "Say it."}, "completions")[0] == "a"
