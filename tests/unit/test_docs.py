"""The documentation says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from deltatap.analysis import tables as metrics_tables
from deltatap.analysis.metrics import METRICS, PARTS, PEERS
from deltatap.config import load_settings
from deltatap.delta import columns

DOCS = Path(__file__).parents[2] / "docs"


def documented() -> str:
    """docs/tables.md, from the one place where the columns stand."""
    parts = ["# The tables\n\nTimes in `_ms` are milliseconds, DOUBLE. Made from `src/deltatap/tables.py`.\n"]
    whats = {
        "captures": (columns.CAPTURES, "One row for each (run_id, request_id, mode)."),
        "runs": (columns.RUNS, "One row a run, updated as it goes."),
        "metrics_by_run": (
            metrics_tables.METRICS_BY_RUN,
            "By `deltatap analyze`: one row for each (run_id, endpoint, request_model, mode). What a metric is: metrics.md.",
        ),
        "metrics_by_hour": (
            metrics_tables.METRICS_BY_HOUR,
            "One row for each (hour, endpoint, request_model, mode), of all runs.",
        ),
        "stream_vs_complete": (
            metrics_tables.STREAM_VS_COMPLETE,
            "Of runs in mode paired: one row for each (run_id, endpoint, request_model) and length of the answer.",
        ),
    }
    for name, (its, what) in whats.items():
        parts.append(f"\n## {name}\n\n{what}\n\n| column | type | what |\n|---|---|---|\n")
        parts += [f"| {column.name} | `{column.type}` | {column.comment} |\n" for column in its]
    return "".join(parts)


METRICS_BEGIN = """# The metrics

Times are milliseconds since the request was written to the socket, by a monotonic clock; what came before (waiting for a
free slot, connecting) is in `queued_ms` and `dispatch_ms`. Output tokens are those that the server reports, else
tiktoken's. `deltatap analyze` writes the tables (docs/tables.md); made from `src/deltatap/metrics.py`.

## Of one request

| metric | column | what | null when |
|---|---|---|---|
"""
METRICS_MIDDLE = (
    """
**Inter-chunk latency** is of gaps, not of requests: the time from each output to the one before it of its choice
(`chunks.gap_ms`). Outputs that one socket read brought came together, which says nothing about the model: of them only
the first has a gap, and `coalesced` tells how many others there were. A chunk is not a token: servers put several
tokens into one, and `tpot_ms` is the time a token takes.

**What counts.** Times are of completed rows only. Rows during which our own event loop ran later than
`analysis.max_loop_lag_ms` are left out and counted in `late`: their times are in part ours. `null` takes all.

**Quantiles** are interpolated between the two nearest values, as numpy's and Spark's `percentile` are. `low` and `high`
hold the true quantile in some 95 % of samples, whatever the distribution: they are order statistics, by the binomial
distribution of the number of values below it. Where that would need more values than there are, they are null. Of gaps
there are no intervals, since those of one stream are not independent, and their quantiles are approximate (one in
10,000 of the ranks).

**Goodput** is what keeps every bound of `analysis.slo`: `good` counts such rows, `good_per_s` is their rate. A whole
answer keeps bounds of TTFT and TPOT, which it does not have.

**Time saved by streaming** (`stream_vs_complete`) is, for each request captured in both modes, E2E of the whole answer
less TTFT of the streamed one: how much earlier a reader has something to read. Intervals are by a Poisson bootstrap of
the pairs (200 replicates; of more than 5,000 pairs a sample of 5,000).

## The same from `chunks`, in SQL

Each is an expression over a row of `captures`, beside which it names these; the result equals the column.

"""
    + "\n".join(f"- `{name}`: `{sql}`" for name, sql in PARTS.items())
    + """

| metric | SQL |
|---|---|
"""
)
METRICS_END = """
## The same words elsewhere

What other tools call so, as SQL over the same, in ms. Read in the sources of vLLM (`vllm bench serve`),
guidellm and aiperf and in OpenTelemetry's semantic conventions for generative AI.

| tool | its word | SQL | how it differs from ours |
|---|---|---|---|
"""


def documented_metrics() -> str:
    """docs/metrics.md, from the one place where the definitions stand."""
    cell = "`{}`".format
    ours = [f"| {m.title} ({m.label}) | `{m.name}` | {m.formula} | {m.nothing} |\n" for m in METRICS]
    sql = [f"| {m.label} | {cell(m.from_chunks)} |\n" for m in METRICS if m.from_chunks]
    theirs = [f"| {p.tool} | {p.name} | {cell(p.sql)} | {p.differs} |\n" for p in PEERS]
    return "".join([METRICS_BEGIN, *ours, METRICS_MIDDLE, *sql, METRICS_END, *theirs])


def test_the_documented_metrics_are_those_that_are_computed() -> None:
    assert (DOCS / "metrics.md").read_text() == documented_metrics(), "write documented_metrics() to docs/metrics.md"


def test_the_documented_columns_are_the_tables_own() -> None:
    assert (DOCS / "tables.md").read_text() == documented(), "write documented() to docs/tables.md"


def test_every_configuration_of_a_provider_can_be_pasted() -> None:
    blocks = re.findall(r"```yaml\n(endpoint:\n.*?)```", (DOCS / "endpoints.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        settings = load_settings(yaml.safe_load(block))
        assert settings.endpoint.name
        # The identity stands in a block of its own, to take the key's place.
        load_settings(yaml.safe_load(block), ["endpoint.api_key={identity: azure}"])
