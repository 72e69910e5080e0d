"""OpenAI's published rules for input tokens: messages, tools and images. Pure.

A part of a request without a published rule is counted as its JSON text, and the count is marked as approximate.
Sources: OpenAI's cookbook, "How to count tokens with tiktoken" (messages and tool calls), and OpenAI's guide "Images
and vision", calculating costs. Each API's module decides which rules apply; `tokens.py` has the encodings.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import imagesize

from deltatap.tokens import count_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class InputTokens:
    """A number of tokens. It is approximate if a part of it has no published rule."""

    tokens: int = 0
    approximate: bool = False

    def __add__(self, other: InputTokens) -> InputTokens:
        return InputTokens(self.tokens + other.tokens, self.approximate or other.approximate)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Images by tiles of 512 pixels: `base` per image plus `tile` per tile; in low detail only `base`."""

    base: int
    tile: int

    def count(self, size: tuple[int, int], *, low: bool) -> int:
        if low:
            return self.base
        width, height = _shrunk(*size, longest=2048, shortest=768)
        return self.base + self.tile * math.ceil(width / 512) * math.ceil(height / 512)


@dataclass(frozen=True, slots=True)
class _Patches:
    """Images by patches of 32 pixels, at most 1,536, times the model's multiplier."""

    multiplier: float

    def count(self, size: tuple[int, int], *, low: bool) -> int:  # noqa: ARG002 - detail does not count here
        width, height = size
        patches = math.ceil(width / 32) * math.ceil(height / 32)
        if patches > _MOST_PATCHES:
            by = math.sqrt(32 * 32 * _MOST_PATCHES / (width * height))
            across, down = width * by / 32, height * by / 32
            by *= min(math.floor(across) / across, math.floor(down) / down)
            # Without the tolerance, a rounding error in a float could add a patch.
            patches = math.ceil(width * by / 32 - 1e-6) * math.ceil(height * by / 32 - 1e-6)
        return round(patches * self.multiplier)


_MOST_PATCHES = 1536
# By the start of the model's name; the first match counts.
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
# Tokens at the start and at the end of each function, by the start of the model's name.
_FUNCTION = {"gpt-4o": (7, 12), "gpt-4-": (10, 12), "gpt-3.5-turbo": (10, 12)}
# Tokens of a message and of a name, by the start of the model's name.
_MESSAGE = {"gpt-3.5-turbo-0301": (4, -1)}
Rule = TypeVar("Rule")


def _for_model(rules: Mapping[str, Rule], model: str) -> Rule | None:
    """The rule for a model: the first whose key starts the model's name, without a provider's prefix (`openai/`)."""
    name = f"{model.rpartition('/')[2]}-"
    return next((rule for start, rule in rules.items() if name.startswith(start)), None)


def count_messages(messages: Sequence[Mapping[str, Any]], model: str, encoding: str) -> InputTokens:
    """The tokens of chat messages.

    They are 3 per message, 1 per name, the tokens of every value, and 3 that prime the reply. gpt-3.5-turbo-0301 uses 4
    per message, and one less with a name.
    """
    a_message, a_name = _for_model(_MESSAGE, model) or (3, 1)
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
    return without_rule(value, encoding)


def _part(part: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
    """A content part. The base64 text of sound and files is not counted."""
    kind = part["type"]
    if isinstance(part.get("text"), str):
        return InputTokens(count_text(part["text"], encoding))
    if kind in ("image_url", "input_image"):
        given = part.get("image_url")
        image = given if isinstance(given, dict) else {"url": given, "detail": part.get("detail")}
        return _image(image, model)
    if kind in ("input_audio", "file", "input_file"):
        return InputTokens(0, approximate=True)
    return without_rule(part, encoding)


def _image(image: Mapping[str, Any], model: str) -> InputTokens:
    rule = _for_model(_IMAGES, model)
    low = image.get("detail") == "low"
    size = image_size(image.get("url"))
    known = rule is not None and (size is not None or (low and isinstance(rule, _Tiles)))
    return InputTokens((rule or _UNKNOWN_MODEL).count(size or _UNKNOWN_SIZE, low=low), not known)


def image_size(url: object) -> tuple[int, int] | None:
    """Width and height of an image in a data URL; None for any other URL and for data that is not an image."""
    if not isinstance(url, str) or not url.startswith("data:"):
        return None
    try:
        data = base64.b64decode(url.partition(",")[2])
        width, height = imagesize.get(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - the server will refuse it
        return None
    return (int(width), int(height)) if width > 0 and height > 0 else None


def _shrunk(width: float, height: float, *, longest: int, shortest: int) -> tuple[float, float]:
    by = min(1.0, longest / max(width, height))
    width, height = width * by, height * by
    by = min(1.0, shortest / min(width, height))
    return width * by, height * by


def count_tools(tools: object, model: str, encoding: str) -> InputTokens:
    """The tokens of tools; a tool of an unknown model is counted by the rule for gpt-4o."""
    if not isinstance(tools, list):
        return InputTokens()
    rule = _for_model(_FUNCTION, model)
    total = InputTokens(0, approximate=bool(tools) and rule is None)
    for tool in tools:
        total += _tool(tool, rule or _FUNCTION["gpt-4o"], encoding)
    return total


def _tool(tool: object, rule: tuple[int, int], encoding: str) -> InputTokens:
    """A function: its name and description, and each property's name, type, description and enum.

    The rule covers properties of plain types. Nested schemas are counted as their JSON text.
    """
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return without_rule(tool, encoding)
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
    return total + without_rule(nested, encoding)


def _described(given: Mapping[str, Any]) -> str:
    return str(given.get("description") or "").removesuffix(".")


def without_rule(value: object, encoding: str) -> InputTokens:
    """The tokens of a value's JSON text, for a value without a published rule."""
    if not value:
        return InputTokens()
    return InputTokens(count_text(json.dumps(value, ensure_ascii=False), encoding), approximate=True)
