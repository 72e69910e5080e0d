"""Replaces secrets in a finished call, so that no row, journal, log or message contains them. Pure.

Some servers repeat the key that they refuse, and a model can repeat a key that a gateway put into its prompt. A secret
may be split over chunks, or written with JSON's escapes. Chunks still join to the text of their choice. Values of fewer
than 8 characters, such as `EMPTY`, are not secrets.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from dataclasses import fields, is_dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from deltatap.api.values import decode, to_json
from deltatap.model import KINDS, OUTPUT_KINDS, Chunks, Received

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    _Record = TypeVar("_Record")

_STRUCK = "***"
_SHORTEST = 8
# A message is cut at its maximum length, which may be in the middle of a secret.
_SHORTEST_START = 6
# Maximum number of characters that stand for one character of a secret, if JSON escapes it.
ESCAPED_CHAR = 13
# How deep an event is searched for parts of a secret.
_LEVELS = 100
_OUTPUT = frozenset(KINDS.index(kind) for kind in OUTPUT_KINDS)


def without_secrets(record: _Record, secrets: Collection[str]) -> _Record:
    """The call, or its error, without any of the secrets."""
    hidden = tuple(sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True))
    return _struck(record, hidden) if hidden else record


def shown_end(text: str, secrets: Collection[str], size: int, *, whole: bool) -> str:
    """The last characters of a text that is still growing, without any of the secrets and without parts of them.

    Args:
        text: the end of the text: more characters than are shown, since a secret may be cut at its start.
        secrets: the values to replace.
        size: maximum number of characters to show.
        whole: whether `text` is the whole text so far.
    """
    hidden = tuple(sorted((secret for secret in secrets if len(secret) >= _SHORTEST), key=len, reverse=True))
    text = _struck_text(text, hidden)
    for secret in hidden:
        room = ESCAPED_CHAR * len(secret)
        if not whole:
            text = text[room:]
        # The rest of the secret may arrive later.
        begun = [found.start() for found in _escaped(secret[:_SHORTEST_START]).finditer(text, max(0, len(text) - room))]
        text = text[: min(begun, default=len(text))]
    return text[-size:]


def _struck(value: Any, secrets: tuple[str, ...]) -> Any:  # noqa: ANN401 - any field of a record
    """The value without the secrets; the same object if it has none."""
    if isinstance(value, str):
        return _struck_text(value, secrets)
    if isinstance(value, bytes):
        return _struck_bytes(value, secrets)
    if isinstance(value, tuple):
        items = [_struck(item, secrets) for item in value]
        return tuple(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not is_dataclass(value) or isinstance(value, type):
        return value
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    changed = {name: new for name, old in found.items() if (new := _struck(old, secrets)) is not old}
    if isinstance(value, Received):
        changed |= _struck_pieces(value, secrets, spoken="choices" in changed)
    return replace(value, **changed) if changed else value


def _struck_text(text: str, secrets: tuple[str, ...]) -> str:
    if spans := _spans(text, secrets):
        text = _without(text, spans)
    start = text.removesuffix("…")
    if start is not text:
        for secret in secrets:
            if cut := _cut_start(start, secret):
                return f"{start[:-cut]}{_STRUCK}…"
    return text


def _spans(text: str, secrets: Collection[str]) -> list[tuple[int, int]]:
    """Where the secrets are, in order. Secrets that overlap count as one."""
    bare = text.replace("\\", "")
    found = [
        match.span()
        for secret in secrets
        if secret in text or (bare != text and _can_match(text, bare, secret))
        for match in _escaped(secret).finditer(text)
    ]
    spans: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if spans and first < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return spans


def _without(text: str, spans: Iterable[tuple[int, int]], start: int = 0) -> str:
    """A text, or the piece of it that starts here, without the spans. Where a span starts, there is ``***``."""
    kept, at = [], 0
    for first, last in spans:
        kept.append(text[at : max(at, first - start)])
        if first >= start:
            kept.append(_STRUCK)
        at = last - start
    return "".join((*kept, text[at:]))


def _struck_bytes(data: bytes, secrets: tuple[str, ...]) -> bytes:
    for secret in secrets:
        data = data.replace(secret.encode(), _STRUCK.encode()) if secret.encode() in data else data
        bare = data.replace(b"\\", b"")
        if bare != data and _can_match_bytes(data, bare, secret):
            data = _escaped_bytes(secret).sub(_STRUCK.encode(), data)
    return data


def _cut_start(text: str, secret: str) -> int:
    """How many characters at the end of a cut text are the start of the secret."""
    return next((n for n in range(len(secret) - 1, _SHORTEST_START - 1, -1) if text.endswith(secret[:n])), 0)


@functools.lru_cache(maxsize=256)
def _escaped(secret: str) -> re.Pattern[str]:
    """Matches the secret however JSON writes it, and JSON inside JSON: each character plain, or after backslashes.

    The number of backslashes is bounded, because the time to search a text of backslashes is quadratic otherwise.
    """
    return re.compile("".join(rf"\\{{0,8}}(?:{re.escape(char)}|u(?i:{ord(char):04x}))" for char in secret))


@functools.lru_cache(maxsize=256)
def _escaped_bytes(secret: str) -> re.Pattern[bytes]:
    return re.compile(_escaped(secret).pattern.encode())


def _can_match(text: str, bare: str, secret: str) -> bool:
    """Whether :func:`_escaped` can match. That pattern has no literal start, so it takes long for a large text.

    Args:
        text: to be searched.
        bare: the text without its backslashes.
        secret: of the pattern.
    """
    return secret.replace("\\", "") in bare or _coded(secret).search(text) is not None


def _can_match_bytes(data: bytes, bare: bytes, secret: str) -> bool:
    return secret.replace("\\", "").encode() in bare or _coded_bytes(secret).search(data) is not None


@functools.lru_cache(maxsize=256)
def _coded(secret: str) -> re.Pattern[str]:
    """Matches any character of the secret in the form `u00XX`."""
    return re.compile(f"u(?i:{'|'.join(sorted({f'{ord(char):04x}' for char in secret}))})")


@functools.lru_cache(maxsize=256)
def _coded_bytes(secret: str) -> re.Pattern[bytes]:
    return re.compile(_coded(secret).pattern.encode())


def _struck_pieces(received: Received, secrets: tuple[str, ...], *, spoken: bool) -> dict[str, Any]:
    """The fields whose pieces, when joined, contain a secret.

    Args:
        received: with the fields as they arrived.
        secrets: the values to replace.
        spoken: whether the text of a choice contains a secret, so its pieces are in chunks and events.
    """
    changed: dict[str, Any] = {}
    utf8 = bytes(received.chunks.utf8)
    if spoken or _struck_bytes(utf8, secrets) is not utf8:
        changed["chunks"] = _struck_chunks(received.chunks, secrets)
    if spoken:
        # Log probabilities also hold the text, token by token, and as byte values.
        changed["logprobs"] = None
        if received.raw is not None:
            changed["raw"] = _struck_events(received.raw, secrets)
    return changed


def _struck_chunks(chunks: Chunks, secrets: tuple[str, ...]) -> Chunks:
    texts = chunks.text
    groups: dict[tuple[int, int], list[int]] = {}
    for at, (choice, kind) in enumerate(zip(chunks.choice, chunks.kind, strict=True)):
        if kind in _OUTPUT:
            groups.setdefault((choice, kind), []).append(at)
    for group in groups.values():
        for at, text in zip(group, struck_pieces([texts[at] for at in group], secrets), strict=True):
            texts[at] = text
    new = Chunks()
    columns = zip(chunks.ms, chunks.gap_ms, texts, chunks.kind, chunks.choice, chunks.event, chunks.read, strict=True)
    for ms, gap_ms, text, kind, choice, event, read in columns:
        new.append(ms, gap_ms, _struck_text(text, secrets), kind, choice, event, read)
    return new


def struck_pieces(pieces: Sequence[str], secrets: Collection[str]) -> list[str]:
    """The pieces of a text without the secrets in it. The piece in which a secret starts gets ``***``."""
    spans = _spans("".join(pieces), secrets)
    if not spans:
        return [*pieces]
    firsts, lasts = zip(*spans, strict=True)
    ends = [0, *accumulate(len(piece) for piece in pieces)]
    return [
        _without(piece, spans[bisect_right(lasts, start) : bisect_left(firsts, end)], start)
        for piece, (start, end) in zip(pieces, pairwise(ends), strict=True)
    ]


def _struck_events(raw: Sequence[tuple[str, bytes]], secrets: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
    """The events without a secret that is split over them: texts at the same place in each event belong together."""
    values = [_decoded(data) for _, data in raw]
    places: dict[tuple[object, ...], list[tuple[int, Any, Any]]] = {}
    for number, value in enumerate(values):
        for place, holder, key in _texts(value):
            places.setdefault(place, []).append((number, holder, key))
    changed = set()
    for found in places.values():
        pieces = [holder[key] for _, holder, key in found]
        for (number, holder, key), old, new in zip(found, pieces, struck_pieces(pieces, secrets), strict=True):
            if new != old:
                holder[key] = new
                changed.add(number)
    return tuple(
        (kind, _struck_bytes(to_json(values[at]).encode() if at in changed else data, secrets))
        for at, (kind, data) in enumerate(raw)
    )


def _decoded(data: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return decode(data)
    except ValueError:
        return None


def _texts(value: Any, place: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any, Any]]:  # noqa: ANN401
    """Every text in a value: its place, the object or list that holds it, and its key there."""
    items = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
    for key, inner in items:
        if type(inner) is str:
            yield (*place, key), value, key
        elif len(place) < _LEVELS:
            yield from _texts(inner, (*place, key))
