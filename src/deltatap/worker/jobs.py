"""Jobs: the rows of a part, or of a batch of prompts, as an engine takes them.

Knows how a planned row becomes a job and what a request is expected to use. ``engine.py`` decides when a job starts.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from deltatap.api.registry import specification
from deltatap.model import Expected, Job, Request
from deltatap.prompts import wire
from deltatap.tokens import known_encoding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from deltatap.config import Endpoint, Settings
    from deltatap.model import Mode, Wire
    from deltatap.prices import Prices

BATCH_ROWS = 128


def jobs_of_part(path: Path, known: Collection[int], settings: Settings, prices: Prices) -> Iterator[Job]:
    """The jobs of a part, without the rows that are known.

    A part holds the two modes of one request next to each other; the second becomes the ``then`` of the first.
    """
    first: Job | None = None
    rows = (row for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS) for row in batch.to_pylist())
    for at, columns in enumerate(rows):
        if at in known:
            continue
        job = _planned(columns, at, settings.endpoint)
        # Counting tokens takes CPU time, so it is done only where limits or budgets need it.
        if settings.bounds.any and job.wire is not None:
            job.expected = expected_use(job.wire, settings, prices)
        if first is not None and first.request.request_id == job.request.request_id:
            first.then = job
            yield first
            first = None
        else:
            if first is not None:
                yield first
            first = job
    if first is not None:
        yield first


def _planned(columns: dict[str, Any], row: int, endpoint: Endpoint) -> Job:
    mode, earlier = columns.pop("mode"), columns.pop("retries") or []
    keep = None if columns["keep"] is None else dict(columns["keep"])
    return job_of(Request(**{**columns, "keep": keep}), row, earlier, endpoint, mode)


def job_of(request: Request, row: int, earlier: list[dict[str, Any]], endpoint: Endpoint, mode: Mode) -> Job:
    """The job of a request: what to send, and where its row belongs."""
    sent = (
        None
        if request.body is None
        else wire(request.body, api=endpoint.api, mode=mode, include_usage=endpoint.include_usage)
    )
    return Job(request, sent, mode, row, earlier, planned=time.perf_counter())


def expected_use(sent: Wire, settings: Settings, prices: Prices) -> Expected:
    """What a request is expected to use: its input tokens, its maximum of output tokens, and the model's price."""
    body = json.loads(sent.body)
    encoding = known_encoding(sent.model) or settings.tokens.fallback_encoding
    api = specification(settings.endpoint.api)
    inputs = api.count_input(body, sent.model, encoding)
    return Expected(inputs.tokens, api.max_output(body), sent.choices, prices.find(sent.model))
