"""How a request is shown: its prompt as one line of text, and its id, which may be a hash. Pure.

``queries.py`` and the report read the rows; the APIs know where a prompt is in a body.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from deltatap.api.registry import NAMES, specification

if TYPE_CHECKING:
    from collections.abc import Mapping

# Only the start of a body is read for display: bodies can contain images.
BODY = 8_000
# Characters of a prompt, and of an id that is a hash.
PROMPT = 300
HASH = 12
_HASH = re.compile(r"[0-9a-f]{64}")
# An id that `deltatap record` creates.
_RECORDED = re.compile(r"\d{8}T\d{6}-[0-9a-f]{12}")


def prompt_line(body: str | None, api: str | None, most: int = PROMPT) -> str:
    """The last message of the user, or the prompt, as one line; empty if there is none.

    Args:
        body: the request as JSON, or the start of it.
        api: the name of the API.
        most: the maximum number of characters; an ellipsis replaces what is left out.
    """
    if not body or not api:
        return ""
    try:
        request = from_json(body, allow_partial="trailing-strings")
        return shortened(_text(_last(request, api)), most)
    except (ValueError, KeyError):  # not a body of this API, or an API of a newer version
        return ""


def short_id(request_id: str) -> str:
    """A request id for the screen. A hash is cut, because ``deltatap show`` also accepts the start of an id."""
    return request_id[:HASH] if _HASH.fullmatch(request_id) else request_id


def is_recorded(request_id: str) -> bool:
    """Whether ``deltatap record`` created this id. No capture sends a recorded call again."""
    return _RECORDED.fullmatch(request_id) is not None


def asked_line(row: Mapping[str, Any], most: int) -> str:
    """What a request asked, for a reader to whom its id means nothing; empty if the user has chosen the id.

    A hash gets the prompt. A recorded call also gets its model and its path, which tell calls of an application apart.

    Args:
        row: with ``request_id``, ``model``, ``api``, and ``body``, the start of the request.
        most: the maximum number of characters of the prompt.
    """
    prompt = prompt_line(row["body"], row["api"], most)
    if _HASH.fullmatch(row["request_id"]):
        return prompt and f"prompt: {prompt}"
    if not is_recorded(row["request_id"]):
        return ""
    call = " ".join(filter(None, [row["model"], specification(row["api"]).path if row["api"] in NAMES else ""]))
    return ": ".join(filter(None, [call, prompt]))


def shortened(text: str, most: int) -> str:
    """The text on one line of at most this many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _last(request: Mapping[str, object], api: str) -> object:
    spec = specification(api)
    turns = request.get(spec.prompt_field) if isinstance(request, dict) else None
    if isinstance(turns, list):
        # The end of a body that is cut may lack its role.
        said = [turn for turn in turns if isinstance(turn, dict) and turn.get("role", "user") == "user"]
        if said:
            return said[-1].get("content")
    return spec.last_prompt(request) if isinstance(request, dict) else None


def _text(content: object) -> str:
    """The text of a message's content, with the types of its other parts in brackets."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [
        part if isinstance(part, str) else str(part.get("text") or f"[{part.get('type', 'part')}]")
        for part in parts
        if isinstance(part, str | dict)
    ]
    return " ".join(texts)
