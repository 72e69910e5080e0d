"""Turns a row of captures into a span of OpenTelemetry: a client call to a GenAI model. Pure.

Names and attributes follow the semantic conventions for GenAI client spans
(https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md and openai.md). What these do
not define begins with ``deltatap.``. A row is one span: its last call. By the conventions for recording errors, an
error that was retried does not make the span an error, so the earlier calls are events with names of our own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deltatap.api.registry import NAMES, specification
from deltatap.api.values import clean
from deltatap.export.content import input_messages, output_messages, system_instructions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Value = str | bool | int | float | list[str]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PORTS = {"http": 80, "https": 443}
# Other kinds of endpoints have OpenAI's API, or Anthropic's.
_PROVIDERS = {"azure": "azure.ai.openai", "databricks": "databricks"}
_NUMBERS = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
_OUTPUTS = {"text": "text", "json_object": "json", "json_schema": "json"}
_USAGE = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_input_tokens": "cache_read.input_tokens",
    "reasoning_tokens": "reasoning.output_tokens",
    "cache_write_tokens": "cache_creation.input_tokens",
    "audio_input_tokens": "audio.input_tokens",
    "audio_output_tokens": "audio.output_tokens",
}
# Columns that are attributes under their own name, after ``deltatap.``.
OWN = (
    "run_id", "request_id", "request_hash", "mode", "status", "endpoint", "queued_ms", "dispatch_ms", "headers_ms",
    "first_chunk_ms", "ttft_ms", "ttfot_ms", "last_chunk_ms", "e2e_ms", "tpot_ms", "itl_ms", "loop_lag_ms", "clock",
    "cost_usd", "cost_basis", "server_request_id", "worker",
)  # fmt: skip
_RETRY = ("e2e_ms", "http_status", "error_type", "input_tokens", "output_tokens", "cost_usd")
_CHUNK = ("kind", "choice", "event", "read", "tokens")


@dataclass(frozen=True, slots=True)
class Server:
    """The endpoint of a run.

    Attributes:
        provider: the value of ``gen_ai.provider.name``, unless the API is another provider's.
        address, port: of the URL; None if the run's settings do not have them.
    """

    provider: str = "openai"
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a time, in ns since the epoch."""

    name: str
    at_ns: int
    attributes: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Span:
    """A span without a parent.

    Attributes:
        trace_id: 128 bits, not 0.
        span_id: 64 bits, not 0.
        start_ns, end_ns: since the epoch.
        error: what to say about the error; None if the call completed.
    """

    trace_id: int
    span_id: int
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    events: tuple[Event, ...]
    error: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """What a span contains in addition to the attributes of the call.

    Attributes:
        content: whether they hold prompts, answers and the messages of errors.
        chunks: the share of the spans that have an event for each chunk, from 0 to 1.
    """

    content: bool = False
    chunks: float = 0.0


def server_of(config: str | None) -> Server:
    """The endpoint of a run, from its settings as JSON (the column ``runs.config``)."""
    endpoint = _object(_object(config).get("endpoint"))
    provider = _PROVIDERS.get(str(endpoint.get("kind")), "openai")
    try:
        url = urlsplit(str(endpoint.get("base_url") or ""))
        port = url.port or _PORTS.get(url.scheme)
    except ValueError:
        return Server(provider)
    return Server(provider, url.hostname, port) if url.hostname else Server(provider)


def ids(run_id: str, request_id: str, mode: str) -> tuple[int, int]:
    """The trace id and the span id of a row, so that a second export writes the same span."""
    digest = hashlib.sha256(json.dumps([run_id, request_id, mode]).encode()).digest()
    # 0 is invalid.
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1


def with_chunks(trace_id: int, share: float) -> bool:
    """Whether this span has events for its chunks.

    The choice is always the same, as OpenTelemetry samples by the trace id.
    """
    return (trace_id & (2**64 - 1)) < share * 2**64


def span(row: Mapping[str, Any], server: Server, options: Options) -> Span | None:
    """The span of a row; None if no call was made for it: a prompt that was refused, or an answer that was reused."""
    if row["started_at"] is None:
        return None
    trace_id, span_id = ids(row["run_id"], row["request_id"], row["mode"])
    attributes = {name: value for name, value in _attributes(row, server, options) if value is not None}
    start_ns = _ns(row["started_at"])
    name = f"{attributes['gen_ai.operation.name']} {attributes.get('gen_ai.request.model', '')}".rstrip()
    chunks = _chunks(row, start_ns, options) if with_chunks(trace_id, options.chunks) else ()
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        name=name,
        start_ns=start_ns,
        end_ns=start_ns if row["finished_at"] is None else _ns(row["finished_at"]),
        attributes=attributes,
        events=(*_retries(row), *chunks),
        error=_problem(row, options),
    )


