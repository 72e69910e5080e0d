from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltatap import tokens as counting
from deltatap.api.chat import ChatAccumulator
from deltatap.api.completions import CompletionsAccumulator
from deltatap.api.responses import ResponsesAccumulator
from deltatap.model import OUTPUT_KINDS, Call
from deltatap.tokens import count_text, encoding, token_ends
from deltatap.worker.counting import _output
from tests.unit.api.test_transcripts import EXPECTED, receive, transcript

if TYPE_CHECKING:
    from deltatap.api.accumulate import Accumulator
    from deltatap.model import Received

O200K = "o200k_base"
# One token for each word in o200k_base.
WORDS = [" red", " green", " blue", " black"]


def event(text: str | None = None, index: int = 0, usage: int | None = None, **choice: Any) -> dict[str, Any]:
    """A chunk with content for a choice, log probabilities, or the number of tokens so far."""
    delta = {} if text is None else {"content": text}
    made: dict[str, Any] = {"choices": [{"index": index, "delta": delta, **choice}]}
    return made if usage is None else {**made, "usage": {"completion_tokens": usage}}


def total(usage: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": usage}}


def logprobs(*tokens: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -1.0} for token in tokens]}


def received(events: list[dict[str, Any]], accumulator: Accumulator | None = None) -> Received:
    accumulator = accumulator or ChatAccumulator(choices=9)
    for at, each in enumerate(events):
        accumulator.add(json.dumps(each).encode(), 10.0 * at, at)
    return accumulator.finish()


def counted(got: Received, echo: str | None = None) -> tuple[list[int], str | None, int]:
    """The tokens of the chunks with output, their source, and the tokens of the whole answer for tiktoken."""
    output = _output(Call(0, 0, 0, 0, 0, 0, None, got, "completed", None, 200), O200K, echo)
    rows = got.chunks.to_dicts(output.by_chunk.tolist())
    assert len(output.by_chunk) == len(rows)
    assert {row["tokens"] for row in rows if row["kind"] not in OUTPUT_KINDS} <= {0}
    return [row["tokens"] for row in rows if row["kind"] in OUTPUT_KINDS], output.source, output.tokens


