"""A row of captures as an answer that any API can send: the head, and the frames with their times. Pure.

If the row has the bytes of the events (`capture.keep_raw`), its own API sends the same bytes. Otherwise, and through
other APIs, the answer is built from the chunks. `plan.py` applies the options of a request, and `app.py` sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deltatap.api.frames import Frame
from deltatap.api.from_row import captured
from deltatap.api.registry import NAMES, specification
from deltatap.api.values import clean, decode, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deltatap.api.base import Api

# How a response ends: properly, with a broken connection, or not at all.
End = Literal["close", "cut", "stall"]

_OK = 200
_STATUSES = range(_OK, 600)
_OUTPUT = ("content", "reasoning", "refusal", "tool_calls")
_PROMPT_CHARS = 200
# The columns that a row with a reused answer keeps.
_OWN = ("run_id", "request_id", "request_hash", "request", "request_model")
# Replaces an event that deltatap could not decode, because such an event is not stored.
_BROKEN_EVENT = b"data: {\n\n"


@dataclass(frozen=True, slots=True)
class Recording:
    """One captured answer.

    Attributes:
        row: of captures, as a dict.
        run_id, request_id, request_hash: of the row.
        prompt: the last prompt of the request, as text.
        api: name of the API that it was captured from.
        model: of the request.
        streamed: whether the answer was captured as a stream.
        completed: whether the answer is complete.
        status: HTTP status; 0 if no response arrived.
    """

    row: Mapping[str, Any]
    run_id: str
    request_id: str
    request_hash: str
    prompt: str
    api: str
    model: str
    streamed: bool
    completed: bool
    status: int

    def end(self) -> tuple[End, float]:
        """How and when the response ended."""
        error, ms = self.row["error"], float(self.row["e2e_ms"] or 0.0)
        if error is None:
            return "close", ms
        type_, code = error["type"], error["code"]
        if type_ == "timeout" and code != "connect":
            return "stall", ms
        # deltatap's code for a broken connection. A stream that ended too early has no code.
        broke = type_ in ("connection", "cancelled", "timeout") or (type_ == "stream_interrupted" and code is not None)
        return "cut" if broke or not self.status or (type_ == "internal" and code == "cut") else "close", ms

    def headers(self, api: Api) -> dict[str, str]:
        """The response headers that a client can use."""
        error, id_ = self.row["error"] or {}, self.row.get("server_request_id")
        made = {api.request_id_headers[0]: id_} if id_ and id_.isascii() and id_.isprintable() else {}
        if (seconds := error.get("retry_after_s")) is not None:
            made["retry-after"] = str(int(seconds)) if seconds == int(seconds) else str(seconds)
        return made

    def frames(self, api: Api, *, loop: int = 1, usage: bool = True) -> list[Frame]:
        """The answer as a stream.

        Args:
            api: through which it is sent.
            loop: how many times the texts are sent.
            usage: whether to send the usage.

        Raises:
            CannotSayError: the API cannot express the answer.
        """
        row, source = self.row, specification(self.api)
        if self._raw(api) and self.streamed and loop == 1 and usage:
            return list(_kept(row))
        answer = captured(row, source, api, usage=usage)
        made = list(api.frames(answer.facts).replayed(answer.looped(loop, float(row["e2e_ms"] or 0.0))))
        if (row["error"] or {}).get("type") == "protocol":
            made.append(Frame(self.end()[1], _BROKEN_EVENT))
        return made

    def body(self, api: Api, *, usage: bool = True) -> bytes:
        """The answer as a whole, or the body of a refusal.

        Raises:
            CannotSayError: the API cannot express the answer.
        """
        row, source = self.row, specification(self.api)
        if self.status != _OK:
            error = row["error"] or {}
            return to_json(api.refusal(self.status, error.get("code"), error.get("message") or "")).encode()
        if self._raw(api) and not self.streamed and usage:
            return bytes(row["raw"][0]["data"])
        if (row["error"] or {}).get("type") == "protocol":
            return b"{"
        answer = captured(row, source, api, usage=usage)
        frames = api.frames(answer.facts)
        body = frames.whole(answer.answers)
        return to_json(body if answer.error is None else frames.whole_error(body, answer.error)).encode()

    def _raw(self, api: Api) -> bool:
        """Whether the row has the bytes that the API sent. A row with the error `internal` may have other bytes."""
        return bool(self.row["raw"]) and api.name == self.api and (self.row["error"] or {}).get("type") != "internal"

    def describe(self) -> dict[str, Any]:
        """The row as an item of a list of choices."""
        return {
            "run_id": self.run_id,
            "request_id": self.request_id,
            "api": self.api,
            "model": self.model,
            "mode": self.row["mode"],
            "status": self.row["status"],
            "http_status": self.status,
            "e2e_ms": self.row["e2e_ms"],
            "prompt": self.prompt[:_PROMPT_CHARS],
        }


def recording(row: Mapping[str, Any]) -> Recording:
    """The recording of a row of captures, given as a dict.

    Raises:
        ValueError: if this version does not know the API.
    """
    if row["api"] not in NAMES:
        raise ValueError(f"this version of deltatap does not know the API {row['api'] or '(null)'}")
    error = row["error"] or {}
    status = _OK if row["status"] != "failed" else error.get("http_status") or 0
    return Recording(
        row=row,
        run_id=row["run_id"],
        request_id=row["request_id"],
        request_hash=row["request_hash"],
        prompt=prompt_of(request_of(row), row["api"]),
        api=row["api"],
        model=row["request_model"] or "",
        streamed=row["mode"] == "stream",
        completed=row["status"] == "completed",
        status=status if status in _STATUSES else 0,
    )


def request_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a row's request; empty if the row has none, or if it is not a JSON object."""
    try:
        body = decode((row["request"] or "{}").encode())
    except ValueError:
        body = {}
    return body if isinstance(body, dict) else {}


