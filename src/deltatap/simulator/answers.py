"""The simulator's answers and their pace. The same prompt and seed give the same answer. Pure.

Texts are random words, some of them not ASCII, in pieces of one or more tiktoken tokens. Waits are log-normal, with a
long tail like those of real endpoints. The answer follows the request: tools are called, JSON matches its schema,
reasoning comes first. Traits add what only a server decides, such as a refusal. Each API's module parses the request
(:class:`ParsedRequest`) and turns the answer into its own JSON.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any

from deltatap.api.frames import Answer, Piece
from deltatap.tokens import count_text, encoding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.api.frames import Kind, ParsedRequest

ENCODING = "o200k_base"
_MAX_TOKENS = 16_384
_WORDS = (  # noqa: SIM905 - a list would have a line for each
    "the a of to and in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my now "
    "over such our man even most made after also did many off before must well back through years where much your "
    "way down should because long each just state those people too mister how little good world make very year "
    "still see own work men day get here between both under last while never same another know life us against "
    "three come great came right used take house use during without again place around home small found thought "
    "went say part once general high upon school every café naïve façade — “quoted” señor über Straße 東京 データ 你好 "
    "привет 🙂 🚀 π ≈ 3.14 100 2,048 C++ e.g. "
).split()


@dataclass(frozen=True, slots=True)
class Pace:
    """How long answers are and how fast they arrive.

    Attributes:
        ttft_ms: median time to the first token.
        ttft_sigma: standard deviation of its logarithm.
        itl_ms: median time between tokens.
        itl_sigma: standard deviation of its logarithm.
        tokens: median number of tokens in an answer.
        tokens_sigma: standard deviation of its logarithm.
        speed: factor by which every wait is shortened; 0 means no waits.
    """

    ttft_ms: float = 200.0
    ttft_sigma: float = 0.4
    itl_ms: float = 20.0
    itl_sigma: float = 0.3
    tokens: float = 120.0
    tokens_sigma: float = 0.6
    speed: float = 1.0


def answers(parsed: ParsedRequest, key: str, seed: int, pace: Pace, traits: Sequence[str] = ()) -> list[Answer]:
    """The choices for a request.

    Args:
        parsed: what the request asks for.
        key: identifies the request.
        seed: another seed gives other answers.
        pace: how long the answers are and how fast they arrive.
        traits: can contain `refusal` and `reasoning`.
    """
    return [
        _answer(parsed, random.Random(f"{seed}/{key}/{index}"), pace, traits)  # noqa: S311 - repeatable, not secret
        for index in range(parsed.choices)
    ]


def _answer(parsed: ParsedRequest, chance: random.Random, pace: Pace, traits: Sequence[str]) -> Answer:
    made = _without_waits(parsed, chance, pace, traits)
    waits = [chance.lognormvariate(log(pace.ttft_ms), pace.ttft_sigma)]
    waits += [chance.lognormvariate(log(pace.itl_ms), pace.itl_sigma) for _ in range(len(made.pieces) - 1)]
    scale = 0.0 if pace.speed == 0 else 1e-3 / pace.speed
    return replace(made, waits_s=tuple(wait * scale for wait in waits))


def _without_waits(parsed: ParsedRequest, chance: random.Random, pace: Pace, traits: Sequence[str]) -> Answer:
    limit = parsed.max_output or _MAX_TOKENS
    wanted = max(1, min(_MAX_TOKENS, round(chance.lognormvariate(log(pace.tokens), pace.tokens_sigma))))
    if "refusal" in traits:
        return _of_text("refusal", "I am sorry, I cannot help with that.")
    if parsed.tools:
        return _calls(parsed.tools if parsed.several_calls else parsed.tools[:1], chance)
    reasoned = _reasoned(chance) if "reasoning" in traits or parsed.reasoning else _NOTHING
    if parsed.schema is not None:
        return _joined(reasoned, _of_text("content", json.dumps(_filled(parsed.schema, chance), ensure_ascii=False)))
    text = _text(chance, wanted)
    tokens = encoding(ENCODING).encode_ordinary(text)[:wanted]
    finish = "stop"
    if len(tokens) > limit:
        tokens, finish = tokens[:limit], "length"
    pieces, sizes = _stopped(*_pieces(tokens), parsed.stop)
    content = Answer(tuple(Piece("content", piece) for piece in pieces), sum(sizes), 0, (), finish)
    if parsed.echo is not None:
        content = replace(content, pieces=(Piece("content", parsed.echo), *content.pieces))
    return _joined(reasoned, content)


def planted(answer: Answer, word: str, at: int) -> Answer:
    """The answer with a word inserted after this many pieces, split into two pieces."""
    at, half = min(at, len(answer.pieces)), len(word) // 2
    pieces = (Piece("content", f" {word[:half]}"), Piece("content", word[half:]))
    wait = answer.waits_s[-1] if answer.waits_s else 0.0
    return replace(
        answer,
        pieces=(*answer.pieces[:at], *pieces, *answer.pieces[at:]),
        waits_s=(*answer.waits_s[:at], wait, wait, *answer.waits_s[at:]),
        tokens=answer.tokens + count_text(f" {word}", ENCODING),
    )


_NOTHING = Answer((), 0, 0, (), "stop")


def _joined(first: Answer, last: Answer) -> Answer:
    return replace(
        last,
        pieces=(*first.pieces, *last.pieces),
        tokens=first.tokens + last.tokens,
        reasoning_tokens=first.reasoning_tokens + last.reasoning_tokens,
    )


def _of_text(kind: Kind, text: str, call: int = 0) -> Answer:
    pieces, sizes = _pieces(encoding(ENCODING).encode_ordinary(text))
    return Answer(tuple(Piece(kind, piece, call) for piece in pieces), sum(sizes), 0, (), "stop")


def _reasoned(chance: random.Random) -> Answer:
    made = _of_text("reasoning", _text(chance, chance.randint(8, 20)))
    return replace(made, reasoning_tokens=made.tokens)


def _calls(tools: Sequence[tuple[str, Mapping[str, Any]]], chance: random.Random) -> Answer:
    """One call of each tool."""
    made = _NOTHING
    for number, (name, schema) in enumerate(tools):
        arguments = json.dumps(_filled(schema, chance), ensure_ascii=False)
        called = Answer((Piece("call", name, number),), count_text(name, ENCODING), 0, (), "stop")
        made = _joined(_joined(made, called), _of_text("arguments", arguments, number))
    return replace(made, finish_reason="tool_calls")


def _filled(given: object, chance: random.Random) -> Any:  # noqa: ANN401 - any JSON
    """A value that matches a simple JSON schema. Of several types, it has the first one."""
    schema = given if isinstance(given, dict) else {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return chance.choice(schema["enum"])
    types = schema.get("type", "object")
    kind = str(types[0] if isinstance(types, list) and types else types)
    simple: Mapping[str, Any] = {
        "string": _text(chance, 3),
        "integer": chance.randint(0, 99),
        "number": round(chance.uniform(0, 99), 2),
        "boolean": chance.choice((True, False)),
        "null": None,
    }
    if kind in simple:
        return simple[kind]
    if kind == "array":
        return [_filled(schema.get("items") or {"type": "string"}, chance) for _ in range(2)]
    properties = schema.get("properties")
    return {name: _filled(its, chance) for name, its in properties.items()} if isinstance(properties, dict) else {}


def _text(chance: random.Random, tokens: int) -> str:
    """Sentences of at least this many tokens."""
    words: list[str] = []
    left = 0
    for _ in range(tokens):  # a word has at least one token
        if left == 0:
            left = chance.randint(5, 18)
            words.append(chance.choice(_WORDS).capitalize())
        else:
            words.append(chance.choice(_WORDS))
        left -= 1
        if left == 0:
            words[-1] += chance.choice((".", ".", ".", "?", "!", ".\n\n"))
    return " ".join(words)


def _pieces(tokens: Sequence[int]) -> tuple[list[str], list[int]]:
    cut = encoding(ENCODING)
    pieces, sizes = [], []
    held = b""
    size = 0
    for token in tokens:
        held += cut.decode_single_token_bytes(token)
        size += 1
        try:
            pieces.append(held.decode())
        except UnicodeDecodeError:
            continue
        sizes.append(size)
        held, size = b"", 0
    if size and pieces:  # the limit cuts a character in two: the first part is dropped
        sizes[-1] += size
    return pieces or [""], sizes or [size]


def _stopped(pieces: list[str], sizes: list[int], stop: Sequence[str]) -> tuple[list[str], list[int]]:
    """Cut before the first stop sequence."""
    text = "".join(pieces)
    ends = [at for sequence in stop if sequence and (at := text.find(sequence)) >= 0]
    if not ends:
        return pieces, sizes
    end, length = min(ends), 0
    for number, piece in enumerate(pieces):
        if length + len(piece) >= end:
            kept = piece[: end - length]
            return [*pieces[:number], kept] if kept or not number else pieces[:number], sizes[: number + 1]
        length += len(piece)
    return pieces, sizes
