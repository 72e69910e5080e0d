"""Whatever a server sends, no accumulator raises an exception, and everything that it returns can be stored.

The events are those of the transcripts with arbitrary JSON put in, and arbitrary bytes. They are also whole answers.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.registry import NAMES, specification
from deltatap.api.sse import ServerSentEvent, SSEDecoder
from deltatap.model import OUTPUT_KINDS, Received

FOLDER = Path(__file__).parents[2] / "transcripts"


def transcripts(api: str) -> list[list[ServerSentEvent]]:
    files = [path.read_bytes() for path in sorted(FOLDER.glob("*.sse"))]
    return [SSEDecoder().feed(data) for data in files if data.startswith(b": api: " + api.encode() + b"\n")]


def paths(value: Any, levels: int = 12) -> list[tuple[Any, ...]]:
    """The path to each place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, item in inner if levels for path in paths(item, levels - 1))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of the value with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


_FIELDS = st.sampled_from(
    ["error", "message", "detail", "code", "type", "status", "choices", "index", "delta", "text", "content", "role", "finish_reason", "native_finish_reason", "tool_calls", "function", "name", "arguments", "id", "usage", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "x_groq", "base_resp", "reasoning_details", "annotations", "citations", "images", "audio", "transcript", "refusal", "logprobs", "response", "output", "item", "output_index", "content_block", "call_id"]
)  # fmt: skip
_TEXTS = st.text(max_size=5) | st.sampled_from(
    ["\ud83d", "\ude42", "\0", "error", "stop", "null", "0", "{", '{"a":1}', "9" * 5000]
)
_NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, -1, 2**31, 2**63 - 1, 1e308, 0.0])
JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS | _TEXTS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
DEEP = json.loads("[" * 900 + "]" * 900)


def stored(received: Received) -> None:
    """Check that a table can hold everything that was received."""
    chunks = received.chunks
    assert bytes(chunks.utf8).decode() == "".join(chunks.text)
    assert (
        len(
            {
                len(column)
                for column in (
                    chunks.ms,
                    chunks.gap_ms,
                    chunks.end,
                    chunks.kind,
                    chunks.choice,
                    chunks.event,
                    chunks.read,
                )
            }
        )
        == 1
    )
    for choice in received.choices:
        for field in ("text", "finish_reason", "refusal", "reasoning", "tool_calls"):
            (getattr(choice, field) or "").encode()
        spoken = "".join(
            text
            for text, kind, index in zip(chunks.text, chunks.kind, chunks.choice, strict=True)
            if kind == 1 and index == choice.index
        )
        assert not len(chunks) or spoken == choice.text or "\ufffd" in spoken
        assert choice.tool_calls is None or isinstance(json.loads(choice.tool_calls), list)
        assert 0 <= choice.index < 2**31
    for name in ("content_filter", "logprobs", "moderation", "annotations"):
        found = getattr(received, name)
        if found is not None:
            found.encode()
            json.loads(found, parse_constant=pytest.fail)
    for name in ("response_model", "response_id", "system_fingerprint", "service_tier", "protocol_error"):
        (getattr(received, name) or "").encode()
    if received.usage is not None:
        assert all(count is None or 0 <= count <= 10**9 for count in asdict(received.usage).values())
    if received.error is not None:
        error = received.error
        assert all(len(text or "") <= 600 for text in (error.type, error.code, error.message))
        "".join(text or "" for text in (error.type, error.code, error.message)).encode()
        assert error.client_status is None or 400 <= error.client_status < 600
    if len(chunks):
        assert received.output == any(kind in OUTPUT_KINDS for kind in (chunk["kind"] for chunk in chunks.to_dicts()))


def receive(api: str, events: list[tuple[bytes, str]], *, whole: bool = False) -> None:
    accumulator = specification(api).accumulator(2, keep_raw=True)
    for number, (data, event) in enumerate(events):
        if whole:
            accumulator.add_whole(data)
        else:
            accumulator.add(data, float(number), number, event)
    stored(accumulator.finish())


@pytest.mark.parametrize("api", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_changed_transcripts(api: str, data: st.DataObject) -> None:
    events = data.draw(st.sampled_from(transcripts(api)))
    sent: list[tuple[bytes, str]] = []
    for event in events:
        try:
            value = json.loads(event.data)
        except ValueError:
            sent.append((event.data, event.event))
            continue
        for _ in range(data.draw(st.integers(0, 2))):
            value = put(value, data.draw(st.sampled_from(paths(value))), data.draw(JSON | st.just(DEEP)))
        sent.append((json.dumps(value).encode(), data.draw(st.sampled_from([event.event, "", "error", "ping"]))))
    receive(api, data.draw(st.permutations(sent)) if data.draw(st.booleans()) else sent)
    for one in sent[-3:]:
        receive(api, [one], whole=True)


@pytest.mark.parametrize("api", NAMES)
@settings(deadline=None, max_examples=40)
@given(
    events=st.lists(
        st.tuples(JSON, st.sampled_from(["", "error", "ping", "message", "response.completed", "message_delta"])),
        max_size=6,
    )
)
def test_any_json(api: str, events: list[tuple[Any, str]]) -> None:
    sent = [(json.dumps(value).encode(), event) for value, event in events]
    receive(api, sent)
    for one in sent:
        receive(api, [one], whole=True)


@pytest.mark.parametrize("api", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_bytes(api: str, data: st.DataObject) -> None:
    """Bytes of a stream are changed, left out and cut anywhere."""
    events = data.draw(st.sampled_from(transcripts(api)))
    stream = b"".join(
        (f"event: {event}\n" if event else "").encode() + b"data: " + text + b"\n\n" for text, event in events
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    changed = bytearray()
    for start, end in pairwise([0, *cuts, len(stream)]):
        changed += stream[start:end][data.draw(st.integers(0, 3)) :] + data.draw(st.binary(max_size=4))
    decoder = SSEDecoder()
    received = decoder.feed(bytes(changed))
    receive(api, [(event.data, event.event) for event in (*received, *decoder.finish())])
    receive(api, [(bytes(changed), "")], whole=True)
