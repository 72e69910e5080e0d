"""Text from tables, files and servers, made safe for a terminal: control characters are written as escapes.

A server chooses its texts, messages and names. A terminal would obey the escape sequences in them, for example to
change its title or earlier lines, and would reorder text after a bidirectional override.
"""

from __future__ import annotations

import json
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
    """A value as JSON that is safe to print: control characters are escaped, and everything else is readable."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, **{"ensure_ascii": False, **options}))
