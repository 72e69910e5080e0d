"""The command that writes captures as spans of OpenTelemetry: ``export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import OK, RESULTS, command, reader, say

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings


@command(RESULTS)
def export(
    settings: Settings,
    console: Console,
    otlp: Annotated[
        str, typer.Option(metavar="URL", help="OTLP/HTTP server. Without the path /v1/traces, it is added.")
    ],
    *,
    since: Annotated[
        str | None, typer.Option(metavar="RUN", help="Export this run and all later ones. Default: the newest.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A header for the server, such as a key. Repeatable. VALUE can be {env: VARIABLE}.",
        ),
    ] = None,
    chunks: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of spans with an event for each chunk."),
    ] = 0.0,
    content: Annotated[bool, typer.Option("--content", help="Include prompts, answers and error messages.")] = False,
) -> int:
    """Export captures to an OpenTelemetry server: one GenAI client span for each row.

    The span is the last call of the row; earlier calls are events. Exporting again writes the same spans, with the
    same ids. Headers can also come from OTEL_EXPORTER_OTLP_HEADERS.

    Exit codes: 0, all spans were sent; 1, the server does not take them; 2, an option is wrong, or a run does not
    exist.
    """
    from deltatap.export.captures import export as export_captures  # noqa: PLC0415
    from deltatap.export.otlp import Exporter  # noqa: PLC0415
    from deltatap.export.spans import Options  # noqa: PLC0415
    from deltatap.export.target import headers_of, shown, traces_url  # noqa: PLC0415

    url = traces_url(otlp)
    sender = Exporter(url, headers_of(header or ()))
    try:
        done = export_captures(
            reader(settings, console), settings, since, Options(content=content, chunks=chunks), sender
        )
    finally:
        sender.close()
    first, last = done.run_ids[0], done.run_ids[-1]
    runs = f"run {first}" if first == last else f"{len(done.run_ids)} runs, {first} to {last}"
    say(console, f"{done.spans:,} span{'s' * (done.spans != 1)} exported to {shown(url)} ({runs})")
    if done.without_call == 1:
        say(console, "1 row without a call has no span: an invalid prompt or a reused answer")
    elif done.without_call:
        say(console, f"{done.without_call:,} rows without a call have no span: invalid prompts and reused answers")
    return OK
