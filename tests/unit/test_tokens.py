from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from deltatap import tokens
from deltatap.api.input_tokens import InputTokens
from deltatap.api.registry import specification
from deltatap.errors import VocabularyError
from deltatap.model import Capture, Job
from deltatap.prices import Prices
from deltatap.prompts import build_request, wire
from deltatap.settings_loading import load_settings
from deltatap.tokens import count_text, encoding, known_encoding
from deltatap.worker.bootstrap import context_of
from deltatap.worker.counting import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The request in OpenAI's cookbook, "How to stream completions", and its answer.
COUNT_TO_100 = "Count to 100, with a comma between each number and no newlines. E.g., 1, 2, 3, ..."
HUNDRED = ", ".join(str(number) for number in range(1, 101))


@pytest.fixture
def empty_cache() -> Iterator[None]:
    encoding.cache_clear()
    yield
    encoding.cache_clear()


def test_the_counts_of_the_cookbook() -> None:
    body = {"messages": [{"role": "user", "content": COUNT_TO_100}]}
    assert specification("chat").count_input(body, "gpt-3.5-turbo", "cl100k_base") == InputTokens(36)
    assert count_text(f"{HUNDRED}.", "cl100k_base") == 299
    # gpt-3.5-turbo-0301 began with two newlines, one token for tiktoken. Its API reported 301, one more than the text has.
    assert count_text(f"\n\n{HUNDRED}.", "cl100k_base") == 300


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("openai/gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-4o-mini!cut@3", "o200k_base"),
        ("gpt-3.5-turbo-0613", "cl100k_base"),
        ("text-davinci-003", None),
        ("llama-3", None),
        ("", None),
    ],
)
def test_the_encoding_of_a_model(model: str, name: str | None) -> None:
    assert known_encoding(model) == name


@pytest.mark.parametrize("fallback", ["cl100k_base", "o200k_base"])
def test_the_fallback_encoding_counts_the_tokens_of_an_unknown_model(fallback: str) -> None:
    text = "こんにちは、世界"
    assert count_text(text, "cl100k_base") != count_text(text, "o200k_base")
    settings = load_settings({}, [f"tokens.fallback_encoding={fallback}"])
    request = build_request({"prompt": text}, api="chat", model="my-model", defaults={}, keep=())
    job = Job(request, wire(request.body or "", api="chat", mode="stream", include_usage=True), "stream", 0, [], 0.0)
    row = counted(Capture(job), context_of(settings, Prices(), "run", 0))
    assert row.encoding == fallback
    # 3 tokens for the message, 1 for its role, 3 for the reply.
    assert row.input == InputTokens(count_text(text, fallback) + 7, approximate=True)


def test_a_special_token_in_a_text_is_ordinary_text() -> None:
    assert count_text("<|endoftext|>", "cl100k_base") > 1


@pytest.mark.usefixtures("empty_cache")
def test_a_vocabulary_is_read_from_the_package_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    assert encoding("cl100k_base").n_vocab == 100277
    import os  # noqa: PLC0415

    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/nowhere", "the user's setting is restored"


@pytest.mark.usefixtures("empty_cache")
def test_an_error_names_the_missing_or_damaged_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = tokens._FILES["o200k_base"]
    shutil.copy(tokens.VOCABULARIES / files[0], tmp_path)
    monkeypatch.setattr(tokens, "VOCABULARIES", tmp_path)
    with pytest.raises(VocabularyError, match=r"vocabulary cl100k_base: .*9b5ad71b.* cannot be read .*`make setup`"):
        encoding("cl100k_base")
    (tmp_path / files[0]).write_bytes(b"x")
    with pytest.raises(VocabularyError, match=r"vocabulary o200k_base: .* is damaged"):
        encoding("o200k_base")
    assert (tmp_path / files[0]).exists(), "the file is not deleted"
    with pytest.raises(VocabularyError, match="encoding nope: expected one of"):
        encoding("nope")


PIECE = tokens._PIECE
TEXTS = {
    "English": "The quick brown fox, it's said, jumps over 13 lazy dogs.\n\nAnd then (perhaps) it doesn't: ",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ、",
    "code": "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 0.5}  # ~50%\n",
}


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_long_text_is_counted_exactly(text: str, name: str) -> None:
    long = text * (3 * PIECE // len(text))
    assert count_text(long, name) == len(encoding(name).encode_ordinary(long))


RUNS = {
    "spaces": " ",
    "tabs": "\t",
    "new lines": "\n",
    "ideographic spaces": "\u3000",
    "no-break spaces": "\u00a0",
    "mixed white space": " \t\u3000\n",
    "one letter": "a",
    "one capital": "A",
    "one ideograph": "一",
    "punctuation": "=",
    "emoji": "🙂",
    "lone surrogates": "\ud800",
    "control characters": "\x00",
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_run_of_a_million_characters_is_counted(run: str) -> None:
    once = count_text(run * (PIECE // len(run)), "o200k_base")
    counted = count_text(run * (1_100_000 // len(run)), "o200k_base")
    assert counted == pytest.approx(11 * once, abs=30)


def test_a_run_in_a_text_changes_only_its_own_count() -> None:
    words = "Once upon a time. "
    assert count_text(words * 9 + " " * 1_100_000 + words * 9, "cl100k_base") == pytest.approx(
        2 * count_text(words * 9, "cl100k_base") + count_text(" " * 1_100_000, "cl100k_base"), abs=2
    )