def _attributes(row: Mapping[str, Any], server: Server, options: Options) -> Iterator[tuple[str, Value | None]]:
    api = row["api"] or "chat"
    spec = specification(api) if api in NAMES else None
    provider = spec.provider if spec is not None and server.provider == "openai" else server.provider
    yield "gen_ai.operation.name", "chat" if spec is None else spec.operation
    yield "gen_ai.provider.name", provider
    yield "gen_ai.request.model", row["request_model"]
    yield "server.address", server.address
    yield "server.port", server.port
    if row["mode"] == "stream":
        yield "gen_ai.request.stream", True
        if row["first_chunk_ms"] is not None:
            yield "gen_ai.response.time_to_first_chunk", row["first_chunk_ms"] / 1000
    body = _object(row["request"])
    yield from _requested(body, api)
    yield "gen_ai.response.model", row["response_model"]
    yield "gen_ai.response.id", row["response_id"]
    yield "gen_ai.response.finish_reasons", [why for why in row["finish_reasons"] or () if why is not None] or None
    for name, attribute in _USAGE.items():
        yield f"gen_ai.usage.{attribute}", (row["usage_reported"] or {}).get(name)
    if provider == "openai":
        tier = body.get("service_tier")
        yield "openai.api.type", None if spec is None else spec.openai_type
        yield "openai.request.service_tier", clean(tier) if isinstance(tier, str) and tier != "auto" else None
        yield "openai.response.service_tier", row["service_tier"]
        yield "openai.response.system_fingerprint", row["system_fingerprint"]
    if row["status"] != "completed":
        error = row["error"] or {}
        yield "error.type", error.get("type") or "_OTHER"
        yield "http.response.status_code", error.get("http_status")
        yield "deltatap.error_code", error.get("code")
    yield from _own(row)
    if options.content:
        yield "gen_ai.system_instructions", system_instructions(body, api)
        yield "gen_ai.input.messages", input_messages(body, api)
        yield "gen_ai.output.messages", output_messages(row["choices"] or ())


def _requested(body: Mapping[str, Any], api: str) -> Iterator[tuple[str, Value | None]]:
    """The parameters of a request. A value whose type differs from that in the conventions is left out."""
    for name in _NUMBERS:
        yield f"gen_ai.request.{name}", _number(body.get(name))
    seed = body.get("seed")
    # Attributes are integers of 64 bits.
    yield "gen_ai.request.seed", seed if type(seed) is int and abs(seed) < 2**63 else None
    stop = body.get("stop", body.get("stop_sequences"))
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    yield "gen_ai.request.stop_sequences", [clean(word) for word in words if isinstance(word, str)] or None
    form = body.get("response_format") or _object(body.get("text")).get("format")
    yield "gen_ai.output.type", _OUTPUTS.get(str(_object(form).get("type")))
    if api in NAMES:
        spec = specification(api)
        choices = spec.choices(body)
        yield "gen_ai.request.max_tokens", spec.max_output(body)
        yield "gen_ai.request.choice.count", choices if choices != 1 else None


def _own(row: Mapping[str, Any]) -> Iterator[tuple[str, Value | None]]:
    for name in OWN:
        yield f"deltatap.{name}", row[name]
    yield "deltatap.retries", len(row["retries"] or ())
    yield "deltatap.connection_reused", (row["connection"] or {}).get("reused")
    for name in ("encoding", "input_tokens", "output_tokens"):
        yield f"deltatap.tiktoken.{name}", (row["usage_tiktoken"] or {}).get(name)


def _retries(row: Mapping[str, Any]) -> Iterator[Event]:
    """The calls before the last one. They happened before the span began, which the specification of events allows."""
    for call in row["retries"] or ():
        if call["started_at"] is not None:
            found = {f"deltatap.retry.{name}": call[name] for name in _RETRY if call[name] is not None}
            yield Event("deltatap.retry", _ns(call["started_at"]), found)


def _chunks(row: Mapping[str, Any], start_ns: int, options: Options) -> Iterator[Event]:
    """The chunks of the last call, at their times of arrival, which count from the request being written."""
    names = (*_CHUNK, "text") if options.content else _CHUNK
    for chunk in row["chunks"] or ():
        if chunk["ms"] is None:
            continue  # its time was lost when a broken stream was read again
        at_ms = (row["dispatch_ms"] or 0.0) + chunk["ms"]
        found = {f"deltatap.chunk.{name}": chunk[name] for name in names if chunk[name] is not None}
        yield Event("deltatap.chunk", start_ns + round(at_ms * 1e6), found)


def _problem(row: Mapping[str, Any], options: Options) -> str | None:
    """The status message of an error. A server's message can repeat the prompt."""
    if row["status"] == "completed":
        return None
    error = row["error"] or {}
    if options.content and error.get("message"):
        return str(error["message"])
    return ", ".join(str(part) for part in (row["status"], error.get("type"), error.get("code")) if part)


def _ns(moment: datetime) -> int:
    # Spark's rows have local times without a zone, which this reads as such.
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND * 1000


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _object(value: object) -> dict[str, Any]:
    """A JSON object, given as such or as text; empty if it is something else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
