"""Bodies are judged by their bytes, wherever the reads cut them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.api.body import AnswerBody
from deltatap.api.chat import ChatAccumulator
from deltatap.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.model import Received


def chunk(text: str, finish: str | None = None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}).encode()


HELLO, WORLD = chunk("Hello"), chunk(" world", "stop")
WHOLE = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "Hello world"}, "finish_reason": "stop"}]}, indent=1
).encode()
DONE = b"[DONE]"
SSE = b"data: " + HELLO + b"\n\ndata: " + WORLD + b"\n\n"
BOM = b"\xef\xbb\xbf"

# A body, and whether it has an end of its own: [DONE], or the end of a whole answer.
GOOD: dict[str, tuple[bytes, bool]] = {
    "an event stream": (SSE + b"data: [DONE]\n\n", True),
    "an event stream without [DONE]": (SSE, False),
    "a byte order mark": (BOM + SSE, False),
    "blank lines first": (b"\r\n\n  " + SSE, False),
    "a comment first": (b": hi\n\n" + SSE, False),
    "fields first": (b"retry: 5\nid: 1\nevent: message\n" + SSE, False),
    "a last record without its blank line": (SSE[:-1], False),
    "a last record without its line end": (SSE[:-2], False),
    "[DONE] without its line end": (SSE + b"data: [DONE]", True),
    "[DONE] and blanks": (SSE + b"data:  [DONE] \n\n", True),
    "a part of a record at the end": (SSE + b'data: {"choi', False),
    "a whole answer": (WHOLE, True),
    "a whole answer and blanks": (b"\n " + WHOLE + b"\n\n", True),
    "a whole answer after a byte order mark": (BOM + WHOLE, True),
    "a whole answer and [DONE]": (WHOLE + b"\n[DONE]", True),
    "a whole answer and an event": (WHOLE + b"\n\ndata: [DONE]\n\n", True),
    "a whole answer as an event": (b"data: " + WHOLE.replace(b"\n", b"") + b"\n\n", False),
    "lines of JSON": (HELLO + b"\n" + WORLD + b"\n", False),
    "lines of JSON and [DONE]": (HELLO + b"\r\n" + WORLD + b"\r\n[DONE]\r\n", True),
    "lines of JSON, blank lines between": (HELLO + b"\n\n\n" + WORLD, False),
    "a line of JSON, then events": (HELLO + b"\ndata: " + WORLD + b"\n\ndata: [DONE]\n\n", True),
}


def received(reads: Iterable[bytes], *, complete: bool = True) -> Received:
    accumulator = ChatAccumulator()
    body = AnswerBody(accumulator, "text/plain")
    for number, data in enumerate(reads):
        body.feed(data, float(number), number)
    body.end(complete=complete)
    return accumulator.finish()


def facts(found: Received) -> tuple[Any, ...]:
    return found.text, found.finish_reason, found.done, found.error, found.protocol_error


@pytest.mark.parametrize("case", GOOD)
def test_every_cut_gives_the_same_answer(case: str) -> None:
    data, done = GOOD[case]
    expected = ("Hello world", "stop", done, None, None)
    assert facts(received([data])) == expected
    assert facts(received(data[at : at + 1] for at in range(len(data)))) == expected
    for at in range(1, len(data), 3):
        assert facts(received([data[:at], data[at:]])) == expected


def test_lines_of_json_are_chunks_with_the_times_of_their_reads() -> None:
    found = received([HELLO + b"\n" + WORLD[:9], WORLD[9:] + b"\n[DONE]"])
    assert [(row["text"], row["ms"], row["read"]) for row in found.chunks.to_dicts() if row["kind"] == "content"] == [
        ("Hello", 0.0, 0),
        (" world", 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>Sign in</html>", "expected an event stream or a JSON object, found text/plain: <html>Sign in</html>"),
        (b"x" * 500, "found text/plain: " + "x" * 79 + "…"),
        (b"upstream  error\n", "found text/plain: upstream error"),
    ],
)
def test_what_is_no_answer_is_a_protocol_error(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        received([data])
    assert facts(received([data], complete=False)) == (None, None, False, None, None)


@pytest.mark.parametrize("data", [b"", b"\n\n", BOM, b": hi\n\n", b"event: x\n\n", b"data:\n\n"])
def test_an_answer_of_nothing_has_nothing(data: bytes) -> None:
    assert facts(received([data])) == (None, None, False, None, None)


@pytest.mark.parametrize("data", [WHOLE[:-1], b"{", b"[1]", b'{"choices": 3}'])
def test_json_that_is_no_answer_says_so_if_it_is_complete(data: bytes) -> None:
    assert received([data]).protocol_error
    assert received([data], complete=False).text is None


def test_an_answer_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltatap.api.body.MAX_WHOLE_BYTES", 100)
    with pytest.raises(ProtocolError, match="the answer exceeds 100 bytes"):
        received([b"{", b" " * 100])


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([*(data for data, _ in GOOD.values()), b"\n\n", BOM]))),
    st.booleans(),
)
def test_any_bytes_end_in_an_answer_or_a_protocol_error(reads: list[bytes], complete: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    try:
        received(reads, complete=complete)
    except ProtocolError:
        assert reads
