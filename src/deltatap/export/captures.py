"""Exports the captures of runs: reads the rows, and sends their spans in batches. Memory does not grow with the runs.

``spans.py`` makes the spans, and ``otlp.py`` sends them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deltatap.analysis.queries import captures_sql, newest_runs, newest_with_rows, require_runs, require_table
from deltatap.analysis.sql import in_runs
from deltatap.errors import ExportError
from deltatap.export.spans import OWN, server_of, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatap.config import Settings
    from deltatap.delta.reader import Reader
    from deltatap.export.spans import Options, Span

# Limits of a batch: OpenTelemetry's default number of spans, and a size that collectors accept (20 MiB by default).
_SPANS, _BYTES = 512, 4_000_000
# The approximate size of an attribute or an event without its text.
_EACH = 60
_RUNS = 1_000
_NEEDED = (
    *OWN, "api", "started_at", "finished_at", "request_model", "request", "response_model", "response_id",
    "usage_reported", "usage_tiktoken", "service_tier", "system_fingerprint", "connection", "error",
)  # fmt: skip
_RETRY = ("started_at", "e2e_ms", "http_status", "error_type", "input_tokens", "output_tokens", "cost_usd")


class Sender(Protocol):
    """Sends spans."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send a batch.

        Raises:
            ExportError: the server does not take it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Exported:
    """How many spans were sent for which runs, and how many rows have no span because no call was made for them."""

    run_ids: tuple[str, ...]
    spans: int
    without_call: int


def export(reader: Reader, settings: Settings, since: str | None, options: Options, sender: Sender) -> Exported:
    """Send the spans of a run and of all later ones on the captures table.

    Args:
        reader: reads the tables.
        settings: name the tables.
        since: the first run; None for only the newest run that has rows.
        options: the content of the spans.
        sender: sends them.

    Raises:
        ConfigError: there is no such run, or no run has rows.
        ExportError: the server does not take the spans. Spans that were sent before stay there.
    """
    require_table(reader, "captures", settings.captures.table)
    runs = _runs(reader, settings, since)
    servers = {run["run_id"]: server_of(run["config"]) for run in runs}
    batch: list[Span] = []
    sent = without_call = size = 0

    def flush() -> None:
        nonlocal sent, size
        try:
            sender.send(batch)
        except ExportError as error:
            before = f"; {sent:,} spans had already been sent, and the next export sends them again" if sent else ""
            raise ExportError(f"{error}{before}") from error
        sent += len(batch)
        batch.clear()
        size = 0

    for row in reader.stream(_sql(reader, settings, list(servers), options)):
        made = span(row, servers[row["run_id"]], options)
        if made is None:
            without_call += 1
            continue
        length = _length(made)
        if batch and (len(batch) == _SPANS or size + length > _BYTES):
            flush()
        batch.append(made)
        size += length
    if batch:
        flush()
    return Exported(tuple(servers), sent, without_call)


def _runs(reader: Reader, settings: Settings, since: str | None) -> list[dict[str, Any]]:
    if since is None:
        return require_runs(reader, settings, [newest_with_rows(reader, settings)])
    (first,) = require_runs(reader, settings, [since])
    later = [run for run in newest_runs(reader, settings, _RUNS) if run["started_at"] >= first["started_at"]]
    return later[::-1]


def _sql(reader: Reader, settings: Settings, run_ids: Sequence[str], options: Options) -> str:
    """The rows, with only the data that their spans contain."""
    retry = ", ".join(f"'{name}', call.{name}" for name in _RETRY)
    made = {
        "finish_reasons": "transform(choices, each -> each.finish_reason)",
        "retries": f"transform(retries, call -> named_struct({retry}))",
        "choices": "choices" if options.content else "NULL",
        "chunks": "chunks" if options.chunks else "NULL",
    }
    columns = [*_NEEDED, *(f"{sql} AS {name}" for name, sql in made.items())]
    return f"SELECT {', '.join(columns)} FROM ({captures_sql(reader, settings, in_runs(run_ids))})"


def _length(span: Span) -> int:
    """About how many bytes a span takes."""
    fields = [*span.attributes.items()]
    for event in span.events:
        fields += event.attributes.items()
    return sum(_EACH + (4 * len(value) if isinstance(value, str) else 0) for _, value in fields)
