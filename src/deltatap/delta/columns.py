"""The tables' columns, written once: from here come the Arrow schema, the Spark schema, the DDL and the documentation.

Knows names, types and meanings. Leaves to others how rows are made (``rows.py``) and how they land (``landing.py``).
Types are spelled as in Spark SQL; a small parser turns them into Arrow's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark.sql.types import StructType

CHUNKS = "ARRAY<STRUCT<ms DOUBLE, gap_ms DOUBLE, text STRING, kind STRING, choice INT, event INT, read INT>>"
RETRIES = (
    "ARRAY<STRUCT<started_at TIMESTAMP, e2e_ms DOUBLE, http_status INT, error_type STRING, text STRING, "
    f"chunks {CHUNKS}, input_tokens BIGINT, output_tokens BIGINT, cost_usd DOUBLE>>"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its type in Spark SQL's spelling, and what it holds."""

    name: str
    type: str
    comment: str


CAPTURES: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run that captured the row"),
    Column("request_id", "STRING", "of the prompts table, or derived from request_hash"),
    Column("request_hash", "STRING", "sha256 of the body's compact JSON with sorted keys, without stream options"),
    Column(
        "source_hash",
        "BIGINT",
        "of the prompts row and the defaults: the next plan sees by it that nothing changed; null where rows differ",
    ),
    Column("mode", "STRING", "stream or complete"),
    Column("status", "STRING", "completed, interrupted (something arrived, then it broke off) or failed"),
    Column("keep", "MAP<STRING, STRING>", "what prompts.keep named"),
    Column("finish_reason", "STRING", "of choice 0, as the API sent it; null when none arrived"),
    Column("text", "STRING", "of choice 0"),
    Column(
        "choices",
        "ARRAY<STRUCT<index INT, text STRING, finish_reason STRING, refusal STRING, reasoning STRING, "
        "tool_calls STRING>>",
        "all choices; tool_calls as JSON",
    ),
    Column(
        "chunks", CHUNKS, "one element per (event, choice, kind) of the last call; ms since the request was written"
    ),
    Column("retries", RETRIES, "the earlier calls for this row in this run, oldest first"),
    Column(
        "error",
        "STRUCT<type STRING, code STRING, message STRING, http_status INT, retryable BOOLEAN, retry_after_s DOUBLE>",
        "null when completed",
    ),
    Column("queued_ms", "DOUBLE", "from planned in the worker to the first call's start"),
    Column("dispatch_ms", "DOUBLE", "from the last call's start to its request written to the socket"),
    Column("headers_ms", "DOUBLE", "from written to the response's headers"),
    Column("first_chunk_ms", "DOUBLE", "from written to the first event"),
    Column("ttft_ms", "DOUBLE", "from written to the first output; reasoning counts"),
    Column("ttfot_ms", "DOUBLE", "from written to the first output that is not reasoning"),
    Column("last_chunk_ms", "DOUBLE", "from written to the last output"),
    Column("e2e_ms", "DOUBLE", "from written to the end of the stream"),
    Column("tpot_ms", "DOUBLE", "(last_chunk_ms - ttft_ms) / (output tokens - 1); null below 2 tokens"),
    Column("loop_lag_ms", "DOUBLE", "the event loop's worst delay while the stream was open"),
    Column(
        "usage_reported",
        "STRUCT<input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, cached_input_tokens BIGINT, "
        "reasoning_tokens BIGINT, audio_input_tokens BIGINT, audio_output_tokens BIGINT>",
        "what the server counted in the last call; null when it sent none",
    ),
    Column(
        "usage_tiktoken",
        "STRUCT<encoding STRING, input_tokens BIGINT, output_tokens BIGINT, total_tokens BIGINT, approximate BOOLEAN>",
        "what tiktoken counts, for the text that did arrive; approximate where no rule or encoding is published",
    ),
    Column("cost_usd", "DOUBLE", "of all calls of the row; null where the model has no price"),
    Column("cost_basis", "STRING", "reported, tiktoken or mixed"),
    Column("endpoint", "STRING", "the endpoint's name"),
    Column("api", "STRING", "the API that was called: `endpoint.api`"),
    Column("request_model", "STRING", "the model asked for"),
    Column("response_model", "STRING", "the model that answered"),
    Column("response_id", "STRING", "of the completion or the response"),
    Column("server_request_id", "STRING", "the header x-request-id"),
    Column("system_fingerprint", "STRING", "as the API sent it"),
    Column("service_tier", "STRING", "as the API sent it"),
    Column("request", "STRING", "the JSON body sent, without credentials; null when none could be built"),
    Column("content_filter", "STRING", "JSON of what filters and guardrails said, in order, where there is any"),
    Column("logprobs", "STRING", "JSON, by choice, where there is any"),
    Column("moderation", "STRING", "JSON, where it was asked for"),
    Column(
        "raw",
        "ARRAY<STRUCT<event STRING, data BINARY>>",
        "every event's type and bytes, [DONE] included, or a whole answer's body, of the last call; "
        "null unless capture.keep_raw",
    ),
    Column("started_at", "TIMESTAMP", "the last call's start; UTC"),
    Column("finished_at", "TIMESTAMP", "the last call's end; UTC"),
    Column("worker", "STRING", "host and partition"),
)

