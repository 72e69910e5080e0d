from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import tokens
from deltatap.errors import VocabularyError
from deltatap.tokens import count_chat_input, count_text, encoding, encoding_name_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The request of OpenAI's cookbook, "How to stream completions", and what it answered.
COUNT_TO_100 = "Count to 100, with a comma between each number and no newlines. E.g., 1, 2, 3, ..."
HUNDRED = ", ".join(str(number) for number in range(1, 101))


@pytest.fixture
def empty_cache() -> Iterator[None]:
    encoding.cache_clear()
    yield
    encoding.cache_clear()


def test_the_figures_of_the_article() -> None:
    messages = [{"role": "user", "content": COUNT_TO_100}]
    assert count_chat_input(messages, "gpt-3.5-turbo", "cl100k_base") == 36
    assert count_text(f"{HUNDRED}.", "cl100k_base") == 299
    # gpt-3.5-turbo-0301 began with two newlines, one token for tiktoken. Its API reported 301, one more than the text has.
    assert count_text(f"\n\n{HUNDRED}.", "cl100k_base") == 300


def test_the_cookbook_s_example_with_names() -> None:
    """OpenAI's cookbook, "How to count tokens with tiktoken": 129 for gpt-4, 127 for gpt-3.5-turbo-0301."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
        {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
        {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
        {"role": "system", "name": "example_user",
         "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
        {"role": "system", "name": "example_assistant", "content": "Let's talk later when we're less busy about how to do better."},
        {"role": "user", "content": "This late pivot means we don't have time to boil the ocean for the client deliverable."},
    ]  # fmt: skip
    assert count_chat_input(messages, "gpt-4", "cl100k_base") == 129
    assert count_chat_input(messages, "gpt-3.5-turbo-0301", "cl100k_base") == 127


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("openai/gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-4o-mini!cut@3", "o200k_base"),
        ("gpt-3.5-turbo-0613", "cl100k_base"),
        ("text-davinci-003", "fallback"),
        ("llama-3", "fallback"),
        ("", "fallback"),
    ],
)
def test_which_encoding_a_model_uses(model: str, name: str) -> None:
    assert encoding_name_for(model, "fallback") == name


def test_what_looks_like_a_special_token_is_text() -> None:
    assert count_text("<|endoftext|>", "cl100k_base") > 1


def test_parts_count_their_text_and_the_rest_its_json() -> None:
    text = count_chat_input([{"role": "user", "content": "Hello there"}], "gpt-4o", "o200k_base")
    assert (
        count_chat_input(
            [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}], "gpt-4o", "o200k_base"
        )
        == text
    )
    image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    assert (
        count_chat_input([{"role": "user", "content": [image], "tool_calls": [{"id": "c"}]}], "gpt-4o", "o200k_base")
        > 10
    )


@pytest.mark.usefixtures("empty_cache")
def test_a_vocabulary_is_read_from_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    assert encoding("cl100k_base").n_vocab == 100277
    import os  # noqa: PLC0415

    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/nowhere", "the user's own setting stays"


@pytest.mark.usefixtures("empty_cache")
def test_a_missing_or_damaged_vocabulary_is_told_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = tokens._FILES["o200k_base"]
    shutil.copy(tokens.VOCABULARIES / files[0], tmp_path)
    monkeypatch.setattr(tokens, "VOCABULARIES", tmp_path)
    with pytest.raises(VocabularyError, match=r"vocabulary cl100k_base: .*9b5ad71b.* cannot be read .*`make setup`"):
        encoding("cl100k_base")
    (tmp_path / files[0]).write_bytes(b"x")
    with pytest.raises(VocabularyError, match=r"vocabulary o200k_base: .* is damaged"):
        encoding("o200k_base")
    assert (tmp_path / files[0]).exists(), "nothing is deleted"
    with pytest.raises(VocabularyError, match="encoding nope: expected one of"):
        encoding("nope")
