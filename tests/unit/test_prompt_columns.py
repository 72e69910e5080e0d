from __future__ import annotations

import pytest

from deltatap.prompt_columns import ColumnType, find, misplaced, near_misses, similar, wrong_columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["prompt"], []),
        (["PROMPT", "Request_ID", "extra"], []),
        (["requestId", "prompt"], [("requestId", "request_id")]),
        (["request-id", "prompt"], [("request-id", "request_id")]),
        (["id", "prompt"], [("id", "request_id")]),
        (["id", "request_id", "prompt"], []),
        (["promt"], [("promt", "prompt")]),
        (["text", "request_id"], [("text", "prompt")]),
        (["messages", "promt"], []),
        (["prompt", "modle", "sytem", "parms"], [("sytem", "system"), ("modle", "model"), ("parms", "params")]),
    ],
)
def test_columns_that_look_like_a_misspelled_name(columns: list[str], expected: list[tuple[str, str]]) -> None:
    assert near_misses(columns) == expected


def test_parameters_of_requests_belong_in_params() -> None:
    hint = "put request parameters (Temperature, top_p) in the column params"
    assert (misplaced(["Temperature", "topic", "top_p"]), misplaced(["topic"])) == (hint, None)


def test_a_column_is_found_in_any_case() -> None:
    assert (find("prompt", ["a", "Prompt"]), find("prompt", ["a"])) == ("Prompt", None)
    with pytest.raises(ValueError, match="column prompt: expected one column of this name, found Prompt, PROMPT"):
        find("prompt", ["Prompt", "PROMPT"])


def test_the_most_similar_name() -> None:
    assert similar("topics", ["x", "Topic_", "price"]) == "Topic_"
    assert similar("topics", ["x", "price"]) is None


TEXT, BIGINT, CHAT = ColumnType.text(), ColumnType("BIGINT", is_id=True), ColumnType("CHAT", is_messages=True)


@pytest.mark.parametrize(
    ("types", "templates", "problems"),
    [
        ({"request_id": BIGINT, "prompt": TEXT, "params": TEXT}, (), []),
        ({"messages": CHAT}, (), []),
        ({"messages": TEXT}, (), []),
        ({"system": TEXT}, ("prompt",), []),
        ({"prompt": BIGINT}, (), ["column prompt: expected STRING, found BIGINT; cast it with prompts.sql"]),
        ({"request_id": CHAT, "prompt": TEXT}, (), ["column request_id: expected STRING or an integer, found CHAT; cast it with prompts.sql"]),
        ({"system": TEXT}, (), ["expected a column prompt or messages, found system"]),
        ({"messages": BIGINT}, (), ["column messages: expected ARRAY<STRUCT<role: STRING, content: STRING, …>> or a JSON STRING, found BIGINT"]),
        ({"prompt": TEXT, "params": CHAT}, (), ["column params: expected a JSON STRING or MAP<STRING, …>, found CHAT"]),
    ],
)  # fmt: skip
def test_wrong_types(types: dict[str, ColumnType], templates: tuple[str, ...], problems: list[str]) -> None:
    assert list(wrong_columns(types, templates)) == problems


def test_a_missing_prompt_column_is_suggested() -> None:
    assert list(wrong_columns({}, (), ["id", "promt"])) == [
        "expected a column prompt or messages, found id, promt; did you mean promt?",
    ]
    assert list(wrong_columns({})) == ["expected a column prompt or messages, found no columns"]