# Where a row came from: the plan's epoch, the part, the row of the part. What has landed is remembered by these.
JOURNAL: tuple[Column, ...] = (
    *CAPTURES,
    Column("plan", "INT", "epoch of the plan"),
    Column("part", "INT", "part of the plan"),
    Column("row", "INT", "row of the part"),
)

RUNS: tuple[Column, ...] = (
    Column("run_id", "STRING", "the run"),
    Column("status", "STRING", "running, completed, stopped, budget_exhausted, failed or died"),
    Column("reason", "STRING", "why it ended so, in one line"),
    Column("started_at", "TIMESTAMP", "UTC"),
    Column("finished_at", "TIMESTAMP", "UTC; null while it runs"),
    Column("heartbeat_at", "TIMESTAMP", "when the driver last said that it lives; UTC"),
    Column("owed", "BIGINT", "requests that the run had to capture"),
    Column("completed", "BIGINT", "rows"),
    Column("interrupted", "BIGINT", "rows"),
    Column("failed", "BIGINT", "rows"),
    Column("requests", "BIGINT", "calls made"),
    Column("input_tokens", "BIGINT", "of all calls: reported, else tiktoken's"),
    Column("output_tokens", "BIGINT", "of all calls: reported, else tiktoken's"),
    Column("cost_usd", "DOUBLE", "of all rows that have a price"),
    Column("labels", "MAP<STRING, STRING>", "run.labels"),
    Column("config", "STRING", "the settings as JSON; holds no secret"),
    Column("versions", "MAP<STRING, STRING>", "of deltatap, Python, Spark and the libraries that matter"),
    Column("captures", "STRING", "the captures table that the run writes: its lease is for this table"),
    Column("epoch", "BIGINT", "counts the lease's holders; the highest holds it"),
    Column("driver", "STRING", "host, boot and process of the lease's holder"),
)

REQUESTS: tuple[Column, ...] = (
    Column("request_id", "STRING", ""),
    Column("request_hash", "STRING", ""),
    Column("model", "STRING", ""),
    Column("body", "STRING", "the request's JSON body without stream options; null for a bad row"),
    Column("keep", "MAP<STRING, STRING>", ""),
    Column("error", "STRING", "what is wrong with a bad row"),
    Column("source_hash", "BIGINT", ""),
)

# What a plan's part holds: a request, and the calls that this run made for it before.
OWED: tuple[Column, ...] = (*REQUESTS, Column("mode", "STRING", ""), Column("retries", RETRIES, ""))

_PRIMITIVES = {
    "STRING": pa.string(),
    "DOUBLE": pa.float64(),
    "INT": pa.int32(),
    "BIGINT": pa.int64(),
    "BOOLEAN": pa.bool_(),
    "BINARY": pa.binary(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}
_TOKEN = re.compile(r"\w+|[<>,]")


def arrow_type(ddl: str) -> pa.DataType:
    """The Arrow type of a type in Spark SQL's spelling."""
    return _parsed(iter(_TOKEN.findall(ddl)))


def _parsed(tokens: Iterator[str]) -> pa.DataType:
    name = next(tokens)
    if name in _PRIMITIVES:
        return _PRIMITIVES[name]
    next(tokens)  # <
    if name == "ARRAY":
        element = _parsed(tokens)
        next(tokens)  # >
        return pa.list_(element)
    if name == "MAP":
        key = _parsed(tokens)
        next(tokens)  # ,
        value = _parsed(tokens)
        next(tokens)  # >
        return pa.map_(key, value)
    fields = []
    while True:
        fields.append(pa.field(next(tokens), _parsed(tokens)))
        if next(tokens) == ">":
            return pa.struct(fields)


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a table's columns."""
    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in columns])


def spark_sql(type_: str) -> str:
    """A column's type as Spark SQL reads it: a struct's fields are ``name: type`` there."""
    return re.sub(r"(\w+) (?=\w)", r"\1: ", type_)


def spark_schema(columns: Sequence[Column]) -> StructType:
    """The Spark schema of a table's columns; needs no session."""
    from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415 - the core is imported without Spark

    return from_arrow_schema(arrow_schema(columns))


def ddl(columns: Sequence[Column]) -> str:
    """The columns as in ``CREATE TABLE``, with their comments."""
    comments = (column.comment.replace("'", r"\'") for column in columns)
    return ",\n  ".join(
        f"`{column.name}` {spark_sql(column.type)} COMMENT '{comment}'"
        for column, comment in zip(columns, comments, strict=True)
    )


# What analysis filters on. Statistics are kept of such columns, and not of the first thirty-two, mostly texts.
CAPTURES_CLUSTERED_BY = ("run_id", "mode", "endpoint", "request_model")
CAPTURES_PROPERTIES = (
    "'delta.dataSkippingStatsColumns' = 'run_id,request_id,mode,status,endpoint,request_model,started_at,finished_at'"
)
