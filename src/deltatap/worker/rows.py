"""Turns counted captures into rows of ``captures``, as Arrow columns.

Knows which column holds which fact of a capture. Leaves the columns' types to ``delta/columns.py``, tokens and costs to
``counting.py``. A row takes milliseconds, so run this off the event loop.

No answer can raise here. A row that cannot be stored gets the error ``internal`` and keeps its output; the other rows
of its batch are not affected.

Chunks are built as flat columns (offsets, one float buffer, one array of strings). Building a dict for each chunk would
cost more than everything else that the worker does for the chunk.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from deltatap.delta import columns
from deltatap.http.faults import is_fault
from deltatap.model import KINDS, Chunks
from deltatap.worker.timing import Times, itl_ms, tpot_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.model import Call, CaptureError, Job
    from deltatap.worker.counting import Context, Output, Row

    Tokens = np.ndarray[Any, Any]

CAPTURES_SCHEMA = columns.arrow_schema(columns.CAPTURES)
JOURNAL_SCHEMA = columns.arrow_schema(columns.JOURNAL)
_NULLS: dict[str, Any] = dict.fromkeys(CAPTURES_SCHEMA.names)
_EMPTY = Chunks()


def captures_batch(rows: Sequence[Row], context: Context) -> pa.RecordBatch:
    """The rows as a batch with the schema of ``captures``."""
    return pa.RecordBatch.from_arrays(_arrays(rows, context), schema=CAPTURES_SCHEMA)


def journal_batch(rows: Sequence[Row], context: Context, *, plan: int, part: int) -> pa.RecordBatch:
    """The rows as a batch of the journal: the columns of ``captures``, and plan, part and row."""
    origin = [
        pa.array([plan] * len(rows), pa.int32()),
        pa.array([part] * len(rows), pa.int32()),
        pa.array([row.capture.job.row for row in rows], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays([*_arrays(rows, context), *origin], schema=JOURNAL_SCHEMA)


def _arrays(rows: Sequence[Row], context: Context) -> list[pa.Array]:
    try:
        return _mapped([_values(row, context) for row in rows], [_chunks(row) for row in rows], _tokens(rows))
    except BaseException as error:
        if len(rows) == 1:
            return _fitted(rows[0].with_fault(error), context)
        if not is_fault(error):
            raise
    return [pa.concat_arrays(column) for column in zip(*(_arrays([row], context) for row in rows), strict=True)]


def _mapped(
    values: Sequence[dict[str, Any]], chunks: Sequence[Chunks], tokens: Sequence[Tokens | None]
) -> list[pa.Array]:
    return [
        chunks_array(chunks, tokens)
        if field.name == "chunks"
        else pa.array([row[field.name] for row in values], field.type)
        for field in CAPTURES_SCHEMA
    ]


def _chunks(row: Row) -> Chunks:
    return row.last.received.chunks if row.last else _EMPTY


def _tokens(rows: Sequence[Row]) -> list[Tokens | None]:
    return [row.outputs[-1].by_chunk if row.outputs else None for row in rows]


def _fitted(row: Row, context: Context) -> list[pa.Array]:
    """The columns of a row that Arrow refused. Values that do not fit are replaced or left out."""
    try:
        values = _values(row, context)
    except BaseException as error:
        if not is_fault(error):
            raise
        values = _minimal(row, context)
    fitted = {field.name: fit(values.get(field.name), field.type) for field in CAPTURES_SCHEMA}
    try:
        return _mapped([fitted], [_chunks(row)], _tokens([row]))
    except BaseException as error:
        if not is_fault(error):
            raise
        return _mapped([fitted], [_EMPTY], [None])


def _minimal(row: Row, context: Context) -> dict[str, Any]:
    """The values that identify a row, and the bytes of the answer that had arrived."""
    request, last = row.capture.job.request, row.last
    text = last.received.text if last else None
    raw = None if not isinstance(text, str) else [{"event": "", "data": text.encode("utf-8", "surrogatepass")}]
    return {
        "run_id": context.run_id,
        "request_id": request.request_id,
        "request_hash": request.request_hash,
        "source_hash": request.source_hash,
        "mode": row.capture.job.mode,
        "status": row.status,
        "keep": request.keep,
        "text": text,
        "choices": [],
        "retries": row.capture.job.earlier,
        "error": _error(row.error),
        "endpoint": context.endpoint,
        "api": context.api,
        "request_model": request.model,
        "request": last.body if last else None,
        "raw": raw,
        "started_at": _utc(last.started_at) if last else None,
        "finished_at": _utc(last.ended_at) if last else None,
        "worker": context.worker,
    }


def fit(value: Any, type_: pa.DataType) -> Any:  # noqa: ANN401, PLR0911 - any value; one return for each type
    """The value as an Arrow type can hold it. Lone surrogates are replaced; a value that does not fit becomes None."""
    if value is None:
        return None
    if pa.types.is_struct(type_):
        return (
            {field.name: fit(value.get(field.name), field.type) for field in type_} if isinstance(value, dict) else None
        )
    if pa.types.is_map(type_):
        pairs = value.items() if isinstance(value, dict) else ()
        return [(fit(key, type_.key_type), fit(item, type_.item_type)) for key, item in pairs if key is not None]
    if pa.types.is_list(type_):
        return [fit(item, type_.value_type) for item in value] if isinstance(value, list | tuple) else None
    if pa.types.is_string(type_) and isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if pa.types.is_floating(type_) and isinstance(value, Decimal):
        value = float(value)
    try:
        return pa.scalar(value, type_).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def chunks_array(chunks: Sequence[Chunks], tokens: Sequence[Tokens | None]) -> pa.ListArray:
    """The ``chunks`` column: one list per capture.

    ``tokens`` has the number of tokens of each chunk, or None if they were not counted.
    """
    offsets = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum([len(c) for c in chunks], out=offsets[1:])

    def joined(name: str, dtype: type = np.intc) -> np.ndarray[Any, Any]:
        return np.concatenate([np.empty(0, dtype), *(np.frombuffer(getattr(c, name), dtype) for c in chunks if len(c))])

    choice = joined("choice")
    fields = [
        pa.array(joined("ms", np.double), from_pandas=True),  # NaN is null
        pa.array(joined("gap_ms", np.double), from_pandas=True),
        _texts_array(chunks),
        pa.array(KINDS).take(pa.array(joined("kind", np.int8))),
        pa.array(choice, mask=choice < 0),
        pa.array(joined("event")),
        pa.array(joined("read")),
        _tokens_array(chunks, tokens),
    ]
    struct = pa.StructArray.from_arrays(fields, fields=list(columns.CHUNKS.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), struct, type=columns.CHUNKS)


def _tokens_array(chunks: Sequence[Chunks], tokens: Sequence[Tokens | None]) -> pa.Int32Array:
    """The tokens of all elements; null if they have not been counted."""
    uncounted = [np.full(len(c), -1, np.int32) if t is None else t for c, t in zip(chunks, tokens, strict=True)]
    every = np.concatenate([np.empty(0, np.int32), *uncounted])
    return pa.array(every, mask=every < 0)


def _texts_array(chunks: Sequence[Chunks]) -> pa.StringArray:
    """The texts of all elements, built from their UTF-8 bytes without decoding."""
    before = np.cumsum([0, *(len(c.utf8) for c in chunks)])
    if before[-1] > np.iinfo(np.int32).max:
        raise OverflowError("the texts are longer than Arrow's offsets reach")
    ends = [np.frombuffer(c.end, np.intc) + start for c, start in zip(chunks, before, strict=False) if len(c)]
    offsets = np.concatenate([[0], *ends]).astype(np.int32)
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(b"".join(c.utf8 for c in chunks))
    )


def _values(row: Row, context: Context) -> dict[str, Any]:
    capture, last = row.capture, row.last
    job = capture.job
    # A row without a call (a bad prompt) has no values for the columns that describe one.
    of_call = _of_call(last, row.outputs[-1:]) if last else {**_NULLS, "choices": []}
    counted = {
        "encoding": row.encoding,
        "input_tokens": row.input.tokens,
        "output_tokens": row.output_tokens,
        "total_tokens": row.input.tokens + row.output_tokens,
        "approximate": row.input.approximate,
    }
    body = (last.body if last else None) or (job.wire.body if job.wire else None)
    reused_from = None
    if capture.reused is not None:
        answer = capture.reused.job
        values = _of_call(answer.calls[-1], ())
        of_call |= {name: values[name] for name in columns.ANSWER if name in values}
        reused_from = {"run_id": context.run_id, "request_id": answer.request.request_id}
        body = answer.calls[-1].body or body
    return {
        **of_call,
        "run_id": context.run_id,
        "request_id": job.request.request_id,
        "request_hash": job.request.request_hash,
        "source_hash": job.request.source_hash,
        "mode": job.mode,
        "status": row.status,
        "keep": job.request.keep,
        "retries": _retries(job, row),
        "error": _error(row.error),
        "queued_ms": capture.queued_ms,
        "loop_lag_ms": capture.loop_lag_ms,
        "usage_tiktoken": None if capture.reused else counted,
        **_cost(row),
        "endpoint": context.endpoint,
        "api": context.api,
        "request_model": job.request.model,
        "request": body,
        "worker": context.worker,
        "reused_from": reused_from,
        "scheduled_ms": capture.scheduled_ms,
        "partial_moderation": capture.partial_moderation,
        "resumed": [{**asdict(each), "at": _utc(each.at)} for call in job.calls for each in call.resumed] or None,
    }


def _cost(row: Row) -> dict[str, Any]:
    cost = row.cost
    return {
        "cost_usd": None if cost.usd is None else float(cost.usd),
        "cost": None if cost.usd is None else dict(cost.parts),
        "price": None if cost.price is None else json.dumps(cost.price.to_json(), ensure_ascii=False),
        "cost_basis": cost.basis,
    }


def _of_call(call: Call, outputs: Sequence[Output]) -> dict[str, Any]:
    """The columns of a call; `outputs` has the output of the call, unless it could not be counted."""
    received = call.received
    times = Times.of(received.chunks)
    reported = received.usage.output_tokens if received.usage else None
    tokens = reported or sum(output.tokens for output in outputs)  # a server can report zero although text arrived
    return {
        "finish_reason": received.finish_reason,
        "text": received.text,
        "choices": [asdict(choice) for choice in received.choices],
        "dispatch_ms": call.dispatch_ms,
        "headers_ms": call.headers_ms,
        "first_chunk_ms": times.first_chunk_ms,
        "ttft_ms": times.ttft_ms,
        "ttfot_ms": times.ttfot_ms,
        "last_chunk_ms": times.last_chunk_ms,
        "e2e_ms": call.e2e_ms,
        "clock": call.clock,
        "connection": None if call.connection is None else asdict(call.connection),
        "tpot_ms": tpot_ms(times.ttft_ms, times.last_chunk_ms, tokens),
        "itl_ms": next((itl_ms(received.chunks, output.by_chunk, times) for output in outputs), None),
        "token_source": next((output.source for output in outputs), None),
        "usage_reported": None if received.usage is None else asdict(received.usage),
        "response_model": received.response_model,
        "response_id": received.response_id,
        "server_request_id": call.server_request_id,
        "server_timing": dict(call.server_timing) or None,
        "system_fingerprint": received.system_fingerprint,
        "service_tier": received.service_tier,
        "content_filter": received.content_filter,
        "logprobs": received.logprobs,
        "annotations": received.annotations,
        "moderation": received.moderation,
        "raw": None if received.raw is None else [{"event": kind, "data": data} for kind, data in received.raw],
        "started_at": _utc(call.started_at),
        "finished_at": _utc(call.ended_at),
    }


def _retries(job: Job, row: Row) -> list[dict[str, Any]]:
    tokens = [output.by_chunk.tolist() for output in row.outputs] or [None] * len(job.calls)
    return [
        *job.earlier,
        *(
            {
                "started_at": _utc(call.started_at),
                "e2e_ms": call.e2e_ms,
                "http_status": call.http_status,
                "error_type": call.error.type if call.error else None,
                "text": call.received.text,
                "chunks": call.received.chunks.to_dicts(its_tokens),
                "input_tokens": bill.input_tokens,
                "output_tokens": bill.output_tokens,
                "cost_usd": None if bill.cost_usd is None else float(bill.cost_usd),
                "response_id": call.received.response_id,
                "server_request_id": call.server_request_id,
            }
            for call, bill, its_tokens in zip(job.calls[:-1], row.bills[:-1], tokens[:-1], strict=True)
        ),
    ]


def _error(error: CaptureError | None) -> dict[str, Any] | None:
    return None if error is None else {**asdict(error), "retryable": error.retryable}


def _utc(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
