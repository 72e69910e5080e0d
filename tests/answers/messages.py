"""The Messages API."""

from __future__ import annotations

import json

from tests.answers.case import ANY, HALF, broken, chunked, failed, good, replaced, typed

_STARTED = typed(
    "message_start",
    message={
        "id": "msg_1",
        "model": "m-1",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 9, "output_tokens": 1},
    },
)
_BLOCK = typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
_BLOCK_TEXT = typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello world"})
_BLOCK_STOP = typed("content_block_stop", index=0)
_END = (typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}), typed("message_stop"))
_OVERLOADED = typed("error", error={"type": "overloaded_error", "message": "Overloaded"})

MESSAGES = [
    good("m: text", chunked(_STARTED, _BLOCK, typed("ping"), _BLOCK_TEXT, _BLOCK_STOP, *_END), api="messages",
          usage={"input_tokens": 9, "output_tokens": 2}),
    broken("m: an error after output", chunked(_STARTED, _BLOCK, _BLOCK_TEXT, _OVERLOADED), says="Overloaded", api="messages"),
    failed("m: an error at once", chunked(_STARTED, _OVERLOADED), ANY, "Overloaded", api="messages", calls=None),
    good("m: a tool whose input comes at once",
          chunked(_STARTED, typed("content_block_start", index=0, content_block={"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}),
                  _BLOCK_STOP, *_END), api="messages", text=ANY, tools=(("t1", "f", ANY),)),
    good("m: a delta without its block", chunked(_STARTED, _BLOCK_TEXT, *_END), api="messages", text=ANY),
    *(good(f"m: a delta of type {kind}", chunked(_STARTED, _BLOCK, replaced(_BLOCK_TEXT, b'"text_delta"', json.dumps(kind).encode()), *_END), api="messages")
      for kind in (None, "text")),
    good("m: an unknown block", chunked(_STARTED, typed("content_block_start", index=0, content_block={"type": "hologram", "x": 1}),
          typed("content_block_delta", index=0, delta={"type": "hologram_delta", "x": 2}), _BLOCK_STOP,
          replaced(_BLOCK, b'"index": 0', b'"index": 1'), replaced(_BLOCK_TEXT, b'"index": 0', b'"index": 1'), *_END), api="messages"),
    good("m: a surrogate", chunked(_STARTED, _BLOCK, replaced(_BLOCK_TEXT, b"Hello", b"Hello" + HALF), *_END), api="messages", text="Hello� world"),
]  # fmt: skip
