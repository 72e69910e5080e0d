"""The plan of one response: its head, its bytes with the time of each write, and the faults of the request. Pure.

`recordings.py` has the answer as it was captured, and `app.py` executes the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltatap.replay.options import BadOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deltatap.api.base import Api
    from deltatap.api.frames import Frame
    from deltatap.replay.options import Options, Place
    from deltatap.replay.recordings import End, Recording

_OK = 200
# With many requests at once, more pieces would not fit into memory.
_MOST_WRITES = 1_000_000
# The pause between two pieces of a split event, so that they arrive in separate reads.
_BETWEEN_MS = 1.0
# Responses that have no body (RFC 9110, section 6.4.1).
_BODILESS = (204, 304)


@dataclass(frozen=True, slots=True)
class Plan:
    """The writes of a response. All times are in ms since the request arrived.

    Attributes:
        status: HTTP status; 0 for no response.
        headers: of the response.
        begin_ms: when the head is sent.
        writes: (ms, bytes) in order.
        end: how the response ends.
        end_ms: when it ends.
    """

    status: int
    headers: dict[str, str]
    begin_ms: float
    writes: tuple[tuple[float, bytes], ...]
    end: End
    end_ms: float


def plan_of(found: Recording, api: Api, options: Options, *, streamed: bool, speed: float = 1.0) -> Plan:
    """The plan of a response.

    Args:
        found: the captured answer.
        api: through which it is sent.
        options: of the request.
        streamed: whether the request asks for a stream.
        speed: factor by which waits are shortened if the request sets none.

    Raises:
        BadOptionError: the options make too many pieces of this answer.
        CannotSayError: the API cannot express the answer.
    """
    _check("loop", options.loop * max(1, len(found.row["chunks"] or ())))
    end, end_ms = found.end()
    begin_ms = float(found.row["headers_ms"] or 0.0)
    streams = streamed and found.status == _OK
    headers = {"content-type": "text/event-stream; charset=utf-8" if streams else "application/json"}
    headers |= {"cache-control": "no-cache", **found.headers(api)}
    usage = not options.drop_usage
    writes: list[tuple[float, bytes]] = []
    if streams:
        end_ms += (options.loop - 1) * end_ms
        frames = found.frames(api, loop=options.loop, usage=usage)
        writes, end, end_ms = _faulty(frames, options, end, end_ms)
        writes = _merged(writes, options.merge)
    elif found.status:
        begin_ms = end_ms
        body = b"" if found.status in _BODILESS else found.body(api, usage=usage)
        if found.status == _OK and (options.cut or end == "cut"):
            body, end = body[: len(body) // 2], "cut"
        elif found.status == _OK and (options.stall or end == "stall"):
            body, end = b"", "stall"
        writes = [(begin_ms, body)]
    _check("split", 0 if options.split is None else sum(len(data) for _, data in writes) // options.split)
    writes = list(_slow(_split(writes, options.split), options.bytes_per_s))
    end_ms = max([end_ms, *(ms for ms, _ in writes[-1:])])

    def timed(ms: float) -> float:
        factor = speed if options.speed is None else options.speed
        return max(0.0, ms - options.from_ms) / factor if factor else 0.0

    return Plan(
        found.status,
        headers,
        timed(begin_ms),
        tuple((timed(ms), data) for ms, data in writes if data),
        end,
        timed(end_ms),
    )


def _check(option: str, pieces: int) -> None:
    if pieces > _MOST_WRITES:
        raise BadOptionError(f"{option}: makes {pieces:,} pieces of this answer, more than {_MOST_WRITES:,}")


def _faulty(
    frames: Sequence[Frame], options: Options, end: End, end_ms: float
) -> tuple[list[tuple[float, bytes]], End, float]:
    """The writes with the cut and the stall that the options ask for."""
    kept = list(frames)
    if options.cut is not None and (at := _reached(kept, options.cut)) is not None:
        end, end_ms = "cut", _when(kept, at, options.cut)
        kept = kept[:at]
    later = 0.0
    stalls_at = None if options.stall is None else _reached(kept, options.stall)
    if stalls_at is not None and options.stall is not None:
        begins_ms = _when(kept, stalls_at, options.stall)
        if options.stall_ms is None:
            return [(frame.ms, frame.data) for frame in kept[:stalls_at]], "stall", begins_ms
        later = options.stall_ms
    writes = [
        (frame.ms + (later if stalls_at is not None and number >= stalls_at else 0.0), frame.data)
        for number, frame in enumerate(kept)
    ]
    return writes, end, end_ms + later


def _reached(frames: Sequence[Frame], place: Place) -> int | None:
    """The number of frames before a place; None if the stream ends before it."""
    if place.ms is not None:
        return next((at for at, frame in enumerate(frames) if frame.ms >= place.ms), None)
    sent = 0
    for at, frame in enumerate(frames):
        if sent >= (place.chunks or 0):
            return at
        sent += frame.outputs
    return None


def _when(frames: Sequence[Frame], at: int, place: Place) -> float:
    return place.ms if place.ms is not None else frames[at - 1].ms if at else 0.0


def _merged(writes: Sequence[tuple[float, bytes]], size: int) -> list[tuple[float, bytes]]:
    """Several events in one write, at the time of the last event."""
    groups = [writes[start : start + size] for start in range(0, len(writes), size)]
    return [(group[-1][0], b"".join(data for _, data in group)) for group in groups]


def _split(writes: Iterable[tuple[float, bytes]], size: int | None) -> Iterable[tuple[float, bytes]]:
    """Each write, split into pieces of this many bytes."""
    free = 0.0
    for ms, data in writes:
        if size is None:
            yield ms, data
            continue
        for start in range(0, len(data), size):
            at = max(ms, free)
            yield at, data[start : start + size]
            free = at + _BETWEEN_MS


def _slow(writes: Iterable[tuple[float, bytes]], bytes_per_s: float | None) -> Iterable[tuple[float, bytes]]:
    """Each write at the time at which a network of this speed would have delivered it."""
    free = 0.0
    for ms, data in writes:
        if bytes_per_s is None:
            yield ms, data
        else:
            free = max(ms, free) + 1000 * len(data) / bytes_per_s
            yield free, data
