"""The columns of the tables, declared once as Arrow types.

The DDL, the Spark schema and docs/tables.md are derived from these declarations. The modules that build, land and read
rows take names and types from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from deltatap.rates import PARTS, PLACES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyspark.sql.types import StructType

STRING, BINARY, BOOLEAN = pa.string(), pa.binary(), pa.bool_()
INT, BIGINT, DOUBLE = pa.int32(), pa.int64(), pa.float64()
TIMESTAMP = pa.timestamp("us", tz="UTC")
# Twenty digits before the decimal point: no call costs more.
USD = pa.decimal128(38, PLACES)
STRINGS = pa.map_(STRING, STRING)

CHUNK = pa.struct(
    {"ms": DOUBLE, "gap_ms": DOUBLE, "text": STRING, "kind": STRING, "choice": INT, "event": INT, "read": INT,
     "tokens": INT}
)  # fmt: skip
CHUNKS = pa.list_(CHUNK)
RETRY = pa.struct(
    {
        "started_at": TIMESTAMP, "e2e_ms": DOUBLE, "http_status": INT, "error_type": STRING, "text": STRING,
        "chunks": CHUNKS, "input_tokens": BIGINT, "output_tokens": BIGINT, "cost_usd": DOUBLE,
        "response_id": STRING, "server_request_id": STRING,
    }
)  # fmt: skip
RETRIES = pa.list_(RETRY)
_CHOICE = pa.struct(
    {"index": INT, "text": STRING, "finish_reason": STRING, "refusal": STRING, "reasoning": STRING,
     "tool_calls": STRING}
)  # fmt: skip
_ERROR = pa.struct(
    {"type": STRING, "code": STRING, "message": STRING, "http_status": INT, "retryable": BOOLEAN,
     "retry_after_s": DOUBLE}
)  # fmt: skip
_REPORTED = pa.struct(
    {"input_tokens": BIGINT, "output_tokens": BIGINT, "total_tokens": BIGINT, "cached_input_tokens": BIGINT,
     "reasoning_tokens": BIGINT, "audio_input_tokens": BIGINT, "audio_output_tokens": BIGINT,
     "cache_write_tokens": BIGINT, "cache_write_1h_tokens": BIGINT, "accepted_prediction_tokens": BIGINT,
     "rejected_prediction_tokens": BIGINT, "image_input_tokens": BIGINT, "image_output_tokens": BIGINT,
     "citation_tokens": BIGINT, "web_searches": BIGINT}
)  # fmt: skip
_COUNTED = pa.struct(
    {"encoding": STRING, "input_tokens": BIGINT, "output_tokens": BIGINT, "total_tokens": BIGINT,
     "approximate": BOOLEAN}
)  # fmt: skip
_CONNECTION = pa.struct(
    {"reused": BOOLEAN, "dns_ms": DOUBLE, "connect_ms": DOUBLE, "tls_ms": DOUBLE, "upload_ms": DOUBLE}
)
_COST = pa.struct([pa.field(name, USD) for name in (*PARTS, "retries")])
_RESUMED = pa.list_(
    pa.struct(
        {"at": TIMESTAMP, "after": BIGINT, "error_type": STRING, "outcome": STRING, "times_lost": BOOLEAN}
    )
)  # fmt: skip
_RAW = pa.list_(pa.struct({"event": STRING, "data": BINARY}))


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its Arrow type, and what it holds. A table of an older version lacks an added column."""

    name: str
    type: pa.DataType
    comment: str
    added: bool = False


_ROW = pa.struct({"run_id": STRING, "request_id": STRING})

