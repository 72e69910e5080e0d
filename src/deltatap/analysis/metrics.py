"""What the metrics are: each one SQL expression over a row of ``captures``, what it means, and how others define it.

Knows no session: the expressions are text, for ``analysis.py``, for the documentation and for anybody's own queries.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the expressions name beside the columns of captures.
PARTS = {
    "output": "filter(chunks, c -> c.kind IN ('content', 'reasoning', 'refusal', 'tool_calls'))",
    "shown": "filter(chunks, c -> c.kind IN ('content', 'refusal', 'tool_calls'))",
    "events": "array_distinct(transform(filter(chunks, c -> c.kind NOT IN ('usage', 'error')), "
    "c -> struct(c.event, c.ms)))",
    "tokens": "coalesce(usage_reported.output_tokens, usage_tiktoken.output_tokens)",
}


def with_parts(captures: str) -> str:
    """SQL: the rows of ``captures`` (a table or a query in brackets) with what the metrics' expressions name."""
    return f"SELECT *, {', '.join(f'{sql} AS {name}' for name, sql in PARTS.items())} FROM {captures}"


# get() is null beyond the end of an array.
_FIRST, _LAST = "get(output, 0).ms", "get(output, size(output) - 1).ms"
_LAST_EVENT = "get(events, size(events) - 1).ms"
_LAST_CHUNK = "get(chunks, size(chunks) - 1).ms"
_AFTER_FIRST = "nullif(greatest(tokens - 1, 0), 0)"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one row of ``captures``.

    Attributes:
        name: of the column, in ``captures`` or in the metrics tables.
        label: what the field calls it, in short.
        title: its name in words.
        sql: over the columns of ``captures`` and :data:`PARTS`.
        from_chunks: the same from ``chunks`` alone (and the count of tokens); None where they do not tell.
        formula: in words; times are since the request was written to the socket.
        nothing: when it is null.
    """

    name: str
    label: str
    title: str
    sql: str
    from_chunks: str | None
    formula: str
    nothing: str


METRICS = (
    Metric(
        "headers_ms",
        "TTFB",
        "time to first byte",
        "headers_ms",
        None,
        "the response's headers have come",
        "no response came",
    ),
    Metric(
        "first_chunk_ms",
        "first chunk",
        "time to first chunk",
        "first_chunk_ms",
        "get(chunks, 0).ms",
        "the first event has come, of any kind: mostly the role, without text",
        "mode `complete`; nothing came",
    ),
    Metric(
        "ttft_ms",
        "TTFT",
        "time to first token",
        "ttft_ms",
        _FIRST,
        "the first output that is not empty has come: content, reasoning, refusal or tool call",
        "mode `complete`; no output",
    ),
    Metric(
        "ttfot_ms",
        "TTFOT",
        "time to first output token",
        "ttfot_ms",
        "get(shown, 0).ms",
        "the first output has come that is not reasoning: what a reader sees",
        "mode `complete`; nothing but reasoning",
    ),
    Metric(
        "tpot_ms",
        "TPOT",
        "time per output token",
        "tpot_ms",
        f"({_LAST} - {_FIRST}) / {_AFTER_FIRST}",
        "(last output - TTFT) / (output tokens - 1); tokens as the server reports them, else tiktoken's",
        "mode `complete`; fewer than two tokens",
    ),
    Metric(
        "normalized_ms",
        "normalized",
        "normalized latency",
        "e2e_ms / nullif(tokens, 0)",
        None,
        "E2E / output tokens",
        "no output",
    ),
    Metric(
        "stall_ms",
        "longest stall",
        "longest stall",
        "array_max(transform(output, c -> c.gap_ms))",
        "array_max(transform(output, c -> c.gap_ms))",
        "the longest time between two outputs of a choice",
        "mode `complete`; fewer than two outputs",
    ),
    Metric(
        "e2e_ms",
        "E2E",
        "end to end",
        "e2e_ms",
        None,
        "the stream, or the whole answer, has ended",
        "the request was never written",
    ),
    Metric(
        "tokens_per_s",
        "tokens a second",
        "output tokens a second",
        "tokens * 1000 / nullif(e2e_ms, 0)",
        None,
        "output tokens / E2E, of one request",
        "no E2E",
    ),
)

# Of each output but a choice's first, when it came after the one before: those of one socket read came together, which
# says nothing about the model, so only the first of a read has a gap.
GAPS = "transform(filter(output, c -> c.gap_ms > 0), c -> c.gap_ms)"
COALESCED = "size(filter(output, c -> c.gap_ms = 0))"


@dataclass(frozen=True, slots=True)
class Peer:
    """How another tool defines a metric, as SQL over a row of ``captures``; ms."""

    tool: str
    name: str
    sql: str
    differs: str


PEERS = (
    Peer(
        "vLLM bench serve",
        "TTFT",
        "get(events, 0).ms",
        "the first event with choices, which is the role's, without text: our time to first chunk",
    ),
    Peer(
        "vLLM bench serve",
        "ITL",
        "transform(slice(events, 2, size(events)), (e, i) -> e.ms - get(events, i).ms)",
        "a list: between any two events with choices, empty ones and the finish included; "
        "a chunk counts as a token, and one of several events in a read has a gap of about 0",
    ),
    Peer(
        "vLLM bench serve",
        "TPOT",
        f"({_LAST_EVENT} - get(events, 0).ms) / {_AFTER_FIRST}",
        "from its TTFT to the last event with choices",
    ),
    Peer("vLLM bench serve", "E2EL", _LAST_EVENT, "to the last event with choices, not to the stream's end"),
    Peer("guidellm", "TTFT", _FIRST, "the same as ours"),
    Peer("guidellm", "ITL", f"({_LAST} - {_FIRST}) / {_AFTER_FIRST}", "our TPOT"),
    Peer("guidellm", "TPOT", f"{_LAST} / nullif(tokens, 0)", "with the time to the first token in it"),
    Peer("aiperf", "TTFT", _FIRST, "the same as ours"),
    Peer("aiperf", "TTFO", "get(shown, 0).ms", "our time to first output token"),
    Peer(
        "aiperf",
        "ITL",
        f"({_LAST_CHUNK} - {_FIRST}) / {_AFTER_FIRST}",
        "to the last response, not to the last output; newer versions divide by the tokens after the first chunk's",
    ),
    Peer("aiperf", "request latency", _LAST_CHUNK, "to the last response"),
    Peer(
        "OpenTelemetry",
        "gen_ai.client.operation.time_to_first_chunk",
        "get(chunks, 0).ms",
        "in seconds there, and from the call of the client: with our dispatch_ms",
    ),
    Peer(
        "OpenTelemetry",
        "gen_ai.client.operation.duration",
        "e2e_ms",
        "in seconds there, and from the call of the client: with our dispatch_ms",
    ),
    Peer(
        "OpenTelemetry",
        "gen_ai.server.time_per_output_token",
        f"(e2e_ms - {_FIRST}) / {_AFTER_FIRST}",
        "in seconds there, and measured by the server: to the end of the request",
    ),
)
