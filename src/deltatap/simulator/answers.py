"""What the simulator answers, and at what pace: the same for the same prompt and seed. Pure.

Texts are made of a small stock of words, some of them beyond ASCII, cut where tiktoken cuts. Waits are log-normal, with
the tail that real endpoints have. What a request asks for is answered so: tools are called, JSON is JSON, reasoning
comes first. What is of the server's choice (a refusal) is asked for by a trait.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deltatap.api.input_tokens import count_input
from deltatap.tokens import count_text, encoding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.model import Api

Kind = Literal["content", "reasoning", "refusal", "call", "arguments"]

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
    """How long answers are and how fast they come.

    Attributes:
        ttft_ms: the median of the time to the first token.
        ttft_sigma: of its logarithm.
        itl_ms: the median of the time between tokens.
        itl_sigma: of its logarithm.
        tokens: the median of an answer's length.
        tokens_sigma: of its logarithm.
        speed: how much faster everything goes; 0 is without any wait.
    """

    ttft_ms: float = 200.0
    ttft_sigma: float = 0.4
    itl_ms: float = 20.0
    itl_sigma: float = 0.3
    tokens: float = 120.0
    tokens_sigma: float = 0.6
    speed: float = 1.0


class Piece(NamedTuple):
    """A piece of an answer.

    Attributes:
        kind: what it is of; ``call`` is a tool call's name.
        text: never cut inside a character; several tokens stand together where one alone is no valid UTF-8.
        call: number of the tool call.
    """

    kind: Kind
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of an answer.

    Attributes:
        pieces: as they are sent.
        tokens: how many tokens that are.
        reasoning_tokens: how many of them are reasoning.
        waits_s: before each piece, in seconds; the first is the time to the first token.
        finish_reason: stop, length or tool_calls.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    reasoning_tokens: int
    waits_s: tuple[float, ...]
    finish_reason: str

    def text(self, kind: Kind = "content") -> str:
        """All of one kind."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)

    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each tool call."""
        numbers = sorted({piece.call for piece in self.pieces if piece.kind == "call"})
        return [(self._of(number, "call"), self._of(number, "arguments")) for number in numbers]

    def _of(self, call: int, kind: Kind) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == kind and piece.call == call)


def answers(
    body: Mapping[str, Any], key: str, seed: int, pace: Pace, api: Api = "chat", traits: Sequence[str] = ()
) -> list[Answer]:
    """The choices for a request.

    Args:
        body: the request.
        key: what tells requests apart.
        seed: another seed gives other answers.
        pace: how long they are and how fast they come.
        api: whose form the body has.
        traits: ``refusal`` and ``reasoning``, where the server chooses them.
    """
    count = body.get("n")
    return [
        _answer(body, random.Random(f"{seed}/{key}/{index}"), pace, api, traits)  # noqa: S311 - repeatable, not secret
        for index in range(count if isinstance(count, int) and count > 0 and api != "responses" else 1)
    ]


def input_tokens(body: Mapping[str, Any], api: Api = "chat") -> int:
    """What the request counts as input."""
    return count_input(body, api, str(body.get("model")), ENCODING).tokens


def _answer(body: Mapping[str, Any], chance: random.Random, pace: Pace, api: Api, traits: Sequence[str]) -> Answer:
    made = _made(body, chance, pace, api, traits)
    waits = [chance.lognormvariate(log(pace.ttft_ms), pace.ttft_sigma)]
    waits += [chance.lognormvariate(log(pace.itl_ms), pace.itl_sigma) for _ in range(len(made.pieces) - 1)]
    scale = 0.0 if pace.speed == 0 else 1e-3 / pace.speed
    return replace(made, waits_s=tuple(wait * scale for wait in waits))


def _made(body: Mapping[str, Any], chance: random.Random, pace: Pace, api: Api, traits: Sequence[str]) -> Answer:
    """An answer without its waits."""
    asked = _limit(body)
    wanted = max(1, min(_MAX_TOKENS, round(chance.lognormvariate(log(pace.tokens), pace.tokens_sigma))))
    tools = body.get("tools")
    if "refusal" in traits:
        return _of_text("refusal", "I am sorry, I cannot help with that.")
    if isinstance(tools, list) and tools and body.get("tool_choice") != "none":
        return _calls(tools, chance, several=body.get("parallel_tool_calls") is not False)
    reasoned = _reasoned(chance) if "reasoning" in traits or _reasons(body) else _NOTHING
    if (schema := _schema(body)) is not None:
        return _joined(reasoned, _of_text("content", json.dumps(_filled(schema, chance), ensure_ascii=False)))
    text = _text(chance, wanted)
    tokens = encoding(ENCODING).encode_ordinary(text)[:wanted]
    finish = "stop"
    if len(tokens) > asked:
        tokens, finish = tokens[:asked], "length"
    pieces, sizes = _stopped(*_pieces(tokens), body.get("stop"))
    content = Answer(tuple(Piece("content", piece) for piece in pieces), sum(sizes), 0, (), finish)
    if api == "completions" and body.get("echo"):
        content = replace(content, pieces=(Piece("content", str(body.get("prompt"))), *content.pieces))
    return _joined(reasoned, content)


_NOTHING = Answer((), 0, 0, (), "stop")


def _limit(body: Mapping[str, Any]) -> int:
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    return next((int(body[name]) for name in names if body.get(name)), _MAX_TOKENS)


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


def _reasons(body: Mapping[str, Any]) -> bool:
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")
    return effort not in (None, "none")


def _reasoned(chance: random.Random) -> Answer:
    made = _of_text("reasoning", _text(chance, chance.randint(8, 20)))
    return replace(made, reasoning_tokens=made.tokens)


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON that is asked for; None where text is."""
    text = body.get("text")
    given = body.get("response_format") or (text.get("format") if isinstance(text, dict) else None)
    if not isinstance(given, dict) or given.get("type") not in ("json_object", "json_schema"):
        return None
    holder = given.get("json_schema", given)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    return schema if isinstance(schema, dict) else {"type": "object", "properties": {"answer": {"type": "string"}}}