CAPTURES: tuple[Column, ...] = (
    Column("run_id", STRING, "the run that captured the row"),
    Column("request_id", STRING, "from the prompts table, or else request_hash"),
    Column(
        "request_hash",
        STRING,
        "SHA-256 of the request body as compact JSON with sorted keys, without stream and stream_options.include_usage",
    ),
    Column(
        "source_hash",
        BIGINT,
        "hash of the prompts row and the request defaults; the next plan skips prompts whose hash is unchanged; null "
        "when prompts with the same request_id differ",
    ),
    Column("mode", STRING, "stream or complete"),
    Column(
        "status",
        STRING,
        "completed, interrupted (the call ended early after some output arrived) or failed (no output)",
    ),
    Column("keep", STRINGS, "the columns listed in prompts.keep"),
    Column("finish_reason", STRING, "finish_reason of choice 0, as the API sent it; null when none arrived"),
    Column("text", STRING, "text of choice 0"),
    Column("choices", pa.list_(_CHOICE), "all choices; tool_calls is JSON"),
    Column("chunks", CHUNKS, "chunks of the last call: one element for each event, choice and kind"),
    Column(
        "token_source",
        STRING,
        "source of chunks.tokens: usage (from the server, with each chunk), logprobs (one for each token) or tiktoken; "
        "null if chunks has no output",
        added=True,
    ),
    Column("retries", RETRIES, "the earlier calls for this row in this run, oldest first"),
    Column("error", _ERROR, "why the row is interrupted or failed; null when completed"),
    Column(
        "queued_ms",
        DOUBLE,
        "wait on the worker before the first call; in mode paired, the second request waits from the end of the first",
    ),
    Column("dispatch_ms", DOUBLE, "from the start of the last call to its request being written to the socket"),
    Column("headers_ms", DOUBLE, "from request written to response headers received"),
    Column("first_chunk_ms", DOUBLE, "from request written to the first event"),
    Column("ttft_ms", DOUBLE, "from request written to the first output, including reasoning"),
    Column("ttfot_ms", DOUBLE, "from request written to the first output other than reasoning"),
    Column("last_chunk_ms", DOUBLE, "from request written to the last output"),
    Column("e2e_ms", DOUBLE, "from request written to the end of the response"),
    Column("tpot_ms", DOUBLE, "(last_chunk_ms - ttft_ms) / (output tokens - 1); null below 2 tokens"),
    Column(
        "itl_ms",
        DOUBLE,
        "(last_chunk_ms - ttft_ms) / (output tokens that arrived after the socket read of the first output); null if "
        "there are none",
        added=True,
    ),
    Column("loop_lag_ms", DOUBLE, "the longest delay of the worker's event loop during the last call"),
    Column(
        "clock",
        STRING,
        "source of the arrival times: kernel (the socket's receive time stamps, which a late event loop does not "
        "delay) or process (when deltatap read the socket); null in rows of older versions",
        added=True,
    ),
    Column(
        "connection",
        _CONNECTION,
        "the steps before the answer of the last call. reused: an open connection was used, so dns_ms, connect_ms and "
        "tls_ms are null. connect_ms includes a proxy's tunnel; tls_ms is null without TLS; upload_ms is the time from "
        "the first byte written until the send buffer had accepted the last byte",
        added=True,
    ),
    Column(
        "usage_reported", _REPORTED, "tokens of the last call as the server reported them; null when it reported none"
    ),
    Column(
        "usage_tiktoken",
        _COUNTED,
        "tokens of the last call as tiktoken counts them, for the output that arrived; approximate is true when no "
        "counting rule or encoding is published for the model",
    ),
    Column("cost_usd", DOUBLE, "cost of all calls for the row; null when the model has no price"),
    Column(
        "cost",
        _COST,
        "the parts of cost_usd in USD: those of the last call, and retries (the cost of the earlier calls). They add "
        "up to cost_usd exactly; null when cost_usd is null",
        added=True,
    ),
    Column(
        "price",
        STRING,
        "JSON of the price of the last call: USD per million tokens (tools and requests: per thousand), its service "
        "tier, its date (null: unknown) and its source; null when the model has no price",
        added=True,
    ),
    Column("cost_basis", STRING, "the token counts that cost_usd is based on: reported, tiktoken or mixed"),
    Column("endpoint", STRING, "name of the endpoint"),
    Column("api", STRING, "the API that was called, as in endpoint.api"),
    Column("request_model", STRING, "the model requested"),
    Column("response_model", STRING, "the model named in the response"),
    Column("response_id", STRING, "id of the completion or response"),
    Column("server_request_id", STRING, "the request id in the response headers, such as x-request-id"),
    Column(
        "server_timing",
        STRINGS,
        "response headers about rate limits, timing and the server's region, such as x-ratelimit-remaining-tokens, "
        "openai-processing-ms, server-timing and x-ms-region; null when there were none",
        added=True,
    ),
    Column("system_fingerprint", STRING, "as the API sent it"),
    Column("service_tier", STRING, "as the API sent it"),
    Column("request", STRING, "the JSON body sent, without credentials; null when no request could be built"),
    Column(
        "content_filter",
        STRING,
        "JSON of the results of content filters and guardrails, in order; null when there are none",
    ),
    Column("logprobs", STRING, "JSON of the log probabilities, by choice; null when there are none"),
    Column(
        "annotations",
        STRING,
        "JSON of citations and other annotations, by choice, and the sources of the answer; null when there are none",
        added=True,
    ),
    Column("moderation", STRING, "JSON of the moderation result; null when none was requested"),
    Column(
        "partial_moderation",
        STRING,
        "JSON of the checks of the last call's text (the section moderation of the configuration), by choice and "
        "length: an array of checks; null without moderation, without a call, and in rows with reused_from",
        added=True,
    ),
    Column(
        "raw",
        _RAW,
        "type and bytes of every event of the last call, including [DONE], or the body of a whole answer; null unless "
        "capture.keep_raw is true",
    ),
    Column("started_at", TIMESTAMP, "start of the last call, UTC"),
    Column("finished_at", TIMESTAMP, "end of the last call, UTC"),
    Column("worker", STRING, "host and partition"),
    Column(
        "reused_from",
        _ROW,
        "the row that this answer was copied from (capture.reuse); null if a call was made. In a row with reused_from, "
        "times and tokens are null",
        added=True,
    ),
    Column(
        "scheduled_ms",
        DOUBLE,
        "from the scheduled time of the request (capture.arrivals) to the start of the last call; null if there is no "
        "scheduled time",
        added=True,
    ),
    Column(
        "resumed",
        _RESUMED,
        "the breaks of streams that the provider stores (capture.resume), in order; null if there was none. outcome: "
        "stream (the stream was resumed after the event with the number in after, or from the start), whole (only the "
        "whole answer could be read), expired (the provider no longer had the answer, so the request was sent again) "
        "or unseen (the connection broke before the first event, so the request was sent again). error_type is killed "
        "if the worker was killed. times_lost: times of chunks are null, and the row is left out of all times",
        added=True,
    ),
)
# The columns that a row copies from the row that it reuses.
ANSWER = (
    "finish_reason", "text", "choices", "response_model", "response_id", "system_fingerprint", "service_tier",
    "request", "content_filter", "logprobs", "annotations", "moderation",
)  # fmt: skip

