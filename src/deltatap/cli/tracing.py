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
        str, typer.Option(metavar="URL", help="URL of the OTLP server. /v1/traces is added if it is missing.")
    ],
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Export this run and all later runs. Default: only the newest run that has rows."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A header for the OTLP server, such as a key. VALUE can be {env: VARIABLE}. Repeatable.",
        ),
    ] = None,
    chunks: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of spans that have an event for each chunk."),
    ] = 0.0,
    content: Annotated[bool, typer.Option("--content", help="Include prompts, answers and error messages.")] = False,
) -> int:
    """Export captures to an OTLP server: one OpenTelemetry GenAI client span per row.

    The span describes the last call of the row; earlier calls are events. A second export sends the same spans with
    the same ids. Headers can also come from OTEL_EXPORTER_OTLP_HEADERS.

    Exit codes: 0, all spans were sent; 1, the server cannot be reached or does not accept them; 2, an option is wrong,
    or a run does not exist.
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
