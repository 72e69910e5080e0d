from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder as OpenAIDecoder

from deltatap.api.sse import ServerSentEvent, SSEDecoder
from deltatap.errors import EventTooLargeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

E = ServerSentEvent


def decode(reads: Iterable[bytes]) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    return [event for read in reads for event in decoder.feed(read)]


# The examples of the HTML Living Standard, 9.2.6, and the rules in its text.
TABLE: list[tuple[bytes, list[ServerSentEvent]]] = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [E(b"YHOO\n+2\n10")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [E(b"first event"), E(b"second event"), E(b" third event")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [E(b""), E(b"\n")]),
    (b"data:test\n\ndata: test\n\n", [E(b"test"), E(b"test")]),
    (b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n", [E(b"73857293", "add"), E(b"2153", "remove")]),
    (b"event: lonely\n\ndata: x\n\n", [E(b"x")]),
    (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [E(b"a"), E(b"b"), E(b"c")]),
    (b"data: a\r\n\ndata: b\n\r\n", [E(b"a"), E(b"b")]),
    (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [E(b"a")]),
    (b'data: {"x": "\xc3\xa9\xf0\x9f\x99\x82"}\n\n', [E(b'{"x": "\xc3\xa9\xf0\x9f\x99\x82"}')]),
    (b"retry: 10\nunknown: 1\ndata: a\n\n", [E(b"a")]),
    (b"data: a\n\ndata: cut short", [E(b"a")]),
    (b"id: 9\x00\nid: " + b"9" * 50 + b"\nretry: x\ndata: a\x00b\n\n", [E(b"a\x00b")]),
    (
        b'error: {"code": 400}\n\nerror:{}\ndata: x\n\ndata: y\n\n',
        [E(b'{"code": 400}', "error"), E(b"{}\nx", "error"), E(b"y")],
    ),
    (b"errors: x\n\n", []),
    # JSON values without a blank line between them, and JSON without data:.
    (b'data: {"a":1}\ndata: {"a":2}\r\ndata: [DONE]\n\n', [E(b'{"a":1}'), E(b'{"a":2}'), E(b"[DONE]")]),
    (b'data: {"a":\ndata: {}\ndata: }\n\n', [E(b'{"a":\n{}\n}')]),
    (b"data: [{},\ndata: {}]\n\n", [E(b"[{},\n{}]")]),
    (
        b'{\n  "error": {\n    "id: x": 1\n  }\n}\ndata: {}\n\n',
        [E(b'{\n  "error": {\n    "id: x": 1\n  }\n}'), E(b"{}")],
    ),
    (b'[\n{"a": 1}\n]\n: ping\n\nx: y\n\n', [E(b'[\n{"a": 1}\n]')]),
    (b"[DONE]\n\n[INFO] x\n\n{{x\n\n", [E(b"[DONE]")]),
    (b"event: error\n\ndata: x\n\n", [E(b"", "error"), E(b"x")]),
    (b"\n\n\n", []),
    (b"", []),
]


@pytest.mark.parametrize(("content", "events"), TABLE)
def test_every_cut_gives_the_same_events(content: bytes, events: list[ServerSentEvent]) -> None:
    assert decode([content]) == events
    assert decode(content[at : at + 1] for at in range(len(content))) == events
    for at in range(len(content)):
        assert decode([content[:at], content[at:]]) == events


_LINES = st.sampled_from(
    [
        b"data: x",
        b"data",
        b"data:",
        b'data: {"a": 1',
        b"event: e",
        b"error: {}",
        b": c",
        b"id: 1",
        b"",
        b"",
        b"zzz",
        "data: é—🙂".encode(),
    ]
)
_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(_LINES, _ENDS), max_size=30).map(lambda parts: b"".join(line + end for line, end in parts))


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(STREAMS, st.data())
def test_any_cuts_of_any_stream_give_the_same_events(content: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    reads = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert decode(reads) == decode([content])


@pytest.mark.parametrize(
    ("content", "last"),
    [
        (b"", None),
        (b"\xef\xbb", None),
        (b"data: a\n\n", None),
        (b": ping", None),
        (b"event: e", None),
        (b"data: [DONE]\n", E(b"[DONE]")),
        (b"data: [DONE]", E(b"[DONE]")),
        (b"\xef\xbb\xbfdata: a", E(b"a")),
        (b"data: a\r", E(b"a")),
        (b"data: a\r\n", E(b"a")),
        (b'event: e\ndata: {"a":\ndata: 1}', E(b'{"a":\n1}', "e")),
        (b"data: a\nda", E(b"a")),
        (b"error: {}", E(b"{}", "error")),
        (b'{"error": "gone"}', E(b'{"error": "gone"}')),
        (b"{: x}", E(b"{: x}")),
        (b"{: x", None),
    ],
)
def test_the_end_of_a_stream_returns_what_is_pending(content: bytes, last: ServerSentEvent | None) -> None:
    for reads in ([content], [content[at : at + 1] for at in range(len(content))]):
        decoder = SSEDecoder()
        for read in reads:
            decoder.feed(read)
        assert decoder.finish() == ([] if last is None else [last])
        assert decoder.finish() == []


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(
    st.lists(
        st.tuples(_LINES.filter(lambda line: b"error" not in line), st.sampled_from([b"\n", b"\r\n"])), max_size=30
    )
)
def test_the_openai_client_decodes_the_same(parts: list[tuple[bytes, bytes]]) -> None:
    """Compare with an independent implementation.

    It differs from the standard in three things, which are left out or mapped: it dispatches events without data, joins
    nothing for ``data`` without a colon differently, and knows lone CRs only within one read.
    """
    content = b"".join(line + end for line, end in parts)

    async def theirs() -> list[tuple[str, str]]:
        async def reads() -> AsyncIterator[bytes]:
            yield content

        return [(event.data, event.event or "") async for event in OpenAIDecoder().aiter_bytes(reads())]

    ours = [(event.data.decode(), event.event) for event in decode([content])]
    assert [event for event in asyncio.run(theirs()) if event[0]] == [event for event in ours if event[0]]


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (b"data: " + b"x" * 500_000 + b"\n\n", b"x" * 500_000),
        (b"data\n" * 100_000 + b"\n", b"\n" * 99_999),
        (b"data: x\r\n" * 60_000 + b"\r\n", b"x\n" * 59_999 + b"x"),
        (b"id: " + b"9" * 500_000 + b"\ndata: x\n\n", b"x"),
    ],
)
def test_single_bytes_are_decoded_in_linear_time(content: bytes, data: bytes) -> None:
    started = time.process_time()
    assert decode(content[at : at + 1] for at in range(len(content))) == [E(data)]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("content", [b"data: " + b"x" * 50, b"data: xxxxxxxx\n" * 8 + b"\n"])
def test_too_long_lines_and_events_are_refused(content: bytes) -> None:
    with pytest.raises(EventTooLargeError, match="exceed"):
        SSEDecoder(max_event_bytes=40).feed(content)


def test_the_limit_applies_to_events_not_to_streams() -> None:
    decoder = SSEDecoder(max_event_bytes=40)
    assert sum(len(decoder.feed(b"data: xxxxxxxxxxxxxxxx\n\n")) for _ in range(100)) == 100
