"""Content codings: what servers label wrongly is judged by its bytes, wherever the reads cut it."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.http.coding import PIECE_BYTES, CodingError, Decoder, codings, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT = b'data: {"x": 1}\n\n' * 9
GZIP, ZLIB, RAW = gzip.compress(TEXT, mtime=0), zlib.compress(TEXT), zlib.compress(TEXT, wbits=-zlib.MAX_WBITS)


def output(header: str, reads: Iterable[bytes]) -> bytes:
    decoders = [Decoder(name) for name in reversed(codings(header))]
    return b"".join(piece for data in reads for piece in decoded(decoders, data))


GOOD = {
    "gzip": ("gzip", GZIP),
    "x-gzip, in capitals": ("X-GZip", GZIP),
    "members": ("gzip", b"".join(gzip.compress(TEXT[at : at + 20]) for at in range(0, len(TEXT), 20))),
    "an empty member": ("gzip", gzip.compress(b"") + GZIP),
    "zeros between members": ("gzip", gzip.compress(TEXT[:9]) + b"\0" * 7 + gzip.compress(TEXT[9:]) + b"\0"),
    "garbage after a member": ("gzip", GZIP + b"garbage"),
    "one byte after a member": ("gzip", GZIP + b"\x1f"),
    "deflate": ("deflate", ZLIB),
    "raw deflate": ("deflate", RAW),
    "gzip as deflate": ("deflate", GZIP),
    "zlib as gzip": ("gzip", ZLIB),
    "text as gzip": ("gzip", TEXT),
    "text as brotli": ("br", TEXT),
    "text as zstd": ("zstd", TEXT),
    "both": ("gzip, deflate", zlib.compress(GZIP)),
    "the same twice": ("gzip, gzip", gzip.compress(GZIP)),
    "named twice, used once": ("gzip, gzip", GZIP),
    "a charset": ("utf-8", TEXT),
    "identity and blanks": (" identity , ,", TEXT),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_cut_gives_the_same_output(case: str) -> None:
    header, data = GOOD[case]
    assert output(header, [data]) == TEXT
    assert output(header, (data[at : at + 1] for at in range(len(data)))) == TEXT
    for at in range(1, len(data)):
        assert output(header, [data[:at], b"", data[at:]]) == TEXT


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ("gzip", GZIP[:10] + b"\xff" * 20, "its content-encoding is broken"),
        ("gzip", GZIP[:-8] + b"\0" * 8, "its content-encoding is broken"),
        ("deflate", b"\xff" * 20, "its content-encoding is broken"),
        ("br", b"\x0b\x02\x80", "content-encoding br was not requested"),
        ("zstd", b"\x28\xb5\x2f\xfd", "content-encoding zstd was not requested"),
        ("compress", b"\x1f\x9d", "content-encoding compress was not requested"),
    ],
)
def test_what_cannot_be_decoded_says_so(header: str, data: bytes, says: str) -> None:
    with pytest.raises(CodingError, match=says):
        output(header, [data])


def test_what_arrived_before_a_cut_is_delivered() -> None:
    assert TEXT.startswith(output("gzip", [GZIP[:-9]]))
    assert output("gzip", [GZIP[:-9]])


@pytest.mark.parametrize("header", ["gzip", "gzip, gzip"])
def test_a_small_input_gives_its_output_in_small_pieces(header: str) -> None:
    data = gzip.compress(bytes(50 * 2**20))
    if header == "gzip, gzip":
        data = gzip.compress(data)
    decoders = [Decoder(name) for name in codings(header)]
    pieces = decoded(decoders, data)
    assert [len(next(pieces)) <= PIECE_BYTES for _ in range(20)] == [True] * 20, "and the reader stops here"


@given(st.lists(st.binary(max_size=50), max_size=6), st.sampled_from(["gzip", "deflate", "br", "gzip, deflate"]))
def test_any_bytes_are_decoded_or_refused(reads: list[bytes], header: str) -> None:
    try:
        output(header, reads)
    except CodingError:
        assert any(reads)