def _calls(tools: Sequence[Any], chance: random.Random, *, several: bool) -> Answer:
    """A call of each tool, or of the first."""
    made = replace(_NOTHING, finish_reason="tool_calls")
    for number, tool in enumerate(tools if several else tools[:1]):
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name, schema = str(function.get("name")), function.get("parameters")
        arguments = json.dumps(_filled(schema if isinstance(schema, dict) else {}, chance), ensure_ascii=False)
        called = Answer((Piece("call", name, number),), count_text(name, ENCODING), 0, (), "stop")
        made = replace(
            _joined(_joined(made, called), _of_text("arguments", arguments, number)), finish_reason="tool_calls"
        )
    return made


def _filled(schema: Mapping[str, Any], chance: random.Random) -> Any:  # noqa: ANN401 - any JSON
    """A value that fits a simple JSON schema."""
    if schema.get("enum"):
        return chance.choice(schema["enum"])
    kind = schema.get("type", "object")
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
    return {name: _filled(given, chance) for name, given in (schema.get("properties") or {}).items()}


def _text(chance: random.Random, tokens: int) -> str:
    """Sentences of at least so many tokens."""
    words: list[str] = []
    left = 0
    for _ in range(tokens):  # a word is a token at least
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
    if size and pieces:  # the length cut a character: as much as came, nothing of it
        sizes[-1] += size
    return pieces or [""], sizes or [size]


def _stopped(pieces: list[str], sizes: list[int], stop: object) -> tuple[list[str], list[int]]:
    """Cut before the first stop sequence."""
    sequences = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    text = "".join(pieces)
    ends = [at for sequence in sequences if isinstance(sequence, str) and sequence and (at := text.find(sequence)) >= 0]
    if not ends:
        return pieces, sizes
    end, length = min(ends), 0
    for number, piece in enumerate(pieces):
        if length + len(piece) >= end:
            kept = piece[: end - length]
            return [*pieces[:number], kept] if kept or not number else pieces[:number], sizes[: number + 1]
        length += len(piece)
    return pieces, sizes
