"""The metrics of one captured request: the definition of each, and its SQL expression over a row of ``captures``.

To add a metric, add it to :data:`METRICS`. The analysis tables, the report, the terminal, the comparison of runs and
docs/metrics.md (``make docs``) use that list. This module runs no query.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltatap.model import OUTPUT_KINDS


def kinds_sql(*left_out: str, kind: str = "c.kind") -> str:
    """SQL: whether a chunk is output, not counting the kinds in ``left_out``."""
    kinds = ", ".join(f"'{name}'" for name in OUTPUT_KINDS if name not in left_out)
    return f"{kind} IN ({kinds})"


def signed(value: float) -> str:
    """A difference with its sign and one decimal, as people read it; without a sign if that rounds to zero."""
    return f"{value:+,.1f}" if round(value, 1) else "0.0"


# The names that the expressions use in addition to the columns of captures.
PARTS = {
    "output": f"filter(chunks, c -> {kinds_sql()})",
    "shown": f"filter(chunks, c -> {kinds_sql('reasoning')})",
    "events": "array_distinct(transform(filter(chunks, c -> c.kind NOT IN ('usage', 'error')), "
    "c -> struct(c.event, c.ms)))",
    # Some servers report zero tokens for an answer that has text. Costs ignore such a count, too.
    "tokens": "coalesce(nullif(usage_reported.output_tokens, 0), usage_tiktoken.output_tokens, "
    "usage_reported.output_tokens)",
    "checks": "from_json(partial_moderation, "
    "'ARRAY<STRUCT<choice: INT, flagged: BOOLEAN, error: STRING, took_ms: DOUBLE, seen: INT>>')",
}


def with_parts(captures: str) -> str:
    """SQL: the rows of ``captures`` (a table, or a query in parentheses) with :data:`PARTS` as columns."""
    return f"SELECT *, {', '.join(f'{sql} AS {name}' for name, sql in PARTS.items())} FROM {captures}"


# get() returns null beyond the end of an array.
_FIRST, _LAST = "get(output, 0).ms", "get(output, size(output) - 1).ms"
_LAST_EVENT = "get(events, size(events) - 1).ms"
_LAST_CHUNK = "get(chunks, size(chunks) - 1).ms"
_AFTER_FIRST = "nullif(greatest(tokens - 1, 0), 0)"
_TOKENS = "aggregate({}, 0, (sum, c) -> sum + c.tokens)"
_LATER = _TOKENS.format("filter(output, c -> c.read > get(output, 0).read)")
_ALL_TOKENS = _TOKENS.format("output")
_READS = "size(array_distinct(transform(filter(output, c -> c.tokens > 0), c -> c.read)))"
_LONGEST_GAP = "array_max(transform(output, c -> c.gap_ms))"
# If events were merged into one read, only the time of the last one is exact. A gap of 0 lies within a read.
_EXACT = (
    "coalesce(c.gap_ms <> 0, true) AND "
    "coalesce(get(chunks, i + 1).read <> c.read OR get(chunks, i + 1).event = c.event, true)"
)


_CONTENT = "filter(chunks, c -> c.kind = 'content')"

# Every check of a choice except the last one, and the last checks.
_FOLLOWED = "coalesce(get(checks, i + 1).choice = c.choice, false)"
_EXTRA, _LAST_CHECKS = f"filter(checks, (c, i) -> {_FOLLOWED})", f"filter(checks, (c, i) -> NOT {_FOLLOWED})"
_TOOK_MS = "aggregate({}, 0D, (sum, c) -> sum + coalesce(c.took_ms, 0D))"
CHECKED = "size(filter(checks, c -> c.flagged IS NOT NULL)) > 0"
FLAGGED = "size(filter(checks, c -> c.flagged)) > 0"
FAILED_CHECKS = "greatest(size(filter(checks, c -> c.error IS NOT NULL)), 0)"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one row of ``captures``.

    Attributes:
        name: the column's name in the metrics tables, and in ``captures`` if it is stored there.
        label: the usual short name.
        title: the name for people.
        sql: expression over the columns of ``captures`` and :data:`PARTS`.
        from_chunks: the same value from ``chunks`` and the token count alone; None if they are not enough.
        formula: the definition, as text. Times start when the request is written to the socket.
        null_when: when the metric is null.
        unit: of the values.
        merged_sql: the expression for a row with the kernel's times whose event loop ran late; None if it is `sql`.
        rows: condition for the rows that count. Times count in completed rows whose event loop was not late.
    """

    name: str
    label: str
    title: str
    sql: str
    from_chunks: str | None
    formula: str
    null_when: str
    unit: str = "ms"
    merged_sql: str | None = None
    rows: str = "counts"


