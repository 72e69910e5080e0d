"""Every API reads back its own frames: text, reasoning, tool calls, finish_reason and usage, streamed and whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from deltatap.api.frames import Answer, Facts, Kind, Piece, usage
from deltatap.api.registry import NAMES, specification
from deltatap.api.sse import SSEDecoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.api.framing import Frames
    from deltatap.model import Received

SMILE = "\N{SLIGHTLY SMILING FACE}"
HALVES = (b"\\ud83d", b"\\ude42")
KINDS: tuple[Kind, ...] = ("content", "reasoning", "refusal", "arguments")
KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "completions": ("content",),
    "messages": ("content", "reasoning", "arguments"),  # a refusal is a stop_reason
}
REASONED = [Piece("reasoning", "Hm"), Piece("reasoning", "m"), Piece("content", "Yes"), Piece("content", f" {SMILE}.")]
CALLED = [Piece("call", "look_up", 0), Piece("arguments", '{"at"', 0), Piece("arguments", f':"{SMILE}"}}', 0)]


def frames(name: str) -> Frames:
    return specification(name).frames(Facts("1", 1_700_000_000, "m", usage(9, 4, 2), with_usage=True))


def stream(made: Frames, pieces: Iterable[Piece], finish: str) -> list[bytes]:
    sent = [*made.begin(), *made.role(0)]
    for piece in pieces:
        sent += made.piece(0, piece)
    return [*sent, *made.finish(0, finish), *made.end(finish)]


def received(name: str, sent: Iterable[bytes]) -> Received:
    accumulator, decoder = specification(name).accumulator(), SSEDecoder()
    for read, frame in enumerate(sent):
        for event in decoder.feed(frame):
            accumulator.add(event.data, float(read), read, event.event)
    return accumulator.finish()


def pieces_of(name: str) -> list[Piece]:
    return [piece for piece in REASONED if piece.kind in KINDS_OF.get(name, KINDS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_read_as_it_was_written(name: str) -> None:
    pieces = pieces_of(name)
    found = received(name, stream(frames(name), pieces, "stop"))
    assert (found.protocol_error, found.error, found.finished, found.output) == (None, None, True, True)
    assert found.text == f"Yes {SMILE}."
    assert found.choices[0].reasoning == ("".join(p.text for p in pieces if p.kind == "reasoning") or None)
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (9, 4)


@pytest.mark.parametrize("name", [name for name in NAMES if "arguments" in KINDS_OF.get(name, KINDS)])
def test_a_tool_call_is_read_as_it_was_written(name: str) -> None:
    found = received(name, stream(frames(name), CALLED, "tool_calls"))
    call = json.loads(found.choices[0].tool_calls or "[]")[0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("look_up", {"at": SMILE})


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_response_is_read_as_it_was_written(name: str) -> None:
    answer = Answer(tuple(pieces_of(name)), 4, 2, (), "stop")
    accumulator = specification(name).accumulator()
    accumulator.add_whole(json.dumps(frames(name).whole([answer])).encode())
    found = accumulator.finish()
    assert (found.protocol_error, found.finished, found.text) == (None, True, f"Yes {SMILE}.")
    assert found.usage is not None
    assert found.usage.output_tokens == 4


def halved(frame: bytes) -> list[bytes]:
    """A frame with the character becomes two frames, each with half a surrogate pair."""
    escaped = frame.replace(SMILE.encode(), b"".join(HALVES))
    return [escaped.replace(b"".join(HALVES), half) for half in HALVES] if b"".join(HALVES) in escaped else [escaped]


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NAMES for kind in KINDS if kind in KINDS_OF.get(name, KINDS)]
)
def test_a_character_cut_into_surrogate_halves_becomes_whole_again(name: str, kind: Kind) -> None:
    made = frames(name)
    sent = [*made.begin(), *made.role(0)]
    if kind == "arguments":
        sent += made.piece(0, Piece("call", "f"))
    sent += [half for frame in made.piece(0, Piece(kind, SMILE)) for half in halved(frame)]
    found = received(name, sent)
    choice = found.choices[0]
    texts = [choice.text, choice.reasoning, choice.refusal, *json.loads(choice.tool_calls or "[]")]
    assert found.protocol_error is None
    assert SMILE in json.dumps(texts, ensure_ascii=False)
