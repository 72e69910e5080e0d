"""The simulator's record of each call: what the simulator wrote, and when. Pure.

Only the newest calls are kept in full; the counts include all calls. Times are `time.monotonic()`, which all processes
of one machine share.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from deltatap.api.frames import Piece

_SHOWN = 200
_MINUTE_S = 60.0
_MAX_LATE = 200_000
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(slots=True)
class Call:
    """One call, and the data that the simulator wrote for it.

    Attributes:
        number: from 0, over all calls.
        key: the request_hash: sha256 of the body without `stream` and `stream_options.include_usage`.
        prompt: the start of the last message's text.
        path: of the URL.
        model: as requested.
        attempt: number of the call among the calls with the same key, from 0.
        fault: the injected fault; None if there was none.
        http_status: of the response; 0 if there was none.
        streamed: whether a stream was requested.
        texts: content that was written, by choice.
        others: other output that was written, by choice and kind. Tool calls also by number.
        chunks: time and text of each piece that was written.
        frames: number of events that were written, without [DONE].
        finish_reasons: of each choice, in OpenAI's terms.
        usage: as reported, with the field names of chat completions.
        ended: done, refused, broken (by a fault), or client_gone.
        started: when the simulator had read the request. On a busy machine, the request arrived some ms earlier.
        port: of the client.
        began: when the simulator began to generate the answer; 0 if it did not.
        bearer_sha256: sha256 of the API key; None if the request had none.
        method: POST, or GET if the call read a response that is kept in the background.
        response_id: of a response in the background.
        after: the number after which a GET asked for events; None without one.
    """

    number: int
    key: str
    prompt: str
    path: str
    model: str
    attempt: int
    started: float
    port: int = 0
    began: float = 0.0
    fault: str | None = None
    http_status: int = 0
    streamed: bool = False
    texts: dict[int, str] = field(default_factory=dict)
    others: dict[int, dict[str, str]] = field(default_factory=dict)
    chunks: list[tuple[float, str]] = field(default_factory=list)
    frames: int = 0
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    ended: str = "open"
    bearer_sha256: str | None = None
    method: str = "POST"
    response_id: str | None = None
    after: int | None = None

    def write(self, at: float, choice: int, piece: Piece) -> None:
        """Record a piece that is being written."""
        self.chunks.append((at, piece.text))
        if piece.kind == "content":
            self.texts[choice] = self.texts.get(choice, "") + piece.text
            return
        others = self.others.setdefault(choice, {})
        kind = f"{piece.kind} {piece.call}" if piece.kind in ("call", "arguments") else piece.kind
        others[kind] = others.get(kind, "") + piece.text


class Record:
    """Counts all calls and keeps the newest in full."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.calls: deque[Call] = deque(maxlen=self._keep)
        self.attempts: Counter[str] = Counter()
        self.posts: Counter[str] = Counter()
        self.gets: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.open = 0
        self.most_open = 0
        self.total = 0
        self.late: array[float] = array("d")
        self._accepted: deque[tuple[float, int]] = deque()

    def within_a_minute(self, now: float, what: str) -> tuple[float, float]:
        """The requests or tokens accepted in the last sixty seconds, and the seconds until the oldest expires."""
        while self._accepted and self._accepted[0][0] <= now - _MINUTE_S:
            self._accepted.popleft()
        used = len(self._accepted) if what == "requests" else sum(tokens for _, tokens in self._accepted)
        return used, self._accepted[0][0] + _MINUTE_S - now if self._accepted else 0.0

    def accept(self, now: float, tokens: int) -> None:
        """Count a call towards the limits."""
        self._accepted.append((now, tokens))

    def begin(self, **known: Any) -> Call:  # noqa: ANN401 - fields of Call
        """Record a new call."""
        call = Call(number=self.total, attempt=self.attempts[known["key"]], **known)
        self.total += 1
        self.attempts[call.key] += 1
        (self.gets if call.method == "GET" else self.posts)[call.key] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.calls.append(call)
        return call

    def end(self, call: Call, ended: str) -> None:
        """Record the end of a call."""
        call.ended = ended
        self.open -= 1
        self.statuses[call.http_status] += 1
        if ended == "done":
            self.finished[call.key] += 1

    def late_by(self, seconds: float) -> None:
        """Record how late a piece was written."""
        if len(self.late) < _MAX_LATE:
            self.late.append(seconds)

    def counts(self) -> dict[str, Any]:
        """Number of calls and of complete answers, in total and by key. `gets` are calls that read a stored answer."""
        return {
            "calls": self.posts.total(),
            "gets": self.gets.total(),
            "finished": self.finished.total(),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "by_key": {key: self._of_key(key) for key in self.posts},
        }

    def _of_key(self, key: str) -> dict[str, int]:
        gets = {"gets": self.gets[key]} if key in self.gets else {}
        return {"calls": self.posts[key], "finished": self.finished[key], **gets}

    def all_calls(self) -> dict[str, Any]:
        """The calls that are kept in full, and the number of older calls that were dropped."""
        return {"dropped": self.total - len(self.calls), "calls": [asdict(call) for call in self.calls]}

    def stats(self) -> dict[str, Any]:
        """Number of open streams, and how late pieces were written, in ms."""
        late_ms = quantiles([seconds * 1e3 for seconds in self.late], _SHARES)
        return {"open": self.open, "most_open": self.most_open, "pieces": len(self.late), "late_ms": late_ms}


def quantiles(values: Collection[float], shares: Mapping[str, float]) -> dict[str, float]:
    """Quantiles by name, each a value of the sample. Empty without values."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {name: ordered[min(last, int(len(ordered) * share))] for name, share in shares.items() if ordered}


def start_of(prompt: object) -> str:
    """The start of a prompt that is text; empty for any other prompt."""
    return prompt[:_SHOWN] if isinstance(prompt, str) else ""