# The same metrics from the scheduled time of a request, for bounds of analysis.slo.
FROM_SCHEDULE = {name: f"scheduled_ms + dispatch_ms + {name}" for name in ("ttft_ms", "e2e_ms")}

METRICS = (
    Metric(
        name="headers_ms",
        label="TTFB",
        title="time to first byte",
        sql="headers_ms",
        from_chunks=None,
        formula="time until the response headers arrive",
        null_when="no response arrived",
    ),
    Metric(
        name="first_chunk_ms",
        label="first chunk",
        title="time to first chunk",
        sql="first_chunk_ms",
        from_chunks="get(chunks, 0).ms",
        formula="time until the first event of any kind arrives; usually the role, without text",
        null_when="mode is `complete`; no event arrived",
    ),
    Metric(
        name="ttft_ms",
        label="TTFT",
        title="time to first token",
        sql="ttft_ms",
        from_chunks=_FIRST,
        formula="time until the first non-empty output arrives: content, reasoning, refusal or tool call",
        null_when="mode is `complete`; no output arrived",
    ),
    Metric(
        name="ttft_cached_ms",
        label="TTFT cached",
        title="time to first token of cache hits",
        sql="IF(usage_reported.cached_input_tokens > 0, ttft_ms, NULL)",
        from_chunks=None,
        formula="TTFT of requests whose input was read from the provider's cache, at least in part",
        null_when="TTFT is null; the server reported no cached tokens, or zero",
    ),
    Metric(
        name="ttft_uncached_ms",
        label="TTFT uncached",
        title="time to first token of cache misses",
        sql="IF(usage_reported.cached_input_tokens = 0, ttft_ms, NULL)",
        from_chunks=None,
        formula="TTFT of requests without any input read from the provider's cache",
        null_when="TTFT is null; the server did not report cached tokens, or reported more than zero",
    ),
    Metric(
        name="ttfot_ms",
        label="TTFOT",
        title="time to first output token",
        sql="ttfot_ms",
        from_chunks="get(shown, 0).ms",
        formula="time until the first output other than reasoning arrives, which is the first output a reader sees",
        null_when="mode is `complete`; only reasoning arrived, or no output",
    ),
    Metric(
        name="tpot_ms",
        label="TPOT",
        title="time per output token",
        sql="tpot_ms",
        from_chunks=f"({_LAST} - {_FIRST}) / {_AFTER_FIRST}",
        formula="(time of the last output - TTFT) / (output tokens - 1)",
        null_when="mode is `complete`; fewer than two tokens",
    ),
    Metric(
        name="itl_ms",
        label="ITL",
        title="inter-token latency",
        sql="itl_ms",
        from_chunks=f"({_LAST} - {_FIRST}) / nullif({_LATER}, 0)",
        formula="(time of the last output - TTFT) / (tokens in the outputs after the socket read of the first output)",
        null_when="mode is `complete`; no token after the first socket read; captured by an older version",
    ),
    Metric(
        name="tokens_per_chunk",
        label="chunk size",
        title="chunk size",
        sql=f"{_ALL_TOKENS} / nullif(size(output), 0)",
        from_chunks=f"{_ALL_TOKENS} / nullif(size(output), 0)",
        formula="tokens in all outputs / outputs",
        null_when="mode is `complete`; no output arrived; captured by an older version",
        unit="tokens",
    ),
    Metric(
        name="burstiness",
        label="burstiness",
        title="burstiness",
        sql=f"100 * ({_ALL_TOKENS} - {_READS}) / nullif({_ALL_TOKENS}, 0)",
        from_chunks=f"100 * ({_ALL_TOKENS} - {_READS}) / nullif({_ALL_TOKENS}, 0)",
        formula="share of the tokens that arrive together with the token before them, in one socket read: "
        "(tokens - socket reads with tokens) / tokens",
        null_when="mode is `complete`; no token arrived; captured by an older version; the event loop ran late",
        unit="%",
        merged_sql="CAST(NULL AS DOUBLE)",  # on a late loop, the outputs were merged here, not on the way
    ),
    Metric(
        name="normalized_ms",
        label="normalized",
        title="normalized latency",
        sql="e2e_ms / nullif(tokens, 0)",
        from_chunks=None,
        formula="E2E / output tokens",
        null_when="no output tokens",
    ),
    Metric(
        name="stall_ms",
        label="longest stall",
        title="longest stall",
        sql=_LONGEST_GAP,
        from_chunks=_LONGEST_GAP,
        formula="longest time between two consecutive outputs of a choice",
        null_when="mode is `complete`; fewer than two outputs",
        # Data merged into one read arrived at most this much earlier, so the rest of its gap is a stall.
        merged_sql="array_max(transform(chunks, (c, i) -> CASE "
        f"WHEN NOT {kinds_sql()} OR c.gap_ms IS NULL THEN NULL WHEN {_EXACT} THEN c.gap_ms "
        "ELSE greatest(c.gap_ms - loop_lag_ms, 0D) END))",
    ),
    Metric(
        name="e2e_ms",
        label="E2E",
        title="end to end",
        sql="e2e_ms",
        from_chunks=None,
        formula="time until the response ends, streamed or whole",
        null_when="the request was never written",
    ),
    Metric(
        name="tokens_per_s",
        label="tokens/s",
        title="output rate",
        sql="tokens * 1000 / nullif(e2e_ms, 0)",
        from_chunks=None,
        formula="output tokens / E2E of one request",
        null_when="E2E is null",
        unit="tokens/s",
    ),
    Metric(
        name="scheduled_ms",
        label="start delay",
        title="delay after the scheduled time",
        sql="scheduled_ms",
        from_chunks=None,
        formula="from the scheduled time of a request to the start of its last call",
        null_when="no `capture.arrivals`",
    ),
    Metric(
        name="ttft_scheduled_ms",
        label="TTFT from schedule",
        title="time to first token from the schedule",
        sql=FROM_SCHEDULE["ttft_ms"],
        from_chunks=None,
        formula="`scheduled_ms` + `dispatch_ms` + TTFT",
        null_when="no `capture.arrivals`; TTFT is null",
    ),
    Metric(
        name="e2e_scheduled_ms",
        label="E2E from schedule",
        title="end to end from the schedule",
        sql=FROM_SCHEDULE["e2e_ms"],
        from_chunks=None,
        formula="`scheduled_ms` + `dispatch_ms` + E2E",
        null_when="no `capture.arrivals`; E2E is null",
    ),
    Metric(
        name="flagged_chars",
        label="seen before the flag",
        title="characters seen before the flag",
        sql="get(filter(checks, c -> c.flagged), 0).seen",
        from_chunks=None,
        formula="characters of a choice that had arrived when its first flagged check had its result, in rows of any "
        "status",
        null_when="no `moderation`; nothing was flagged",
        unit="characters",
        rows="true",
    ),
    Metric(
        name="partial_checks",
        label="partial checks",
        title="checks of partial answers",
        sql=f"nullif(size({_EXTRA}), -1)",  # without ANSI mode, the size of null is -1
        from_chunks=None,
        formula="checks of an answer except the last check of each choice, in rows of any status",
        null_when="no `moderation`",
        unit="checks",
        rows="true",
    ),
    Metric(
        name="partial_checks_ms",
        label="partial checks, time",
        title="time of the checks of partial answers",
        sql=_TOOK_MS.format(_EXTRA),
        from_chunks=None,
        formula="sum of the durations of these checks; no stream waits for them",
        null_when="no `moderation`",
        rows="true",
    ),
    Metric(
        name="last_check_ms",
        label="last check, time",
        title="time of the last check",
        sql=_TOOK_MS.format(_LAST_CHECKS),
        from_chunks=None,
        formula="sum of the durations of the last check of each choice",
        null_when="no `moderation`",
        rows="true",
    ),
)

