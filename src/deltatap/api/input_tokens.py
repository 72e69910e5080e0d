"""How many tokens a request has as input, by OpenAI's published rules; what has no rule is counted too, and said so.

Knows the rules for messages, tools and images. Sources: OpenAI's cookbook, "How to count tokens with tiktoken"
(messages, and its section on tool calls), and OpenAI's guide "Images and vision", calculating costs. Leaves encodings
to ``tokens.py``.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imagesize

from deltatap.tokens import count_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.model import Api


@dataclass(frozen=True, slots=True)
class InputTokens:
    """A count, and whether a part of it has no published rule."""

    tokens: int = 0
    approximate: bool = False

    def __add__(self, other: InputTokens) -> InputTokens:
        return InputTokens(self.tokens + other.tokens, self.approximate or other.approximate)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Images by tiles of 512 pixels: `base` for any image, `tile` for each, none in low detail."""

    base: int
    tile: int

    def count(self, size: tuple[int, int], *, low: bool) -> int:
        if low:
            return self.base
        width, height = _shrunk(*size, longest=2048, shortest=768)
        return self.base + self.tile * math.ceil(width / 512) * math.ceil(height / 512)


@dataclass(frozen=True, slots=True)
class _Patches:
    """Images by patches of 32 pixels, 1,536 at most, times the model's multiplier."""

    multiplier: float

    def count(self, size: tuple[int, int], *, low: bool) -> int:  # noqa: ARG002 - detail does not count here
        width, height = size
        patches = math.ceil(width / 32) * math.ceil(height / 32)
        if patches > _MOST_PATCHES:
            by = math.sqrt(32 * 32 * _MOST_PATCHES / (width * height))
            across, down = width * by / 32, height * by / 32
            by *= min(math.floor(across) / across, math.floor(down) / down)
            # A patch that is whole but for the last bit of a float is whole.
            patches = math.ceil(width * by / 32 - 1e-6) * math.ceil(height * by / 32 - 1e-6)
        return round(patches * self.multiplier)


_MOST_PATCHES = 1536
# By the beginning of a model's name; the first that fits counts.
_IMAGES: Mapping[str, _Tiles | _Patches] = {
    "gpt-5-mini": _Patches(1.62),
    "gpt-5-nano": _Patches(2.46),
    "gpt-4.1-mini": _Patches(1.62),
    "gpt-4.1-nano": _Patches(2.46),
    "o4-mini": _Patches(1.72),
    "gpt-4o-mini": _Tiles(2833, 5667),
    "gpt-5-": _Tiles(70, 140),
    "gpt-4o": _Tiles(85, 170),
    "gpt-4.1": _Tiles(85, 170),
    "gpt-4.5": _Tiles(85, 170),
    "o1": _Tiles(75, 150),
    "o3": _Tiles(75, 150),
    "computer-use-preview": _Tiles(65, 129),
}
_UNKNOWN_MODEL = _Tiles(85, 170)
_UNKNOWN_SIZE = (1024, 1024)
# Of each function: its start and its end.
_FUNCTION = {"gpt-4o": (7, 12), "gpt-4-": (10, 12), "gpt-3.5-turbo": (10, 12)}


def count_input(body: Mapping[str, Any], api: Api, model: str, encoding: str) -> InputTokens:
    """How many tokens a request's body has as input.

    Args:
        body: the JSON body.
        api: whose form it has. Only for chat completions are there published rules beyond the text itself.
        model: whose rules count.
        encoding: of tiktoken.
    """
    if api == "completions":
        prompt = body.get("prompt")
        known = isinstance(prompt, str) and not body.get("suffix")
        return InputTokens(sum(count_text(text, encoding) for text in _texts(prompt)), not known)
    name = model.rpartition("/")[2]
    if api == "responses":
        given = body.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        if body.get("instructions"):
            messages = [{"role": "system", "content": body["instructions"]}, *messages]
        counted = _messages(messages, name, encoding) + _tools(body.get("tools"), name, encoding)
        return counted + _unruled(body.get("text"), encoding) + InputTokens(0, approximate=True)
    return (
        _messages(body["messages"], name, encoding)
        + _tools(body.get("tools"), name, encoding)
        + _unruled(body.get("functions"), encoding)
        + _format(body.get("response_format"), encoding)
    )


def _messages(messages: Sequence[Mapping[str, Any]], model: str, encoding: str) -> InputTokens:
    """3 for each message, 1 for a name, the tokens of every value, and 3 that prime the reply.

    gpt-3.5-turbo-0301 takes 4 for a message and 1 less where there is a name.
    """
    a_message, a_name = (4, -1) if model.startswith("gpt-3.5-turbo-0301") else (3, 1)
    total = InputTokens(3)
    for message in messages:
        total += InputTokens(a_message)
        for key, value in message.items():
            total += _value(value, model, encoding)
            if key == "name":
                total += InputTokens(a_name)
    return total