def prompt_of(body: Mapping[str, Any], api: str) -> str:
    """The last prompt of a request, as text; empty if there is none."""
    prompt = specification(api).last_prompt(body)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        # One part with a text is the same as the text: clients write it in either form.
        prompt = prompt[0].get("text", prompt)
    return clean(prompt) if isinstance(prompt, str) else "" if prompt is None else to_json(prompt)


def recordings_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Recording], dict[str, int]]:
    """The recordings of rows, and the number of rows that are left out, by reason.

    A row that reuses the answer of another one (`capture.reuse`) gets the chunks and the times of that row.
    """
    sent = {(row["run_id"], row["request_id"], row["mode"]): row for row in rows if row["started_at"] is not None}
    made, reasons = [], dict[str, int]()
    for row in rows:
        reused, source = row.get("reused_from"), None
        if reused is not None:
            source = sent.get((reused["run_id"], reused["request_id"], row["mode"]))
        try:
            made.append(recording(row if source is None else {**source, **{name: row[name] for name in _OWN}}))
        except ValueError as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
    return made, reasons


def _kept(row: Mapping[str, Any]) -> Iterator[Frame]:
    """The events of a row, byte by byte."""
    chunks = row["chunks"] or ()
    due = {chunk["event"]: chunk["ms"] for chunk in chunks if chunk["ms"] is not None}
    outputs: dict[int, int] = {}
    for chunk in chunks:
        outputs[chunk["event"]] = outputs.get(chunk["event"], 0) + (chunk["kind"] in _OUTPUT)
    ms = 0.0
    for number, kept in enumerate(row["raw"]):
        ms = due.get(number) or ms  # a time can be lost
        named = f"event: {kept['event']}\n".encode() if kept["event"] not in (None, "", "message") else b""
        lines = bytes(kept["data"]).split(b"\n")
        yield Frame(ms, named + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n", outputs.get(number, 0))