@pytest.mark.parametrize(
    ("events", "tokens", "source"),
    [
        pytest.param([], [], None, id="no chunks"),
        pytest.param([event(role="assistant"), total(3)], [], None, id="no output"),
        pytest.param([event(word) for word in WORDS], [1, 1, 1, 1], "tiktoken", id="one token each"),
        pytest.param(
            [event(" red green"), event(" bl"), event("ue")], [2, 0, 1], "tiktoken", id="a word in two chunks"
        ),
        pytest.param([event("\ud83d"), event("\ude00 red")], [2], "tiktoken", id="an emoji cut in half"),
        pytest.param(
            [event(" red", 0), event(" black bird", 1), event(" green", 0)], [1, 2, 1], "tiktoken", id="two choices"
        ),
        pytest.param(
            [
                {"choices": [{"index": 0, "delta": {"reasoning_content": " red green", "content": " blue"}}]},
                event(" red"),
            ],
            [2, 1, 1],
            "tiktoken",
            id="two kinds in one event",
        ),
        pytest.param(
            [event(" red", usage=3), event(" green", usage=4), event(" blue", usage=9), total(10)],
            [3, 1, 5],
            "usage",
            id="continuous usage, with an end-of-sequence token",
        ),
        pytest.param(
            [event(usage=0), event(" red", usage=1), event(usage=2), event(" green", usage=3)],
            [1, 2],
            "usage",
            id="a token without text counts for the next chunk",
        ),
        pytest.param(
            [event(word, usage=4) for word in WORDS], [1] * 4, "tiktoken", id="usage of the whole in each chunk"
        ),
        pytest.param([event(" red", usage=2), event(" green", usage=1)], [1, 1], "tiktoken", id="usage that shrinks"),
        pytest.param(
            [event(" red", usage=0), event(" green", usage=1)], [1, 1], "tiktoken", id="usage that starts late"
        ),
        pytest.param(
            [event(" red", usage=1), event(" green"), total(2)], [1, 1], "tiktoken", id="a chunk without usage"
        ),
        pytest.param([event(" red"), event(" green"), total(9)], [1, 1], "tiktoken", id="usage at the end only"),
        pytest.param([event(" red", usage=2**40)], [1], "tiktoken", id="a count that no column holds"),
        pytest.param(
            [event(" red", 0, 2), event(" green", 1, 3), event(" blue", 0, 5), event(" black", 1, 4), total(9)],
            [2, 3, 3, 1],
            "usage",
            id="usage of each choice",
        ),
        pytest.param(
            [event(" red", 0, 2), event(" green", 1, 3), event(" blue", 0, 5), event(" black", 1, 6), total(6)],
            [2, 1, 2, 1],
            "usage",
            id="usage of all choices",
        ),
        pytest.param(
            [
                total(3) | {"choices": event(" red")["choices"] + event(" green", 1)["choices"]},
                event(" blue", 0, 5),
                total(5),
            ],
            [1, 1, 1],
            "tiktoken",
            id="usage of an event with several choices",
        ),
        pytest.param(
            [event(" red", 0, 2), event(" green", 1, 3)], [1, 1], "tiktoken", id="usage of several choices, no total"
        ),
        pytest.param(
            [event(" red", logprobs=logprobs(" re", "d")), event(" green blue", logprobs=logprobs(" green blue"))],
            [2, 1],
            "logprobs",
            id="log probabilities",
        ),
        pytest.param(
            [event(" red", logprobs=logprobs(" re", "d")), event(" green")],
            [1, 1],
            "tiktoken",
            id="a chunk without log probabilities",
        ),
        pytest.param(
            [event(" red", logprobs=logprobs(" red")), event(" green", logprobs=logprobs())],
            [1, 1],
            "tiktoken",
            id="log probabilities of nothing",
        ),
        pytest.param(
            [event(" red", usage=5, logprobs=logprobs(" red")), total(5)],
            [5],
            "usage",
            id="usage before log probabilities",
        ),
        pytest.param(
            [
                {
                    "choices": [
                        {"index": 1, "delta": {"content": " red"}, "logprobs": logprobs("a", "b")},
                        {"index": 0, "delta": {"content": " red"}, "logprobs": logprobs("c")},
                    ]
                },
                event(" blue", 1, logprobs=logprobs("d", "e", "f")),
            ],
            [2, 1, 3],
            "logprobs",
            id="log probabilities of two choices in one event",
        ),
    ],
)
def test_the_tokens_of_each_chunk(events: list[dict[str, Any]], tokens: list[int], source: str | None) -> None:
    assert counted(received(events))[:2] == (tokens, source)


def test_an_echoed_prompt_has_no_tokens() -> None:
    texts = [" red gr", "een", " blue", " black"]
    events = [{"choices": [{"index": 0, "text": text, "logprobs": {"tokens": ["x", "y"]}}]} for text in texts]
    got = received(events, CompletionsAccumulator())
    assert counted(got) == ([2, 2, 2, 2], "logprobs", 4)
    assert counted(got, " red green") == ([0, 0, 1, 1], "tiktoken", 2)


def test_log_probabilities_of_the_responses_api() -> None:
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0}
    events = [{**delta, "delta": text, "logprobs": [{"token": "a"}, {"token": "b"}]} for text in WORDS[:2]]
    assert counted(received(events, ResponsesAccumulator()))[:2] == ([2, 2], "logprobs")


def tool_call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    call = {"index": index, "function": {"name": name, "arguments": arguments}}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([tool_call(0, "look_up", ""), tool_call(0, None, '{"ci'), tool_call(0, None, 'ty":1}')], id="one"),
        pytest.param(
            [tool_call(0, "f", "{"), tool_call(1, "g", '{"a"'), tool_call(0, None, "}"), tool_call(1, None, ":1}")],
            id="two at the same time",
        ),
        pytest.param([event(" red"), tool_call(0, "f", '{"a":1}'), tool_call(0, "f", '{"a":1}')], id="repeated"),
    ],
)
def test_the_tokens_of_tool_calls_add_up(events: list[dict[str, Any]]) -> None:
    by_chunk, source, whole = counted(received(events))
    assert (sum(by_chunk), source) == (whole, "tiktoken")
    assert whole > 2


