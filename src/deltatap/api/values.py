"""JSON values as servers send them: how they are decoded, and how they are stored as text. Pure.

Servers send JSON that Python, UTF-8 or Arrow cannot hold: halves of surrogate pairs, endless numbers, NaN, deep
nesting. This module returns only valid values. It also reads indexes and numbers of tokens; it knows nothing else about
the meaning of a value.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

_SURROGATE = re.compile("[\ud800-\udfff]")
# orjson encodes at most 254 levels.
_LEVELS = 200
MOST_TOKENS = 10**9
_DIGITS = 19
_BITS = 63


def decode(data: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The JSON value in these bytes. Invalid UTF-8 becomes U+FFFD, as in a browser. Texts can have control characters.

    Raises:
        ValueError: if this is not JSON, or if it nests too deeply.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # orjson refuses half a surrogate pair, invalid UTF-8, NaN and numbers that exceed a double.
        try:
            return _DECODER.decode(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from None


def decode_first(text: str) -> Any:  # noqa: ANN401 - any JSON
    """The JSON value at the start of a text. Whatever follows it is ignored.

    Raises:
        ValueError: if there is none.
    """
    try:
        return _DECODER.raw_decode(text.lstrip())[0]
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def to_json(value: object) -> str:
    """Compact JSON of a decoded value. Always valid, and valid UTF-8."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # also if it nests too deeply
        return orjson.dumps(_plain(value, _LEVELS)).decode()


def clean(text: str) -> str:
    """The text without halves of surrogate pairs, which UTF-8 cannot encode."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def bounded(text: str, limit: int) -> str:
    """The cleaned text, cut at this number of characters. An ellipsis shows the cut."""
    return clean(text if len(text) <= limit else text[: limit - 1] + "…")


def joined(text: str) -> str:
    """The text with pairs of surrogates as one character. They come in halves if a server cuts text between them."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _integer(digits: str) -> int | str:
    """An integer, or its digits if there are too many of them."""
    return int(digits) if len(digits) <= _DIGITS else digits


_DECODER = json.JSONDecoder(parse_int=_integer, strict=False)


def _plain(value: object, levels: int) -> object:
    """The value in a form that orjson can encode. Values below the deepest level become an ellipsis."""
    plain: object = value
    if type(value) is str:
        plain = clean(value)
    elif type(value) is int and value.bit_length() > _BITS:
        plain = str(value)
    elif type(value) is float and not math.isfinite(value):
        plain = None
    elif type(value) in (dict, list) and levels == 0:
        plain = "…"
    elif type(value) is list:
        plain = [_plain(item, levels - 1) for item in value]
    elif type(value) is dict:
        plain = {clean(key): _plain(item, levels - 1) for key, item in value.items()}
    return plain


def to_index(value: object) -> int | None:
    """The value as the index of a choice or a tool call; None if it is not an index."""
    if type(value) is str and value.isdecimal() and len(value) <= len(str(2**31)):
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**31 else None


def count(value: object) -> int | None:
    """The value if it is a possible number of tokens."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
