"""Chunks that are taken without decoding them leave the same behind as chunks that are decoded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.alike import around
from deltatap.api.chat import ChatAccumulator
from deltatap.api.sse import SSEDecoder
from deltatap.model import Chunks
from tests.unit.api.test_mutations import ODD
from tests.unit.api.test_transcripts import FOLDER, transcript
from tests.unit.api.test_whole_responses import places, replaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.model import Received

CHATS = sorted(path.stem for path in FOLDER.glob("*.sse") if transcript(path.stem)[0] == "chat")
TEXTS = st.sampled_from(
    [" the", "é", "日本", "😀", '"', "\\", "\n", "\u00a0", "~", "x~", "", "null", "stop", "m", "[DONE]", "\ud83d", "\ude00"]
) | st.text(max_size=4)  # fmt: skip


class Decoding(ChatAccumulator):
    """Decodes every chunk."""

    __slots__ = ()

    def _learn(self, chunk: dict[str, Any], data: bytes) -> None:
        """Learn nothing."""


def both(events: Sequence[tuple[str, bytes]]) -> tuple[Received, Received]:
    """What the two accumulators have after these events; they must agree after each of them."""
    found = []
    for kind in (ChatAccumulator, Decoding):
        accumulator = kind(keep_raw=True)
        for number, (name, data) in enumerate(events):
            accumulator.add(data, 20.0 * number, number // 2, name)
        found.append(accumulator.finish())
    return found[0], found[1]


def agree(events: Sequence[tuple[str, bytes]]) -> None:
    fast, slow = both(events)
    for column in Chunks.__slots__:
        # As bytes: a gap that is not a number is equal to itself.
        assert bytes(getattr(fast.chunks, column)) == bytes(getattr(slow.chunks, column)), column
    none = Chunks()
    assert replace(fast, chunks=none) == replace(slow, chunks=none)


def with_texts(data: bytes, texts: Sequence[str]) -> list[bytes]:
    """The chunk with each of these texts, written as servers write JSON: escaped or not."""
    found = []
    for number, text in enumerate(texts):
        chunk = json.loads(data)
        for choice in chunk["choices"] or ():
            for name in ("content", "reasoning_content", "reasoning", "refusal"):
                if isinstance(choice.get("delta"), dict) and choice["delta"].get(name):
                    choice["delta"][name] = text
        dumped = json.dumps(chunk, ensure_ascii=number % 3 == 0, separators=(",", ":")).encode("utf-8", "surrogatepass")
        found.append(dumped)
    return found


@pytest.mark.parametrize("name", CHATS)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_transcript_with_more_texts_and_arbitrary_values(name: str, data: st.DataObject) -> None:
    events: list[tuple[str, bytes]] = []
    for event in SSEDecoder().feed(transcript(name)[1]):
        events.append((event.event, event.data))
        if event.data.startswith(b"{") and b'"choices"' in event.data:
            events += [(event.event, other) for other in with_texts(event.data, data.draw(st.lists(TEXTS, max_size=4)))]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(events) - 1))
        kind, content = events[at]
        what = data.draw(st.sampled_from(["drop", "repeat", "replace", "bytes"]))
        if what == "drop" and len(events) > 1:
            del events[at]
        elif what == "repeat":
            events[at:at] = [events[data.draw(st.integers(0, len(events) - 1))]] * 2
        elif what == "bytes":
            place = data.draw(st.integers(0, len(content)))
            junk = data.draw(st.sampled_from([b"", b'"', b"\\", b"\x00", b"\xff", b"\xed\xa0\xbd", b"}", b","]))
            events[at] = kind, content[:place] + junk + content[place + 1 :]
        elif content.startswith(b"{"):
            try:
                value = json.loads(content)
            except ValueError:
                continue
            place = data.draw(st.sampled_from(list(places(value))))
            events[at] = kind, json.dumps(replaced(value, place, data.draw(ODD))).encode()
    agree(events)


def chunk(content: str, **more: Any) -> bytes:
    return json.dumps({"id": "a", "choices": [{"index": 0, "delta": {"content": content}}], **more}).encode()


@pytest.mark.parametrize(
    "between",
    [
        [chunk("x", id="b")],
        [b'{"id": "b", "choices": []}'],
        [chunk("x", model="other"), chunk("x", model=None)],
        [chunk("x", usage={"completion_tokens": 3})],
        [b'{"error": {"message": "oh"}}'],
        [b'{"choices": [{"index": 1, "delta": {"content": "x"}}]}'],
        [b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'],
        [b'{"choices": [{"index": 0, "delta": {"content": "\\ud83d"}}]}'],
        [b"not JSON"],
        [b"[DONE]"],
    ],
)  # fmt: skip
def test_other_chunks_in_between(between: list[bytes]) -> None:
    first = [chunk(text) for text in ("A", " b", "a", "~")]
    agree([("", data) for data in (*first, *between, *first)])
    agree([("", data) for data in (*first, *between, chunk("\ud83d"), *first)])


def test_most_chunks_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator, decoded = ChatAccumulator(), 0

    def counting(data: bytes) -> Any:
        nonlocal decoded
        decoded += 1
        return json.loads(data)

    monkeypatch.setattr(orjson, "loads", counting)
    for number in range(100):
        accumulator.add(chunk(f" {number}"), float(number), number)
    assert decoded == 3, "the first chunk, and twice to find out what surrounds its text"
    assert accumulator.finish().text == "".join(f" {number}" for number in range(100))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a": "x", "t": "x"}', "x"),  # which of them?
        (b'{"x": 1, "t": "\\u0078"}', "x"),  # this is a name
        (b'{"a": "x", "t": "\\u0078"}', "x"),  # another value
        (b'{"t": "a\\"x"}', 'a"x'),
        (b'{"t": "x"', "x"),
    ],
)
def test_what_surrounds_a_text_is_not_guessed(data: bytes, text: str) -> None:
    assert around(data, text, lambda chunk, other: {**chunk, "t": other}) is None


def test_only_a_plain_text_is_found() -> None:
    found = around(b'{"t": "x"}', "x", lambda _, other: {"t": other})
    assert found is not None
    assert found.text('{"t": "日本 ~"}'.encode()) == "日本 ~"
    for other in (
        b'{"t": ""}',
        b'{"t": "\\n"}',
        b'{"t": "\n"}',
        b'{"t": "\xff"}',
        b'{"t": "x", "u": "y"}',
        b'{"t": "x"',
    ):
        assert found.text(other) is None