def test_text_that_no_chunk_brought_belongs_to_the_last_chunk() -> None:
    calls = [{"index": at, "id": f"c{at}", "type": "function", "function": {"name": "f"}} for at in (0, 1)]
    events = [event(" red"), {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}]
    got = received(events)
    without = received([event(" red")])
    object.__setattr__(without, "choices", got.choices)
    assert counted(without)[0] == [counted(got)[2]]


TEXTS = st.text(
    st.one_of(st.sampled_from("a b\n.,1é日本語🙂👩🏽‍🚀　"), st.characters(exclude_categories=["Cs"])), max_size=60
)
PIECES = st.lists(
    st.tuples(TEXTS, st.integers(0, 2), st.sampled_from(["content", "reasoning_content", "refusal"])), max_size=12
)


@settings(deadline=None)  # as below
@given(PIECES)
@example([("👩🏽", 0, "content"), ("‍🚀", 0, "content")])
@example([("日", 1, "content"), ("本", 0, "refusal"), ("語", 1, "content")])
def test_tokens_of_chunks_add_up_for_any_text_and_any_cut(pieces: list[tuple[str, int, str]]) -> None:
    events = [{"choices": [{"index": index, "delta": {kind: text}}]} for text, index, kind in pieces]
    got = received(events)
    by_chunk, source, whole = counted(got)
    texts: dict[tuple[int, str], str] = {}
    for text, index, kind in pieces:
        texts[index, kind] = texts.get((index, kind), "") + text
    assert sum(by_chunk) == whole == sum(count_text(text, O200K) for text in texts.values())
    assert source == ("tiktoken" if any(texts.values()) else None)
    # The slow way: each token ends in the first chunk that the text reaches with the token's last byte.
    expected = dict.fromkeys(range(len(got.chunks)), 0)
    rows = got.chunks.to_dicts()
    names = {"content": "content", "reasoning_content": "reasoning", "refusal": "refusal"}
    for (index, kind), text in texts.items():
        own = [at for at, row in enumerate(rows) if (row["choice"], row["kind"]) == (index, names[kind])]
        ends = np.cumsum([len(rows[at]["text"].encode()) for at in own]).tolist()
        for end in np.cumsum([len(each) for each in _bytes(text)]).tolist():
            expected[next(at for at, reach in zip(own, ends, strict=True) if reach >= end)] += 1
    assert by_chunk == [n for at, n in expected.items() if rows[at]["kind"] in OUTPUT_KINDS]


def _bytes(text: str) -> list[bytes]:
    return encoding(O200K).decode_tokens_bytes(encoding(O200K).encode_ordinary(text))


@pytest.mark.parametrize("name", ["cl100k_base", O200K])
@settings(deadline=None)  # the first example loads the vocabulary
@given(text=TEXTS)
@example(text="a <|endoftext|> b")
@example(text="half \ud83d of a pair")
def test_the_ends_of_tokens(name: str, text: str) -> None:
    ends = token_ends(text, name).tolist()
    assert len(ends) == count_text(text, name)
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())


def test_a_long_text_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_PIECE", 7)
    text = "日本語 word 🙂🙂🙂🙂🙂🙂🙂🙂 end of it. "
    ends = token_ends(text, O200K)
    assert (len(ends), ends[-1]) == (count_text(text, O200K), len(text.encode()))
    events = [event(f"{first}{second}") for first, second in pairwise(f"{text} ")][::2]
    by_chunk, _, whole = counted(received(events))
    assert sum(by_chunk) == whole == count_text("".join(e["choices"][0]["delta"]["content"] for e in events), O200K)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_tokens_of_what_servers_send(name: str) -> None:
    api, data = transcript(name)
    got = receive(api, [data])
    by_chunk, source, whole = counted(got)
    assert source == {"vllm_both_fields": "usage", "openai_chat_logprobs": "logprobs"}.get(
        name, "tiktoken" if by_chunk else None
    )
    assert sum(by_chunk) == (got.usage.output_tokens if source == "usage" and got.usage else whole)