# The time from each output to the one before it in its choice. Outputs that arrived in one socket read have a gap of 0,
# which says nothing about the model, so only the first output of a read counts.
GAPS = "transform(filter(output, c -> c.gap_ms > 0), c -> c.gap_ms)"
# The tokens of each output, and its socket read. The read is null if a late loop merged chunks.
SIZES = "transform(output, c -> named_struct('read', IF(merged, NULL, c.read), 'tokens', c.tokens))"
COALESCED = "size(filter(output, c -> c.gap_ms = 0))"
# The same for a row with the kernel's times whose event loop ran late. The kernel merges what arrives meanwhile, and
# all of it gets the time of its last byte. So only outputs that were alone in a read count.
MERGED_GAPS = f"transform(filter(chunks, (c, i) -> {kinds_sql()} AND c.gap_ms > 0 AND {_EXACT}), c -> c.gap_ms)"
MERGED_COALESCED = f"size(filter(chunks, (c, i) -> {kinds_sql()} AND NOT ({_EXACT})))"


@dataclass(frozen=True, slots=True)
class Peer:
    """How another tool defines a metric, as SQL over a row of ``captures``, in ms."""

    tool: str
    name: str
    sql: str
    differs: str


PEERS = (
    Peer(
        "vLLM bench serve",
        "TTFT",
        "get(events, 0).ms",
        "time of the first event with choices, usually the role without text; this is our time to first chunk",
    ),
    Peer(
        "vLLM bench serve",
        "ITL",
        "transform(slice(events, 2, size(events)), (e, i) -> e.ms - get(events, i).ms)",
        "a list of the times between consecutive events with choices, including empty events and the finish; it counts "
        "a chunk as a token, and events from one socket read are about 0 ms apart",
    ),
    Peer(
        "vLLM bench serve",
        "TPOT",
        f"({_LAST_EVENT} - get(events, 0).ms) / {_AFTER_FIRST}",
        "from its TTFT to the last event with choices",
    ),
    Peer(
        "vLLM bench serve",
        "E2EL",
        _LAST_EVENT,
        "ends at the last event with choices, not at the end of the stream",
    ),
    Peer("guidellm", "TTFT", _FIRST, "same as ours"),
    Peer(
        "guidellm",
        "ITL",
        f"({_LAST} - {_FIRST}) / {_AFTER_FIRST}",
        "this is our TPOT; in the statistics of a run, each request counts once for each of its tokens",
    ),
    Peer("guidellm", "TPOT", f"{_LAST} / nullif(tokens, 0)", "includes the time to the first token"),
    Peer("aiperf", "TTFT", _FIRST, "same as ours"),
    Peer("aiperf", "TTFO", "get(shown, 0).ms", "this is our time to first output token"),
    Peer(
        "aiperf",
        "ITL",
        f"({_LAST_CHUNK} - {_FIRST}) / {_AFTER_FIRST}",
        "ends at the last response, not at the last output; newer versions divide by the tokens after the first chunk",
    ),
    Peer(
        "aiperf",
        "ICL",
        "transform(slice(output, 2, size(output)), (c, i) -> c.ms - get(output, i).ms)",
        "a list of the times between consecutive outputs of any choice; outputs from one socket read are about 0 ms "
        "apart",
    ),
    Peer("aiperf", "request latency", _LAST_CHUNK, "ends at the last response"),
    Peer(
        "inference-perf",
        "TTFT",
        f"get({_CONTENT}, 0).ms",
        "the first content; reasoning does not count, and it includes our `dispatch_ms`",
    ),
    Peer(
        "inference-perf",
        "TPOT",
        f"(get({_CONTENT}, size({_CONTENT}) - 1).ms - get({_CONTENT}, 0).ms) / {_AFTER_FIRST}",
        "from the first content to the last",
    ),
    Peer(
        "inference-perf",
        "ITL",
        f"flatten(transform({_CONTENT}, (c, i) -> concat("
        f"array_repeat(c.ms - get({_CONTENT}, i - 1).ms, IF(i = 0, 0, 1)), array_repeat(0D, c.tokens - 1))))",
        "a list of the times between consecutive tokens; all tokens of a chunk have the time of the chunk, so most of "
        "the list is 0 if chunks are large; each chunk is encoded separately, which gives more tokens than encoding "
        "the whole text",
    ),
    Peer(
        "inference-perf",
        "NTPOT",
        "e2e_ms / nullif(tokens, 0)",
        "our normalized latency, but it includes our `dispatch_ms`",
    ),
    Peer(
        "OpenTelemetry",
        "gen_ai.client.operation.time_to_first_chunk",
        "get(chunks, 0).ms",
        "in seconds, and from the start of the client's call, so it includes our `dispatch_ms`",
    ),
    Peer(
        "OpenTelemetry",
        "gen_ai.client.operation.duration",
        "e2e_ms",
        "in seconds, and from the start of the client's call, so it includes our `dispatch_ms`",
    ),
    Peer(
        "OpenTelemetry",
        "gen_ai.server.time_per_output_token",
        f"(e2e_ms - {_FIRST}) / {_AFTER_FIRST}",
        "in seconds, measured by the server, and ends with the request",
    ),
)
