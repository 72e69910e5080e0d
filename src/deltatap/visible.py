"""Text from tables, files and servers, made safe for a terminal: control characters are written as escapes.

A server chooses its texts, messages and names. A terminal would obey the escape sequences in them, for example to
change its title or earlier lines, and would reorder text after a bidirectional override.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

# C0 without tab and newline, DEL, C1, the bidirectional overrides and isolates, and lone surrogates, which cannot be
# encoded. A carriage return is part of a line break or hides the line.
_HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def visible(text: str) -> str:
    r"""The text with its control characters as escapes: ``\x1b``, ``\u202e``."""
    return _HIDDEN.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - two hex digits, or four


def json_text(value: Any, **options: Any) -> str:  # noqa: ANN401 - any JSON value, and the options of json.dumps
    """A value as JSON that is safe to print: control characters are escaped, and everything else is readable.

    JSON has no infinity and no NaN, so they become null.
    """
    text = json.dumps(_finite(value), **{"ensure_ascii": False, **options})
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