# The plan's epoch, part and row identify a journaled row; landing records them as landed.
JOURNAL: tuple[Column, ...] = (
    *CAPTURES,
    Column("plan", INT, "epoch of the plan"),
    Column("part", INT, "part of the plan"),
    Column("row", INT, "row of the part"),
)

RUNS: tuple[Column, ...] = (
    Column("run_id", STRING, "id of the run"),
    Column("status", STRING, "running, completed, stopped, budget_exhausted, failed or died"),
    Column("reason", STRING, "why the run ended with this status, in one line"),
    Column("started_at", TIMESTAMP, "start of the run, UTC"),
    Column("finished_at", TIMESTAMP, "end of the run, UTC; null while it is running"),
    Column(
        "heartbeat_at", TIMESTAMP, "last heartbeat of the driver, or the time when captures landed after its end, UTC"
    ),
    Column("owed", BIGINT, "requests that the run had to capture"),
    Column("completed", BIGINT, "completed rows"),
    Column("interrupted", BIGINT, "interrupted rows"),
    Column("failed", BIGINT, "failed rows"),
    Column("requests", BIGINT, "calls made, including retries"),
    Column("input_tokens", BIGINT, "input tokens of all calls: as reported, or else as tiktoken counts them"),
    Column("output_tokens", BIGINT, "output tokens of all calls: as reported, or else as tiktoken counts them"),
    Column("cost_usd", DOUBLE, "cost of all rows that have a price"),
    Column(
        "prices",
        STRING,
        "JSON array of the prices that cost_usd is based on, each with the requested model, its date and its source",
        added=True,
    ),
    Column("labels", STRINGS, "run.labels"),
    Column("config", STRING, "the settings as JSON, without secrets"),
    Column("versions", STRINGS, "versions of deltatap, Python, Spark and the main libraries"),
    Column("captures", STRING, "the captures table that the run writes; the lease is for this table"),
    Column(
        "epoch",
        BIGINT,
        "number of the lease; it grows each time the lease is taken, and the highest epoch holds the lease",
    ),
    Column("driver", STRING, "host, boot and process of the driver, as JSON"),
    Column("captures_id", STRING, "Delta's id of the captures table; null in rows of older versions", added=True),
    Column(
        "captures_location",
        STRING,
        "location of the captures table, with links resolved; null in rows of older versions",
        added=True,
    ),
)

