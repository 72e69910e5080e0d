"""Distortions of a stream's bytes for the simulator's faults. Pure."""

from __future__ import annotations

COMMENT = b": keep-alive\n\n"
BAD_JSON = b'data: {"id": "chatcmpl-broken", "choices": [\n\n'
BOM = b"\xef\xbb\xbf"


def fragments(frame: bytes) -> list[bytes]:
    """The frame in three pieces, one cut inside a character of several bytes if the frame has one."""
    continued = (at for at, byte in enumerate(frame) if byte >> 6 == 0b10)  # noqa: PLR2004 - UTF-8's mark
    inside = next(continued, len(frame) // 2)
    first = min(8, inside)
    return [piece for piece in (frame[:first], frame[first:inside], frame[inside:]) if piece]
