"""What the simulator did: each call, what was written for it and when; counts that stay exact when texts are dropped.

Times are ``time.monotonic()``, which all processes of one machine share.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatap.simulator.answers import Piece

_SHOWN = 200
_MINUTE_S = 60.0
_ERRORS_KEPT = 200_000


@dataclass(slots=True)
class Call:
    """One call, as far as it went.

    Attributes:
        number: from 0, over all calls.
        key: sha256 of the body without stream options: the request_hash.
        prompt: the last message's text, its start.
        path: of the URL.
        model: as asked for.
        attempt: number of the call among those for its key, from 0.
        fault: what was made to go wrong.
        http_status: as answered; 0 when nothing was.
        streamed: whether it was asked for as a stream.
        texts: what was written as content, by choice.
        others: what else was written, by choice and kind; a tool call's name and arguments by its number.
        chunks: when each piece was written, and the piece's text.
        frames: how many data frames were written, [DONE] not counted.
        finish_reasons: as written, by choice.
        usage: as written.
        ended: done, refused, broken (by a fault), or client_gone.
        started: when the request was there.
        bearer_sha256: of the key that came; None when none did.
    """

    number: int
    key: str
    prompt: str
    path: str
    model: str
    attempt: int
    started: float
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

    def write(self, at: float, choice: int, piece: Piece) -> None:
        """A piece is on its way."""
        self.chunks.append((at, piece.text))
        if piece.kind == "content":
            self.texts[choice] = self.texts.get(choice, "") + piece.text
            return
        others = self.others.setdefault(choice, {})
        kind = f"{piece.kind} {piece.call}" if piece.kind in ("call", "arguments") else piece.kind
        others[kind] = others.get(kind, "") + piece.text


class Record:
    """All calls; the last of them in full."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.calls: deque[Call] = deque(maxlen=self._keep)
        self.attempts: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.open = 0
        self.most_open = 0
        self.total = 0
        self.late: array[float] = array("d")
        self._accepted: deque[tuple[float, int]] = deque()

    def within_a_minute(self, now: float, what: str) -> tuple[float, float]:
        """Requests or tokens accepted within the last sixty seconds, and when the oldest of them does not count."""
        while self._accepted and self._accepted[0][0] <= now - _MINUTE_S:
            self._accepted.popleft()
        used = len(self._accepted) if what == "requests" else sum(tokens for _, tokens in self._accepted)
        return used, self._accepted[0][0] + _MINUTE_S - now if self._accepted else 0.0

    def accept(self, now: float, tokens: int) -> None:
        """A call counts towards the limits."""
        self._accepted.append((now, tokens))

    def begin(self, **known: Any) -> Call:  # noqa: ANN401 - fields of Call
        """A call came."""
        call = Call(number=self.total, attempt=self.attempts[known["key"]], **known)
        self.total += 1
        self.attempts[call.key] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.calls.append(call)
        return call

    def end(self, call: Call, ended: str) -> None:
        """A call is over."""
        call.ended = ended
        self.open -= 1
        self.statuses[call.http_status] += 1
        if ended == "done":
            self.finished[call.key] += 1

    def late_by(self, seconds: float) -> None:
        """A piece was written so long after its time."""
        if len(self.late) < _ERRORS_KEPT:
            self.late.append(seconds)

    def counts(self) -> dict[str, Any]:
        """Calls and whole answers, in all and by key; exact."""
        return {
            "calls": self.total,
            "finished": self.finished.total(),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "by_key": {key: {"calls": count, "finished": self.finished[key]} for key, count in self.attempts.items()},
        }

    def told(self) -> dict[str, Any]:
        """The calls, and how many older ones were dropped."""
        return {"dropped": self.total - len(self.calls), "calls": [asdict(call) for call in self.calls]}

    def stats(self) -> dict[str, Any]:
        """Open streams, and how late pieces were written, in ms."""
        late = sorted(self.late)
        at = (
            {name: late[min(len(late) - 1, int(len(late) * share))] * 1e3 for name, share in _SHARES.items()}
            if late
            else {}
        )
        return {"open": self.open, "most_open": self.most_open, "pieces": len(late), "late_ms": at}


_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def shown(prompt: Any) -> str:  # noqa: ANN401 - whatever came
    """The start of a prompt's text, or of the last message's."""
    last = prompt[-1] if isinstance(prompt, list) and prompt else prompt
    content = last.get("content") if isinstance(last, dict) else last
    return content[:_SHOWN] if isinstance(content, str) else ""
