"""Events of chat completions for tests. Each stream is fed whole, byte by byte and cut at random."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from deltatap.api.chat import ChatAccumulator
from deltatap.api.sse import SSEDecoder
from deltatap.model import Received

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltatap.api.choices import ChoicesAccumulator

DONE = b"data: [DONE]\n\n"


def framed(events: Iterable[Any]) -> bytes:
    """Events as bytes. Bytes are already framed."""
    return b"".join(
        event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n" for event in events
    )


def read(reads: Iterable[bytes], accumulator: ChoicesAccumulator) -> Received:
    decoder = SSEDecoder()
    for number, data in enumerate(reads):
        for event in decoder.feed(data):
            accumulator.add(event.data, float(number), number, event.event)
    return accumulator.finish()


def receive(*events: Any, api: type[ChoicesAccumulator] = ChatAccumulator, choices: int = 1) -> Received:
    data = framed(events)
    whole = read([data], api(choices))
    cuts = sorted(random.Random(len(data)).randrange(len(data) + 1) for _ in range(9))  # noqa: S311 - not a secret
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for reads in (pieces, [data[at : at + 1] for at in range(len(data))]):
        other = read(reads, api(choices))
        for name in set(Received.__dataclass_fields__) - {"chunks"}:
            assert getattr(other, name) == getattr(whole, name), name
        assert other.chunks.text == whole.chunks.text
    return whole


def receive_whole(answer: Any) -> Received:
    accumulator = ChatAccumulator()
    accumulator.add_whole(json.dumps(answer).encode())
    return accumulator.finish()


def delta(finish: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def message(finish: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": fields, "finish_reason": finish}]}


def beside(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, **fields}]}


def kinds(received: Received) -> str:
    return " ".join(chunk["kind"] for chunk in received.chunks.to_dicts())


def piece(name: Any = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    given = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in given.items() if value is not None}}


def tools(*pieces: Any, finish: Any = None) -> dict[str, Any]:
    return delta(finish, tool_calls=list(pieces))


HI = delta(content="Hi")