def _value(value: object, model: str, encoding: str) -> InputTokens:
    if isinstance(value, str):
        return InputTokens(count_text(value, encoding))
    if isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value):
        return sum((_part(part, model, encoding) for part in value), InputTokens())
    return _unruled(value, encoding)


def _part(part: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
    """A content part: text, an image, or what has no rule. Sound and files are not counted by their base64."""
    kind = part["type"]
    if isinstance(part.get("text"), str):
        return InputTokens(count_text(part["text"], encoding))
    if kind in ("image_url", "input_image"):
        given = part.get("image_url")
        image = given if isinstance(given, dict) else {"url": given, "detail": part.get("detail")}
        return _image(image, model)
    if kind in ("input_audio", "file", "input_file"):
        return InputTokens(0, approximate=True)
    return _unruled(part, encoding)


def _image(image: Mapping[str, Any], model: str) -> InputTokens:
    rule = next((rule for start, rule in _IMAGES.items() if f"{model}-".startswith(start)), None)
    low = image.get("detail") == "low"
    size = _size(image.get("url"))
    known = rule is not None and (size is not None or (low and isinstance(rule, _Tiles)))
    return InputTokens((rule or _UNKNOWN_MODEL).count(size or _UNKNOWN_SIZE, low=low), not known)


def _size(url: object) -> tuple[int, int] | None:
    """Of an image that stands in the request itself, its width and height; of one elsewhere, and of no image, None."""
    if not isinstance(url, str) or not url.startswith("data:"):
        return None
    try:
        data = base64.b64decode(url.partition(",")[2])
        width, height = imagesize.get(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - whatever stands there is the server's to refuse
        return None
    return (int(width), int(height)) if width > 0 and height > 0 else None


def _shrunk(width: float, height: float, *, longest: int, shortest: int) -> tuple[float, float]:
    by = min(1.0, longest / max(width, height))
    width, height = width * by, height * by
    by = min(1.0, shortest / min(width, height))
    return width * by, height * by


def _tools(tools: object, model: str, encoding: str) -> InputTokens:
    if not isinstance(tools, list):
        return InputTokens()
    rule = next((tokens for start, tokens in _FUNCTION.items() if f"{model}-".startswith(start)), None)
    total = InputTokens(0, approximate=bool(tools) and rule is None)
    for tool in tools:
        total += _tool(tool, rule or _FUNCTION["gpt-4o"], encoding)
    return total


def _tool(tool: object, rule: tuple[int, int], encoding: str) -> InputTokens:
    """A function: its name and description, and each property's name, type, description and enum.

    The rule knows properties of plain types; what is nested is counted as its JSON text.
    """
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return _unruled(tool, encoding)
    start, end = rule
    line = f"{function['name']}:{_described(function)}"
    total = InputTokens(start + end + count_text(line, encoding), "description" not in function)
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict) or not properties:
        return total
    total += InputTokens(3)
    for name, given in properties.items():
        total += _property(name, given if isinstance(given, dict) else {}, encoding)
    return total


def _property(name: str, given: Mapping[str, Any], encoding: str) -> InputTokens:
    enum = given.get("enum")
    line = f"{name}:{given.get('type')}:{_described(given)}"
    total = InputTokens(3 + count_text(line, encoding), not {"type", "description"} <= given.keys())
    if isinstance(enum, list):
        total += InputTokens(-3 + sum(3 + count_text(str(item), encoding) for item in enum))
    nested = {key: value for key, value in given.items() if key not in ("type", "description", "enum")}
    return total + _unruled(nested, encoding)


def _described(given: Mapping[str, Any]) -> str:
    return str(given.get("description") or "").removesuffix(".")


def _format(given: object, encoding: str) -> InputTokens:
    """A response_format: plain text costs nothing; for JSON and its schema no rule is published."""
    plain = given is None or (isinstance(given, dict) and given.get("type") == "text")
    return InputTokens() if plain else _unruled(given, encoding)


def _unruled(value: object, encoding: str) -> InputTokens:
    """What no rule is published for: its JSON text."""
    if not value:
        return InputTokens()
    return InputTokens(count_text(json.dumps(value, ensure_ascii=False), encoding), approximate=True)


def _texts(prompt: object) -> list[str]:
    if isinstance(prompt, list):
        return [text if isinstance(text, str) else json.dumps(text) for text in prompt]
    return [prompt] if isinstance(prompt, str) else []
