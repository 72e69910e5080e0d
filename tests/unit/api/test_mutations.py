"""Transcripts of the APIs with typed events, with events left out, repeated or moved, and with arbitrary values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.registry import specification
from deltatap.api.sse import SSEDecoder
from tests.unit.api.test_transcripts import FOLDER, transcript
from tests.unit.api.test_whole_responses import consistent, places, replaced

if TYPE_CHECKING:
    from deltatap.model import Received

NAMES = sorted(path.stem for path in FOLDER.glob("*.sse") if path.stem.startswith(("openai_responses", "anthropic")))
# Values that a field often has by mistake, and any JSON.
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1, 2**70, 1.5, "", "0", "Hi", [], {}, [[]], {"a": 1}, "\ud83d", "function_call", "shell_call", "tool_use", "message", "error"]
) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "item", "function", "arguments", "id", "error"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def well_formed(received: Received, *, streamed: bool) -> None:
    consistent(received)
    chunks = received.chunks.to_dicts()
    for choice in received.choices:
        for kind, text in (("content", choice.text), ("reasoning", choice.reasoning), ("refusal", choice.refusal)):
            (text or "").encode()
            of_kind = [chunk["text"] for chunk in chunks if (chunk["kind"], chunk["choice"]) == (kind, choice.index)]
            # Each half of a surrogate pair is a chunk of its own, which UTF-8 cannot encode.
            if streamed and "\ufffd" not in "".join(of_kind):
                assert "".join(of_kind) == (text or "")
        for call in json.loads(choice.tool_calls) if choice.tool_calls else ():
            assert type(call) is dict
    for found in (received.annotations, received.response_id, received.finish_reason):
        (found or "").encode()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(data=st.data())
def test_a_transcript_in_another_order_raises_no_exception(name: str, data: st.DataObject) -> None:
    api, content = transcript(name)
    events: list[tuple[str, Any]] = [(event.event, json.loads(event.data)) for event in SSEDecoder().feed(content)]
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(events) - 1))
        what = data.draw(st.sampled_from(["drop", "repeat", "move", "replace"]))
        if what == "drop" and len(events) > 1:
            del events[at]
        elif what == "repeat":
            events.insert(data.draw(st.integers(0, len(events))), events[at])
        elif what == "move":
            events.insert(data.draw(st.integers(0, len(events) - 1)), events.pop(at))
        else:
            kind, value = events[at]
            place = data.draw(st.sampled_from(list(places(value))))
            events[at] = data.draw(st.sampled_from([kind, ""])), replaced(value, place, data.draw(ODD))
    accumulator = specification(api).accumulator(keep_raw=True)
    for number, (kind, value) in enumerate(events):
        accumulator.add(json.dumps(value).encode(), float(number), number, kind)
    well_formed(accumulator.finish(), streamed=True)
    for _, value in events:
        whole = value.get("response", value.get("message", value)) if isinstance(value, dict) else value
        accumulator = specification(api).accumulator()
        accumulator.add_whole(json.dumps(whole).encode())
        well_formed(accumulator.finish(), streamed=False)


@pytest.mark.parametrize("name", NAMES)
def test_deep_nesting_raises_no_exception(name: str) -> None:
    api, content = transcript(name)
    events = [(event.event, json.loads(event.data)) for event in SSEDecoder().feed(content)]
    deep = b"[" * 900 + b"]" * 900
    for number, (kind, value) in enumerate(events):
        for place in places(value):
            accumulator = specification(api).accumulator()
            for at, (each, other) in enumerate(events):
                given = json.dumps(replaced(value, place, "\0") if at == number else other).encode()
                accumulator.add(given.replace(rb'"\u0000"', deep), 1.0, at, each if at != number else kind)
            well_formed(accumulator.finish(), streamed=True)
