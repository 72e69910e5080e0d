"""Bodies under wrong or odd headers, and odd records of an event stream."""

from __future__ import annotations

import gzip
import json
import zlib

from tests.answers.case import (
    ANY,
    BEGUN,
    DONE,
    GOOD,
    HEAD,
    HELLO,
    ROLE,
    STOP,
    TWICE,
    USAGE,
    WHOLE,
    WORLD,
    broken,
    chunked,
    data,
    delta,
    failed,
    good,
    headed,
    replaced,
    sized,
)
from tests.raw_server import Answer

# Content is judged by content

_JSON = json.dumps(WHOLE).encode()
_LINES = b"".join(each.removeprefix(b"data: ").removesuffix(b"\n") for each in GOOD[:-1])
_EVENTS = b"".join(GOOD)


def _deflated(*pieces: bytes, bits: int) -> list[bytes]:
    packer = zlib.compressobj(wbits=bits)
    return [*(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces), packer.flush()]


CONTENT = [
    good(f"an event stream as {kind}", chunked(*GOOD, head=headed(*([f"Content-Type: {kind}"] if kind else []))),
          usage={"input_tokens": 9, "output_tokens": 2}, columns={"finish_reason": "stop"})
    for kind in ("text/plain; charset=utf-8", "application/json", "application/octet-stream", "TEXT/EVENT-STREAM", "text/html", "")
]  # fmt: skip
CONTENT += [
    good(
        f"JSON {name} as {kind}",
        sized("200 OK", body, kind=kind),
        usage={"input_tokens": 9, "output_tokens": 2},
        mode=mode,
    )
    for kind in ("text/event-stream", "application/json")
    for mode in ("stream", "complete")
    for name, body in (
        (f"({mode})", _JSON),
        (f"({mode}) and [DONE]", _JSON + b"\n" + DONE),
        (f"({mode}) and [DONE] on its line", _JSON + b"\n\n[DONE]\n"),
        (f"({mode}) after blank lines", b"\n\r\n  " + _JSON + b"\n\n"),
        (f"({mode}) after a BOM", b"\xef\xbb\xbf" + _JSON),
        (f"({mode}) indented", json.dumps(WHOLE, indent=2).encode()),
    )
]
CONTENT += [
    good("a list of chunks", chunked(b"[" + b",\n".join(_LINES.splitlines()) + b"]"), usage={"input_tokens": 9}),
    good("a list of one whole answer", sized("200 OK", [WHOLE]), usage={"input_tokens": 9}),
    good("an indented whole answer after comments", chunked(b": wait\n\n: wait\n\n", json.dumps(WHOLE, indent=2).encode())),
    good("a tab in a text of JSON", sized("200 OK", _JSON.replace(b"Hello world", b"Hello\tworld")), text="Hello\tworld"),
    good("JSON lines", chunked(_LINES, head=headed("Content-Type: application/x-ndjson")), usage={"input_tokens": 9}),
    good("a whole answer in a record", chunked(data(WHOLE), DONE)),
    good("a stream for a whole request", chunked(*GOOD), mode="complete"),
    *(
        good(f"content-encoding {value!r}", chunked(*GOOD, head=HEAD + b"Content-Encoding: %b\r\n" % value.encode()), usage={"input_tokens": 9})
        for value in ("none", "", "identity", "Identity", "utf-8", "identity, identity")
    ),
    *(
        good(f"compressed: {name}", chunked(*pieces, head=HEAD + f"Content-Encoding: {coding}\r\n".encode()), usage={"input_tokens": 9})
        for name, coding, pieces in (
            ("raw deflate", "deflate", _deflated(*GOOD, bits=-15)),
            ("deflate", "deflate", _deflated(*GOOD, bits=15)),
            ("gzip", "gzip", _deflated(*GOOD, bits=31)),
            ("x-gzip", "X-GZIP", _deflated(*GOOD, bits=31)),
            ("members", "gzip", [gzip.compress(each, mtime=0) for each in GOOD]),
            ("members in one piece", "gzip", [b"".join(gzip.compress(each, mtime=0) for each in GOOD)]),
            ("an empty member", "gzip", [gzip.compress(b"", mtime=0), gzip.compress(_EVENTS, mtime=0), gzip.compress(b"", mtime=0)]),
            ("zeros after the end", "gzip", [gzip.compress(_EVENTS, mtime=0) + b"\0" * 8]),
            ("identity and gzip", "identity, gzip", _deflated(*GOOD, bits=31)),
        )
    ),
    good("both Transfer-Encoding and Content-Length", chunked(*GOOD, head=HEAD + b"Content-Length: 99999\r\n"), usage={"input_tokens": 9}),
    good("a head with bare line feeds",
          Answer((HEAD.replace(b"\r\n", b"\n") + b"Transfer-Encoding: chunked\n\n", *chunked(*GOOD).pieces[1:]), "keep"), usage={"input_tokens": 9}),
    good("a head with bare line feeds and no length", Answer((HEAD.replace(b"\r\n", b"\n") + b"\n", *GOOD))),
    good("a body to the end of the connection", Answer((HEAD + b"\r\n", *GOOD))),
    good("HTTP/1.0", Answer((HEAD.replace(b"1.1", b"1.0") + b"\r\n", *GOOD))),
    good("blanks around a header", Answer((HEAD + b"Transfer-Encoding:   chunked  \r\n\r\n", *chunked(*GOOD).pieces[1:]), "keep")),
    good("a byte of Latin-1 in a header", chunked(*GOOD, head=HEAD + b"x-request-id: caf\xe9\r\n")),
    good("a long header", chunked(*GOOD, head=HEAD + b"x-debug: " + b"x" * 50_000 + b"\r\n")),
    failed("headers without end", Answer((HEAD, b"x-debug: " + b"x" * 8_000 + b"\r\n"), "repeat"), "connection", calls=TWICE),
    failed("a header line without end", Answer((HEAD, b"x" * 8_000), "repeat"), "connection", calls=TWICE),
    good("103 first", Answer((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", *chunked(*GOOD).pieces), "keep")),
    failed("204", Answer((b"HTTP/1.1 204 No Content\r\n\r\n",), "keep"), ANY, calls=None, owed=None),
    failed("a page", sized("200 OK", b"<html><title>Sign in</title></html>", kind="text/html"), "protocol", "Sign in", calls=TWICE),
]  # fmt: skip

# Records of an event stream

RECORDS = [
    good(f"a record in between: {name}", chunked(ROLE, HELLO, record, WORLD, STOP, USAGE, DONE), usage={"output_tokens": 2})
    for name, record in {
        "no data": b"data:\n\n", "a blank": b"data: \n\n", "blanks": b"data:   \n\n", "two lines of no data": b"data:\ndata:\n\n",
        "a tab": b"data: \t\n\n", "a ping with a date": b"event: ping\ndata: 2026-09-01T00:00:00Z\n\n",
        "a heartbeat": b"event: heartbeat\ndata: alive\n\n", "a keep-alive": b"event: keep-alive\ndata: {}\n\n",
        "a comment": b": keep-alive\n\n", "an event without data": b"event: ping\n\n", "an id": b"id: 7\nretry: 100\n\n",
        "an empty object": b"data: {}\n\n", "an unknown typed record": b'event: metrics\ndata: {"tps": 3}\n\n', "null": b"data: null\n\n",
        "a field that nobody knows": b"foo: bar\n\n", "a line of a log": b"[INFO] loaded\n\n",
        "a typed notice of an end": b"event: search\ndata: done\n\n",
        "a typed notice": b'event: status\ndata: {"status":"busy","message":"cold start"}\n\n',
        "a typed notice with a code": b'event: info\ndata: {"code":"W1","message":"deprecated"}\n\n',
        "a warning": b'data: {"type":"warning","message":"deprecated"}\n\n',
    }.items()
]  # fmt: skip
RECORDS += [
    good(f"a stream with {name}", Answer((HEAD + b"\r\n", body)), usage={"output_tokens": 2})
    for name, body in {
        "CRLF": _EVENTS.replace(b"\n", b"\r\n"), "CR": _EVENTS.replace(b"\n", b"\r"), "no blank after the colon": _EVENTS.replace(b"data: ", b"data:"),
        "a BOM": b"\xef\xbb\xbf" + _EVENTS, "blanks around [DONE]": _EVENTS.replace(b" [DONE]", b"  [DONE] "),
        "no blank lines": _EVENTS.replace(b"\n\n", b"\n"), "data: twice": _EVENTS.replace(b"data: ", b"data: data: "),
        "no blank line before [DONE]": _EVENTS.replace(b"\n\ndata: [DONE]", b"\r\ndata: [DONE]"),
        "[done]": _EVENTS.replace(b"[DONE]", b"[done]"), "DONE": _EVENTS.replace(b"[DONE]", b"DONE"),
        "[DONE] as JSON": _EVENTS.replace(b"[DONE]", b'"[DONE]"'), "[DONE] without data:": _EVENTS.replace(b"data: [DONE]", b"[DONE]"),
        "indented JSON": b"".join(b"data: " + json.dumps(json.loads(each), indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n" for each in _LINES.splitlines()),
        "a comment first": b": PROCESSING\n\n" * 3 + _EVENTS, "blank lines first": b"\n\n\n" + _EVENTS,
    }.items()
]  # fmt: skip
RECORDS += [
    good("a [DONE] without a blank line", chunked(*BEGUN, b"data: [DONE]\n")),
    good("a [DONE] without a line end", chunked(*BEGUN, b"data: [DONE]")),
    good("a last record without a blank line", chunked(*BEGUN, STOP.rstrip(b"\n")), columns={"finish_reason": "stop"}),
    good(
        "a last record without a line end, at a closed connection", Answer((HEAD + b"\r\n", *BEGUN, STOP.rstrip(b"\n")))
    ),
    broken("half of a last record", chunked(*BEGUN, STOP[:60]), ANY),
    broken("half of a last record, reset", chunked(*BEGUN, STOP[:60], end=False, then="reset"), "stream_interrupted"),
    broken(
        "a last record whose connection breaks",
        chunked(*BEGUN, delta(content="!").rstrip(b"\n"), end=False, then="reset"),
        "stream_interrupted",
        text=ANY,
    ),
    broken("a record that is not JSON", chunked(*BEGUN, b"data: oops\n\n", STOP, DONE), "protocol", text=ANY),
    good(
        "text that is not UTF-8",
        chunked(ROLE, replaced(HELLO, b"Hello", b"Hello\xff"), WORLD, STOP, DONE),
        text="Hello� world",
    ),
    good(
        "a cut sequence of UTF-8",
        chunked(ROLE, replaced(HELLO, b"Hello", b"Hello\xe2\x82"), WORLD, STOP, DONE),
        text="Hello� world",
    ),
    good("more after [DONE]", chunked(*GOOD, delta(content="!"), b"garbage")),
    good("an event 'message'", chunked(*(b"event: message\n" + each for each in GOOD))),
    good("a long record", chunked(ROLE, delta(content="Hello" * 60_000), STOP, DONE), text="Hello" * 60_000),
]
