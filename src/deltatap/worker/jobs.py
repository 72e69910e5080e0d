"""Jobs: the rows of a part, or of a batch of prompts, in the form that an engine takes.

Knows how a planned row becomes a job and what a request is expected to use. ``engine.py`` decides when a job starts.
"""

from __future__ import annotations

import json
import time
from itertools import groupby, pairwise, tee
from typing import IO, TYPE_CHECKING, Any

import pyarrow.parquet as pq

from deltatap.api.input_tokens import InputTokens
from deltatap.api.registry import specification
from deltatap.http.faults import internal_error, is_fault
from deltatap.model import INTERNAL_REQUEST, Expected, Job, Request
from deltatap.prompts import wire
from deltatap.tokens import count_text, known_encoding
from deltatap.worker.arrivals import call_numbers
from deltatap.worker.billing import requested_tier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from deltatap.api.base import Api
    from deltatap.config import Settings
    from deltatap.model import Mode, Wire
    from deltatap.prices import Prices
    from deltatap.worker.arrivals import Seconds

BATCH_ROWS = 128
# Servers refuse far smaller numbers of choices. A float cannot hold every number that a request may ask for.
_MOST_CHOICES = 1_000_000


def jobs_of_part(
    part: Path | IO[bytes], known: Collection[int], settings: Settings, prices: Prices, due: Seconds | None = None
) -> Iterator[Job]:
    """The jobs of a part, without the rows that are known. `due` has the time of each call; None: all are due at once.

    A part holds the modes of one request next to each other; the second becomes the ``then`` of the first. With
    ``capture.reuse``, it holds identical requests next to each other, too; all but the first become its ``alike``.
    """
    reuse = settings.capture.reuse
    read = (row for batch in pq.ParquetFile(part).iter_batches(BATCH_ROWS) for row in batch.to_pylist())
    rows, again = tee(read)
    # Known rows count, too, so each call has the same number in every attempt.
    numbers = call_numbers(((row["error"], row["request_hash"]) for row in again), reuse=reuse)
    numbered = enumerate(zip(rows, numbers, strict=True))
    owed = ((at, columns, number) for at, (columns, number) in numbered if at not in known)

    def together(row: tuple[int, dict[str, Any], int | None]) -> str:
        return str(row[1]["request_hash" if reuse and row[1]["body"] is not None else "request_id"])

    for _, group in groupby(owed, together):
        first: dict[str, Job] = {}
        for at, columns, number in group:
            mode = columns["mode"]
            if (leader := first.get(mode)) is None:
                first[mode] = _planned(columns, at, settings, prices)
                if due is not None and number is not None:
                    first[mode].due_s = float(due[number])
            else:
                leader.alike.append(_alike(columns, at, leader))
        jobs = list(first.values())
        for job, then in pairwise(jobs):
            job.then = then
        yield jobs[0]


def _alike(columns: dict[str, Any], row: int, leader: Job) -> Job:
    """The job of a request that is identical to another one. Both share one body."""
    mode, earlier = columns.pop("mode"), columns.pop("retries") or []
    keep = None if columns["keep"] is None else dict(columns["keep"])
    request = Request(**{**columns, "keep": keep, "body": leader.request.body})
    return Job(request, leader.wire, mode, row, earlier, leader.planned, expected=leader.expected, fault=leader.fault)


def _planned(columns: dict[str, Any], row: int, settings: Settings, prices: Prices) -> Job:
    mode, earlier = columns.pop("mode"), columns.pop("retries") or []
    keep = None if columns["keep"] is None else dict(columns["keep"])
    # Counting tokens takes CPU time, so it is done only where limits or budgets need it.
    counted = prices if settings.bounds.any else None
    return job_of(Request(**{**columns, "keep": keep}), row, earlier, settings, mode, counted)


def job_of(
    request: Request,
    row: int,
    earlier: list[dict[str, Any]],
    settings: Settings,
    mode: Mode,
    prices: Prices | None = None,
) -> Job:
    """The job of a request: what to send, and where its row belongs.

    If the request cannot be built, the job has the fault.

    Args:
        request: the request.
        row: its position in the part or batch.
        earlier: see :class:`Job`.
        settings: of the run.
        mode: of the row.
        prices: for the expected use; None if nothing needs it.
    """
    job, endpoint = Job(request, None, mode, row, earlier, planned=time.perf_counter()), settings.endpoint
    try:
        if request.body is not None:
            job.wire = wire(
                request.body,
                api=endpoint.api,
                mode=mode,
                include_usage=endpoint.include_usage,
                added=endpoint.added,
                resume=settings.capture.resume,
            )
            job.expected = None if prices is None else expected_use(job.wire, settings, prices)
    except BaseException as error:  # noqa: BLE001 - raised again if it is not this row's trouble
        job.fault = internal_error(error, request.request_id, INTERNAL_REQUEST, "build the request")
    return job


def expected_use(sent: Wire, settings: Settings, prices: Prices) -> Expected:
    """The expected use of a request: its input tokens, its maximum of output tokens, and the model's price."""
    api = specification(settings.endpoint.api)
    encoding = known_encoding(sent.model) or settings.tokens.fallback_encoding
    inputs = input_tokens(sent.body, api, sent.model, encoding)
    body = json.loads(sent.body)
    generated = min(api.generated(body), _MOST_CHOICES)
    price = prices.find(sent.model, tier=requested_tier(sent.body))
    return Expected(inputs.tokens, api.max_output(body), generated, price, prices)


def input_tokens(body: str, api: Api, model: str, encoding: str) -> InputTokens:
    """The input tokens of a request. If the API's rules do not fit a body, its text is counted."""
    try:
        return api.count_input(json.loads(body), model, encoding)
    except BaseException as error:
        if not is_fault(error):
            raise
        return InputTokens(count_text(body, encoding), approximate=True)
