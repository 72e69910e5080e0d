from __future__ import annotations

import pytest

from deltatap.prompt_columns import find, near_misses, similar


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


def test_a_column_is_found_in_any_case() -> None:
    assert (find("prompt", ["a", "Prompt"]), find("prompt", ["a"])) == ("Prompt", None)
    with pytest.raises(ValueError, match="column prompt: expected one, found Prompt, PROMPT"):
        find("prompt", ["Prompt", "PROMPT"])


def test_the_most_similar_name() -> None:
    assert similar("topics", ["x", "Topic_", "price"]) == "Topic_"
    assert similar("topics", ["x", "price"]) is None