REQUESTS: tuple[Column, ...] = (
    Column("request_id", STRING, ""),
    Column("request_hash", STRING, ""),
    Column("model", STRING, ""),
    Column("body", STRING, "the JSON body, without what deltatap adds to stream; null for a bad row"),
    Column("keep", STRINGS, ""),
    Column("error", STRING, "the problem of a bad row"),
    Column("source_hash", BIGINT, ""),
)

# A part of a plan: requests, and the calls that this run has already made for them.
OWED: tuple[Column, ...] = (*REQUESTS, Column("mode", STRING, ""), Column("retries", RETRIES, ""))

# The columns that analysis filters on. Delta keeps statistics for these instead of for the first 32 columns, most of
# which hold long texts.
CAPTURES_CLUSTERED_BY = ("run_id", "mode", "endpoint", "request_model")
CAPTURES_PROPERTIES = (
    "'delta.dataSkippingStatsColumns' = 'run_id,request_id,mode,status,endpoint,request_model,started_at,finished_at'"
)

_SQL = {
    STRING: "STRING",
    BINARY: "BINARY",
    BOOLEAN: "BOOLEAN",
    INT: "INT",
    BIGINT: "BIGINT",
    DOUBLE: "DOUBLE",
    USD: f"DECIMAL(38, {PLACES})",
    TIMESTAMP: "TIMESTAMP",
}
# The meaning of TIMESTAMP depends on spark.sql.timestampType.
_IN_DDL = {TIMESTAMP: "TIMESTAMP_LTZ"}


def sql_type(type_: pa.DataType, names: Mapping[pa.DataType, str] | None = None) -> str:
    """An Arrow type in Spark SQL.

    Args:
        type_: the type.
        names: what to write instead of a type, at any depth; the documentation abbreviates long structs with it.
    """
    if names and type_ in names:
        return names[type_]
    if pa.types.is_list(type_):
        return f"ARRAY<{sql_type(type_.value_type, names)}>"
    if pa.types.is_map(type_):
        return f"MAP<{sql_type(type_.key_type, names)}, {sql_type(type_.item_type, names)}>"
    if pa.types.is_struct(type_):
        return f"STRUCT<{', '.join(f'{field.name}: {sql_type(field.type, names)}' for field in type_)}>"
    return _SQL[type_]


def ddl(columns: Sequence[Column]) -> str:
    """The columns as ``CREATE TABLE`` takes them, with their comments."""
    comments = [column.comment.replace("'", r"\'") for column in columns]
    return ",\n  ".join(
        f"`{column.name}` {sql_type(column.type, _IN_DDL)} COMMENT '{comment}'"
        for column, comment in zip(columns, comments, strict=True)
    )


def lacks(found: pa.DataType, ours: pa.DataType) -> bool:
    """Whether a type has all but some fields of our structs, at any depth."""
    if pa.types.is_list(found) and pa.types.is_list(ours):
        return lacks(found.value_type, ours.value_type)
    if not (pa.types.is_struct(found) and pa.types.is_struct(ours)):
        return False
    fields = {field.name: field.type for field in found}
    return any(field.name not in fields or lacks(fields[field.name], field.type) for field in ours)


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a table."""
    return pa.schema([pa.field(column.name, column.type) for column in columns])


def spark_schema(columns: Sequence[Column]) -> StructType:
    """The Spark schema of a table; needs no session."""
    from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415 - workers import this module without Spark

    return from_arrow_schema(arrow_schema(columns))
