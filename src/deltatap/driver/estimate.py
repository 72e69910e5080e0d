"""The estimate of ``--dry-run``: the owed requests, their tokens, and a range of their cost. Makes no call.

Knows how long earlier answers of the endpoint were, how much ``capture.reuse`` saves, and the cost in other service
tiers. Writes nothing: it creates no table and takes no lease. ``estimate_text.py`` prints it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

from deltatap.api.registry import specification
from deltatap.delta import columns, tables
from deltatap.delta.sums import total_sql
from deltatap.driver import owed, reuse
from deltatap.tokens import known_encoding
from deltatap.worker.billing import requested_tier
from deltatap.worker.jobs import input_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pyspark.sql import DataFrame, Row, SparkSession

    from deltatap.config import Settings
    from deltatap.prices import Prices
    from deltatap.rates import Price

_COUNTED = (
    columns.Column("model", columns.STRING, "of the request"),
    columns.Column("mode", columns.STRING, "of the request"),
    columns.Column("bad", columns.BOOLEAN, "whether the row fails without a call"),
    columns.Column("tier", columns.STRING, "the service tier that the request asks for"),
    columns.Column("called", columns.BOOLEAN, "whether it is called, or would be with capture.reuse"),
    columns.Column("input_tokens", columns.BIGINT, "as tiktoken counts them"),
    columns.Column("most_output", columns.BIGINT, "the maximum of output tokens; null if the request sets none"),
)
# Maximum number of other endpoints to name.
_ENDPOINTS = 3
# The sums of rows of requests.
_SUMS = ("requests", "bad", "input_tokens", "bounded", "unbounded")
# As in analysis/metrics.py: some servers report zero tokens for an answer that has text.
_OUTPUT = (
    "coalesce(nullif(usage_reported.output_tokens, 0), usage_tiktoken.output_tokens, usage_reported.output_tokens)"
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of earlier answers, in output tokens.

    Attributes:
        answers: how many there are.
        short, long: the 10th and the 90th percentile.
        elsewhere: other endpoints that have answers of this model, if this one has none.
    """

    answers: int = 0
    short: float = 0.0
    long: float = 0.0
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate for one model in one mode and service tier.

    Attributes:
        model, mode: of the requests.
        requests: how many there are.
        bad: rows that would fail without a call.
        input_tokens: of the requests.
        least_output, most_output: tokens; most_output is None if neither the requests nor earlier answers bound it.
        least_usd, most_usd: None if the model has no price; most_usd is also None if most_output is.
        answers: the number of earlier answers that the estimate of the output is based on.
        called: whether the requests would be sent; False for requests that ``capture.reuse`` saves, or would save.
        limited: whether each request has a limit on its output tokens.
        elsewhere: as in :class:`Lengths`.
        tier: the service tier that the requests ask for.
        tiers: the least and the most that the requests would cost in other tiers.
        reuses: whether ``capture.reuse`` is on.
    """

    model: str
    mode: str
    requests: int
    bad: int
    input_tokens: int
    least_output: int
    most_output: int | None
    least_usd: Decimal | None
    most_usd: Decimal | None
    answers: int
    called: bool = True
    limited: bool = False
    elsewhere: tuple[str, ...] = ()
    tier: str | None = None
    tiers: tuple[tuple[str, Decimal, Decimal | None], ...] = ()
    reuses: bool = True


def estimate_run(spark: SparkSession, settings: Settings, prices: Prices) -> list[Estimate]:
    """Estimate what a run would do now, by model and mode.

    Raises:
        ConfigError: if a run would refuse to start.
    """
    with owed.owed_requests(spark, settings, settings.run.id or "") as found:
        called = reuse.is_called(found, reuse.answers(spark, settings))
        rows = (
            _counted(called, settings)
            .groupBy("model", "mode", "tier", "called")
            .agg(
                F.count_if(~F.col("bad")).alias("requests"),
                F.count_if("bad").alias("bad"),
                F.expr(total_sql("input_tokens")).alias("input_tokens"),
                F.expr(total_sql("most_output")).alias("bounded"),
                F.count_if(F.expr("NOT bad AND most_output IS NULL")).alias("unbounded"),
            )
            .orderBy("model", "mode", "tier", "called")
            .collect()
        )
    listed = with_savings([row.asDict() for row in rows], reuses=settings.capture.reuse)
    earlier = {row["model"]: _earlier(spark, settings, row["model"] or "") for row in listed}
    return [estimate(row, earlier[row["model"]], prices) for row in listed]


def with_savings(rows: Iterable[Mapping[str, Any]], *, reuses: bool) -> list[dict[str, Any]]:
    """The rows to estimate: the requests to call, and those that ``capture.reuse`` saves, or would save.

    Args:
        rows: as :func:`estimate` takes them; `called` assumes that ``capture.reuse`` is on.
        reuses: whether it is on.
    """
    if reuses:
        return [{**row, "reuses": True} for row in rows]
    made: list[dict[str, Any]] = []
    every: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["model"], row["mode"], row["tier"])
        if not row["called"]:
            made.append({**row, "reuses": False})
        if (known := every.get(key)) is None:
            every[key] = known = {**row, "called": True, "reuses": False}
            made.append(known)
        else:
            known |= {name: (known[name] or 0) + (row[name] or 0) for name in _SUMS}
    return sorted(made, key=lambda row: (row["model"] or "", row["mode"], row["tier"] or "", row["called"]))


def estimate(row: Row | Mapping[str, Any], earlier: Lengths, prices: Prices) -> Estimate:
    """The estimate for a model and mode.

    Args:
        row: model, mode, tier, called, reuses, requests, bad, input_tokens, bounded (the sum of the requests' own
            limits on output tokens) and unbounded (how many requests have no such limit).
        earlier: the lengths of earlier answers.
        prices: of the models.
    """
    model, requests, inputs = row["model"] or "", row["requests"], row["input_tokens"] or 0
    bounded = None if row["unbounded"] else row["bounded"] or 0
    least = round(requests * earlier.short) if earlier.answers else requests
    most = round(requests * earlier.long) if earlier.answers else bounded
    if most is not None and bounded is not None:
        least, most = min(least, bounded), min(most, bounded)

    def between(price: Price) -> tuple[Decimal, Decimal | None]:
        return _usd(price, requests, inputs, least), None if most is None else _usd(price, requests, inputs, most)

    price, tier = prices.find(model, tier=row["tier"]), row["tier"]
    least_usd, most_usd = between(price) if price else (None, None)
    others = [None, *prices.tiers(model)] if price and row["called"] else []
    tiers = [
        (other or "default", *between(found))
        for other in others
        if other != tier and (found := prices.find(model, tier=other)) is not None
    ]
    return Estimate(
        model,
        row["mode"],
        requests,
        row["bad"],
        inputs,
        least,
        most,
        least_usd,
        most_usd,
        earlier.answers,
        row["called"],
        bounded is not None,
        earlier.elsewhere,
        tier,
        tuple(tiers),
        row["reuses"],
    )


def _usd(price: Price, requests: int, inputs: int, outputs: int) -> Decimal:
    """The cost of requests whose inputs are about equally long, without cached input and tools."""
    rates = price.at(inputs // requests if requests else 0)
    tokens = inputs * rates.input + outputs * rates.output
    return tokens / 1_000_000 + requests * (rates.request or 0) / Decimal(1000)


def _counted(found: DataFrame, settings: Settings) -> DataFrame:
    api, fallback = settings.endpoint.api, settings.tokens.fallback_encoding

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield count_tokens(batch, api, fallback)

    return found.mapInArrow(count, columns.spark_schema(_COUNTED))


def count_tokens(batch: pa.RecordBatch, api: str, fallback_encoding: str) -> pa.RecordBatch:
    """Count the tokens of requests.

    Args:
        batch: with the columns model, mode, called and body; a body is null for a bad row.
        api: the name of the endpoint's API.
        fallback_encoding: for models that tiktoken does not know.

    Returns:
        The columns of `_COUNTED`, one row for each request.
    """
    spec, rows, schema = specification(api), [], columns.arrow_schema(_COUNTED)
    names = ("model", "mode", "called", "body")
    for model, mode, called, text in zip(*(batch[name].to_pylist() for name in names), strict=True):
        body = None if text is None else json.loads(text)
        encoding = known_encoding(model or "") or fallback_encoding
        tokens = 0 if text is None else input_tokens(text, spec, model or "", encoding).tokens
        most = None if body is None else spec.max_output(body)
        most = None if most is None else most * spec.generated(body or {})
        rows.append((model, mode, body is None, requested_tier(text), called, tokens, most))
    return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def _earlier(spark: SparkSession, settings: Settings, model: str) -> Lengths:
    """How long earlier answers of this model from this endpoint were."""
    if not tables.exists(spark, settings.captures.table):
        return Lengths()
    captures = spark.table(tables.quoted(settings.captures.table))
    answers = captures.where((F.col("request_model") == model) & (F.col("status") == "completed"))
    row = (
        answers.where(F.col("endpoint") == settings.endpoint.label)
        .agg(
            F.count(F.expr(_OUTPUT)).alias("answers"),
            F.percentile(F.expr(_OUTPUT), F.array(F.lit(0.1), F.lit(0.9))).alias("lengths"),
        )
        .collect()[0]
    )
    if row["answers"]:
        return Lengths(row["answers"], *row["lengths"])
    others = answers.select("endpoint").distinct().orderBy("endpoint").limit(_ENDPOINTS).collect()
    return Lengths(elsewhere=tuple(other["endpoint"] for other in others))
