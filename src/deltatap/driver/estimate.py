"""What a run would do: the requests that are owed, their tokens, and a range of what they may cost. Makes no call.

Knows how long this endpoint's answers have been before. Writes nothing: no table is made, no lease is taken.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it
from rich.table import Table

from deltatap.api.registry import specification
from deltatap.delta import tables
from deltatap.driver import plan
from deltatap.prices import cost_usd
from deltatap.tokens import known_encoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from decimal import Decimal

    from pyspark.sql import DataFrame, SparkSession
    from rich.console import Console

    from deltatap.config import Settings
    from deltatap.prices import Prices

_COUNTED = "model STRING, mode STRING, bad BOOLEAN, input_tokens BIGINT, most_output BIGINT"
_OUTPUT = "coalesce(usage_reported.output_tokens, usage_tiktoken.output_tokens)"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is owed of one model in one mode.

    Attributes:
        model, mode: of the requests.
        requests: that would be sent.
        bad: rows that would fail without a call.
        input_tokens: of the requests.
        least_output, most_output: tokens; the most is None where neither the requests nor earlier answers bound them.
        least_usd, most_usd: None where the model has no price, or there is no most.
        answers: how many earlier answers the outputs are guessed by.
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


def foresee(spark: SparkSession, settings: Settings, prices: Prices) -> list[Foreseen]:
    """What a run would do now, by model and mode.

    Raises:
        ConfigError: as the run itself would, before anything is paid.
    """
    run_id = settings.run.id or ""
    with _owed(spark, settings, run_id) as owed:
        rows = (
            _counted(owed, settings)
            .groupBy("model", "mode")
            .agg(
                F.count_if(~F.col("bad")).alias("requests"),
                F.count_if("bad").alias("bad"),
                F.sum("input_tokens").alias("input_tokens"),
                F.sum("most_output").alias("bounded"),
                F.count_if(F.expr("NOT bad AND most_output IS NULL")).alias("unbounded"),
            )
            .orderBy("model", "mode")
            .collect()
        )
    found = []
    for row in rows:
        model, requests, inputs = row["model"] or "", row["requests"], row["input_tokens"] or 0
        answers, short, long = _before(spark, settings, model)
        bounded = (row["bounded"] or 0) if not row["unbounded"] else None
        least = round(requests * short) if answers else requests
        most = round(requests * long) if answers else bounded
        if most is not None and bounded is not None:
            least, most = min(least, bounded), min(most, bounded)
        price = prices.find(model)
        found.append(
            Foreseen(
                model,
                row["mode"],
                requests,
                row["bad"],
                inputs,
                least,
                most,
                cost_usd(price, inputs, least) if price else None,
                cost_usd(price, inputs, most) if price and most is not None else None,
                answers,
            )
        )
    return found


def _owed(spark: SparkSession, settings: Settings, run_id: str) -> AbstractContextManager[DataFrame]:
    if tables.exists(spark, settings.captures.table):
        return plan.owed(spark, settings, run_id)
    asked = plan.asked(spark, settings)
    limit = settings.capture.limit
    return nullcontext(asked if limit is None else asked.orderBy("request_id", "mode").limit(limit))


def _counted(owed: DataFrame, settings: Settings) -> DataFrame:
    name, fallback = settings.endpoint.api, settings.tokens.fallback_encoding

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        api = specification(name)
        for batch in batches:
            rows = []
            for model, mode, text in zip(*(batch[name].to_pylist() for name in ("model", "mode", "body")), strict=True):
                body = None if text is None else json.loads(text)
                encoding = known_encoding(model or "") or fallback
                tokens = 0 if body is None else api.count_input(body, model or "", encoding).tokens
                most = None if body is None else api.max_output(body)
                most = None if most is None else most * api.choices(body or {})
                rows.append((model, mode, body is None, tokens, most))
            columns = list(zip(*rows, strict=True)) or [()] * 5
            types = (pa.string(), pa.string(), pa.bool_(), pa.int64(), pa.int64())
            names = [part.split()[0] for part in _COUNTED.split(", ")]
            yield pa.RecordBatch.from_arrays([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names)

    return owed.mapInArrow(count, _COUNTED)


def _before(spark: SparkSession, settings: Settings, model: str) -> tuple[int, float, float]:
    """How many answers of this model there are from this endpoint, and how long a short and a long one is."""
    if not tables.exists(spark, settings.captures.table):
        return 0, 0.0, 0.0
    captures = spark.table(tables.quoted(settings.captures.table))
    row = (
        captures.where(
            (F.col("endpoint") == settings.endpoint.label)
            & (F.col("request_model") == model)
            & (F.col("status") == "completed")
        )
        .agg(
            F.count("*").alias("answers"),
            F.percentile(F.expr(_OUTPUT), F.array(F.lit(0.1), F.lit(0.9))).alias("lengths"),
        )
        .collect()[0]
    )
    if not row["answers"]:
        return 0, 0.0, 0.0
    return row["answers"], row["lengths"][0], row["lengths"][1]


def show(console: Console, found: Sequence[Foreseen]) -> None:
    """Print what a run would do."""
    if not any(one.requests or one.bad for one in found):
        console.print("nothing is owed: every request has its final row; no call would be made", highlight=False)
        return
    table = Table(title="what a run would do (no call was made)", title_justify="left", title_style="bold")
    for name in ("model", "mode"):
        table.add_column(name)
    for name in ("requests", "bad rows", "input tokens", "output tokens", "cost"):
        table.add_column(name, justify="right")
    for one in found:
        outputs = _range(f"{one.least_output:,}", None if one.most_output is None else f"{one.most_output:,}")
        cost = "no price" if one.least_usd is None else _range(f"${one.least_usd:,.4f}", _usd(one.most_usd))
        table.add_row(one.model, one.mode, f"{one.requests:,}", f"{one.bad:,}", f"{one.input_tokens:,}", outputs, cost)
    console.print(table)
    for one in found:
        if one.requests:
            console.print(f"{one.model}, {one.mode}: {_why(one)}", highlight=False, soft_wrap=True)


def _why(one: Foreseen) -> str:
    if one.answers:
        return f"outputs as the shortest and the longest tenth of {one.answers:,} earlier answers, within max_tokens"
    if one.most_output is not None:
        return "no earlier answers: outputs of one token, and of max_tokens"
    return "no earlier answers and no max_tokens: nothing bounds the outputs; budget.cost_usd or budget.tokens would"


def _range(least: str, most: str | None) -> str:
    return f"{least} or more" if most is None else f"{least} to {most}"


def _usd(amount: Decimal | None) -> str | None:
    return None if amount is None else f"${amount:,.4f}"
