"""The estimate of ``--dry-run``: the owed requests, their tokens, and a range of their cost. Makes no call.

Knows how long earlier answers of the endpoint were. Writes nothing: it creates no table and takes no lease.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it
from rich.table import Table

from deltatap.api.registry import specification
from deltatap.delta import columns, tables
from deltatap.delta.sums import total_sql
from deltatap.driver import owed, reuse
from deltatap.prices import cost_usd
from deltatap.tokens import known_encoding
from deltatap.worker.jobs import input_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from pyspark.sql import DataFrame, Row, SparkSession
    from rich.console import Console

    from deltatap.config import Arrivals, Settings
    from deltatap.prices import Prices

_COUNTED = (
    columns.Column("model", columns.STRING, "of the request"),
    columns.Column("mode", columns.STRING, "of the request"),
    columns.Column("bad", columns.BOOLEAN, "whether the row fails without a call"),
    columns.Column("called", columns.BOOLEAN, "whether it is called, and does not reuse an answer"),
    columns.Column("input_tokens", columns.BIGINT, "as tiktoken counts them"),
    columns.Column("most_output", columns.BIGINT, "the maximum of output tokens; null if the request sets none"),
)
# Other endpoints to name.
_ENDPOINTS = 3
_OUTPUT = "coalesce(usage_reported.output_tokens, usage_tiktoken.output_tokens)"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long earlier answers were, in output tokens.

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
    """The estimate for one model in one mode.

    Attributes:
        model, mode: of the requests.
        requests: how many there are.
        bad: rows that would fail without a call.
        input_tokens: of the requests.
        least_output, most_output: tokens; most_output is None if neither the requests nor earlier answers bound it.
        least_usd, most_usd: None if the model has no price; most_usd also if most_output is None.
        answers: how many earlier answers the output is estimated from.
        called: whether the requests would be sent; otherwise this is what ``capture.reuse`` saves.
        limited: whether each request has a limit on its output tokens.
        elsewhere: as in :class:`Lengths`.
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


def estimate_run(spark: SparkSession, settings: Settings, prices: Prices) -> list[Estimate]:
    """Estimate what a run would do now, by model and mode.

    Raises:
        ConfigError: if a run would refuse to start.
    """
    with owed.owed_requests(spark, settings, settings.run.id or "") as found:
        rows = (
            _counted(_called(spark, found, settings), settings)
            .groupBy("model", "mode", "called")
            .agg(
                F.count_if(~F.col("bad")).alias("requests"),
                F.count_if("bad").alias("bad"),
                F.expr(total_sql("input_tokens")).alias("input_tokens"),
                F.expr(total_sql("most_output")).alias("bounded"),
                F.count_if(F.expr("NOT bad AND most_output IS NULL")).alias("unbounded"),
            )
            .orderBy("model", "mode", "called")
            .collect()
        )
    return [estimate(row, _earlier(spark, settings, row["model"] or ""), prices) for row in rows]


def estimate(row: Row | Mapping[str, Any], earlier: Lengths, prices: Prices) -> Estimate:
    """The estimate for a model and mode.

    Args:
        row: model, mode, called, requests, bad, input_tokens, bounded (the sum of the requests' own limits on output
            tokens) and unbounded (how many requests have no such limit).
        earlier: the lengths of earlier answers.
        prices: of the models.
    """
    model, requests, inputs = row["model"] or "", row["requests"], row["input_tokens"] or 0
    bounded = None if row["unbounded"] else row["bounded"] or 0
    least = round(requests * earlier.short) if earlier.answers else requests
    most = round(requests * earlier.long) if earlier.answers else bounded
    if most is not None and bounded is not None:
        least, most = min(least, bounded), min(most, bounded)
    price = prices.find(model)
    return Estimate(
        model,
        row["mode"],
        requests,
        row["bad"],
        inputs,
        least,
        most,
        cost_usd(price, inputs, least) if price else None,
        cost_usd(price, inputs, most) if price and most is not None else None,
        earlier.answers,
        row["called"],
        bounded is not None,
        earlier.elsewhere,
    )


def _called(spark: SparkSession, found: DataFrame, settings: Settings) -> DataFrame:
    if settings.capture.reuse:
        return reuse.is_called(found, reuse.answers(spark, settings))
    return found.withColumn("called", F.lit(True))


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
        rows.append((model, mode, body is None, called, tokens, most))
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


def show(console: Console, found: Sequence[Estimate], schedule: Arrivals | None = None) -> None:
    """Print an estimate, and how long the run takes if its requests have a schedule."""
    if not any(one.requests or one.bad for one in found):
        console.print("nothing is owed: every request has a final row; no call was made", highlight=False)
        return
    console.print("what a run would capture (no call was made)", style="bold", highlight=False, soft_wrap=True)
    for model, estimates in groupby(found, lambda one: one.model):
        listed = list(estimates)
        _show_model(console, model, [one for one in listed if one.called])
        for one in listed:
            if not one.called:
                console.print(f"{one.mode}: {_saved(one)}", highlight=False, soft_wrap=True)
    if schedule is not None:
        calls = sum(one.requests for one in found if one.called)
        console.print(schedule.of(calls), highlight=False, soft_wrap=True)


def _show_model(console: Console, model: str, found: Sequence[Estimate]) -> None:
    """Print the estimate for one model in a table that fits into 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("mode")
    for name in ("requests", "bad", "input", "output", "cost"):
        table.add_column(name, justify="right")
    for one in found:
        outputs = _range(f"{one.least_output:,}", None if one.most_output is None else f"{one.most_output:,}")
        table.add_row(one.mode, f"{one.requests:,}", f"{one.bad:,}", f"{one.input_tokens:,}", outputs, _cost(one))
    name = model or "no model"
    console.print(f"\n{name} (input and output in tokens)", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for one in found:
        if one.requests:
            console.print(f"{one.mode}: {_why(one)}", markup=False, highlight=False, soft_wrap=True)


def _saved(one: Estimate) -> str:
    cost = "" if one.least_usd is None else f", and {_cost(one)}"
    calls = "1 call" if one.requests == 1 else f"{one.requests:,} calls"
    return f"capture.reuse saves {calls}{cost}"


def _cost(one: Estimate) -> str:
    if one.least_usd is None:
        return "no price"
    return _range(_usd(one.least_usd), None if one.most_usd is None else _usd(one.most_usd))


def _why(one: Estimate) -> str:
    if one.answers:
        most = ", at most the limit of each request" if one.limited else ""
        if one.answers == 1:
            return f"output as long as the only earlier answer{most}"
        return f"output from the 10th to the 90th percentile of {one.answers:,} earlier answers{most}"
    none = "this endpoint has no earlier answers of this model"
    if one.elsewhere:
        none += f" (only endpoints with another endpoint.name do: {', '.join(one.elsewhere)})"
    if one.most_output is not None:
        return f"{none}: output from one token to the limit of each request"
    return f"{none}, and no request limits its output: set budget.cost_usd or budget.tokens to bound the run"


def _range(least: str, most: str | None) -> str:
    return least if least == most else f"{least} to {most or 'unbounded'}"


def _usd(amount: Decimal) -> str:
    """An amount with four decimal places, or with more if it would have fewer than two significant digits."""
    places = max(4, 1 - amount.adjusted()) if amount else 4
    return f"${amount:,.{places}f}"
