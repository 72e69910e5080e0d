"""What the simulator answers, and at what pace: the same for the same prompt and seed. Pure.

Texts are made of a small stock of words, some of them beyond ASCII, cut where tiktoken cuts. Waits are log-normal, with
the tail that real endpoints have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from deltatap.tokens import count_chat_input, encoding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of an answer.

    Attributes:
        pieces: the text, cut as it is sent; several tokens stand together where one alone is no valid UTF-8.
        tokens: how many tokens that are.
        waits_s: before each piece, in seconds; the first is the time to the first token.
        finish_reason: stop or length.
    """

    pieces: tuple[str, ...]
    tokens: int
    waits_s: tuple[float, ...]
    finish_reason: str


def answers(body: Mapping[str, Any], key: str, seed: int, pace: Pace) -> list[Answer]:
    """The choices for a request; `key` is what tells requests apart."""
    count = body.get("n")
    return [
        _answer(body, random.Random(f"{seed}/{key}/{index}"), pace)  # noqa: S311 - repeatable, not secret
        for index in range(count if isinstance(count, int) and count > 0 else 1)
    ]


def input_tokens(body: Mapping[str, Any]) -> int:
    """What the request's messages count as input."""
    return count_chat_input(body["messages"], str(body.get("model")), ENCODING)


def _answer(body: Mapping[str, Any], chance: random.Random, pace: Pace) -> Answer:
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or _MAX_TOKENS
    wanted = max(1, min(_MAX_TOKENS, round(chance.lognormvariate(log(pace.tokens), pace.tokens_sigma))))
    text = _text(chance, wanted)
    cut = encoding(ENCODING)
    tokens = cut.encode_ordinary(text)[:wanted]
    finish = "stop"
    if len(tokens) > asked:
        tokens, finish = tokens[:asked], "length"
    pieces, sizes = _pieces(tokens)
    pieces, sizes = _stopped(pieces, sizes, body.get("stop"))
    waits = [chance.lognormvariate(log(pace.ttft_ms), pace.ttft_sigma)]
    waits += [chance.lognormvariate(log(pace.itl_ms), pace.itl_sigma) for _ in range(len(pieces) - 1)]
    scale = 0.0 if pace.speed == 0 else 1e-3 / pace.speed
    return Answer(tuple(pieces), sum(sizes), tuple(wait * scale for wait in waits), finish)


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
