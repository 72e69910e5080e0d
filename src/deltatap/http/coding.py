"""Content codings: decompresses a body piece by piece, and judges it by its first bytes. Sans-IO.

Servers and gateways label bodies wrongly: raw deflate as deflate, plain text as gzip, a charset as a coding. As in a
browser, all members of a gzip body count, and the bytes after them are ignored.
"""

from __future__ import annotations

import string
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

# One piece of output. A small input can stand for a gigabyte, so the reader may stop after each piece.
PIECE_BYTES = 64 * 1024
_GZIP, _RAW = zlib.MAX_WBITS | 16, -zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_METHOD = 8
_DECODED = frozenset(("gzip", "x-gzip", "deflate"))
# Codings that nobody requests, and that this module cannot decode.
_UNKNOWN = frozenset(("br", "zstd", "compress", "x-compress", "dcb", "dcz"))

# How an event stream, JSON or a page begins.
_TEXT = b" \t\r\n:{[<" + string.ascii_letters.encode()


class CodingError(Exception):
    """The body does not match its content-encoding."""


def codings(header: str) -> tuple[str, ...]:
    """The codings in a content-encoding header, in the order in which they were applied, except no-ops."""
    names = (name.strip().lower() for name in header.split(","))
    return tuple(name for name in names if name in _DECODED or name in _UNKNOWN)


def decoded(decoders: Iterable[Decoder], data: bytes) -> Iterator[bytes]:
    """Decode a piece of a body. The decoders are in the order of decoding.

    Raises:
        CodingError: if the body is not what its coding says.
    """
    pieces: Iterator[bytes] = iter((data,))
    for decoder in decoders:
        pieces = decoder.all(pieces)
    return pieces


class Decoder:
    """Decodes one coding of one body."""

    __slots__ = ("_coding", "_ended", "_engine", "_plain", "_start")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._start = b""
        self._engine: zlib._Decompress | None = None
        self._plain = False
        self._ended = False

    def all(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The output of all pieces."""
        for data in pieces:
            yield from self.decode(data)

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The output of a piece, in pieces of at most PIECE_BYTES."""
        if self._coding in _UNKNOWN and data and not self._plain:
            self._plain = data[0] in _TEXT
            if not self._plain:
                raise CodingError(f"content-encoding {self._coding} was not requested")
        while data and not self._plain:
            if self._engine is None:
                data = self._start + data
                if self._ended:  # zeros may follow a member
                    data = data.lstrip(b"\0")
                self._start = data if len(data) < len(_GZIP_MAGIC) else b""
                if self._start or not data:
                    return
                self._engine = self._chosen(data)
            if self._engine is not None:
                data = yield from self._inflated(self._engine, data)
        if data and not self._ended:
            yield data

    def _chosen(self, start: bytes) -> zlib._Decompress | None:
        """The decompressor that the first two bytes require. None if they require none: then all data is plain text."""
        if start.startswith(_GZIP_MAGIC):
            return zlib.decompressobj(_GZIP)
        if not self._ended:
            # The header of zlib, RFC 1950.
            if start[0] & 0x0F == _DEFLATE_METHOD and int.from_bytes(start[:2], "big") % 31 == 0:
                return zlib.decompressobj()
            if self._coding == "deflate":
                return zlib.decompressobj(_RAW)
        self._plain = True
        return None

    def _inflated(self, engine: zlib._Decompress, data: bytes) -> Generator[bytes, None, bytes]:
        """Yield the output; return the bytes after the end of the member."""
        try:
            while True:
                made = engine.decompress(data, PIECE_BYTES)
                if made:
                    yield made
                data = engine.unconsumed_tail
                if engine.eof:
                    break
                if not data and len(made) < PIECE_BYTES:
                    return b""
        except zlib.error as error:
            raise CodingError(f"its content-encoding is broken: {error}") from error
        self._engine, self._ended = None, True
        return engine.unused_data
