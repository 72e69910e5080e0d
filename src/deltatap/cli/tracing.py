"""The command that writes captures for other programs, as OpenTelemetry spans or as fixtures: ``export``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import OK, RESULTS, command, reader, say
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings

# Maximum number of answers that are exported, or searched for the given requests.
_NEWEST, _MOST_ROWS = 100, 10_000


@command(RESULTS)
def export(
    settings: Settings,
    console: Console,
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="URL of the OTLP server. /v1/traces is added if it is missing.")
    ] = None,
    *,
    fixtures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write streams to this folder as SSE text with times, for front-end tests.",
            file_okay=False,
        ),
    ] = None,
    request_id: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="With --fixtures: only this request: its id, or the start of it. Repeatable. Default: the newest 100.",
        ),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            metavar="API", help="With --fixtures: convert every stream to the format of this API. Default: as captured."
        ),
    ] = None,
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
    """Export captures to an OTLP server (--otlp), or to files for front-end tests (--fixtures).

    --otlp sends one OpenTelemetry GenAI client span per row. The span describes the last call of the row; earlier calls
    are events. A second export sends the same spans with the same ids. Headers can also come from
    OTEL_EXPORTER_OTLP_HEADERS. --fixtures writes each stream as SSE text with times.

    Exit codes: 0, all spans were sent; 1, the server cannot be reached or does not accept them; 2, an option is wrong,
    or a run does not exist.
    """
    if (otlp is None) == (fixtures is None):
        raise ConfigError(["expected either --otlp URL or --fixtures DIR"])
    if fixtures is not None:
        return _write_fixtures(settings, console, fixtures, request_id or [], api)
    if request_id or api:
        raise ConfigError(["--request-id and --api need --fixtures"])
    assert otlp is not None  # noqa: S101 - checked above
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


def _write_fixtures(settings: Settings, console: Console, folder: Path, ids: list[str], api: str | None) -> int:
    """Write streams as files."""
    from deltatap.analysis.queries import full_request_ids, newest_answers  # noqa: PLC0415
    from deltatap.api.registry import NAMES  # noqa: PLC0415
    from deltatap.replay.fixtures import write  # noqa: PLC0415
    from deltatap.replay.recordings import recordings_of  # noqa: PLC0415

    if api is not None and api not in NAMES:
        raise ConfigError([f"--api {api}: expected one of {', '.join(NAMES)}"])
    tables = reader(settings, console)
    ids = full_request_ids(tables, settings, ids)
    rows = newest_answers(tables, settings, [], _MOST_ROWS if ids else _NEWEST, ids)
    recordings, left_out = recordings_of(rows)
    missing = [id_ for id_ in ids if not any(each.request_id == id_ and each.streamed for each in recordings)]
    if missing:
        raise ConfigError(
            [f"captures.table: {settings.captures.table}: no stream of the request {id_}" for id_ in missing]
        )
    names, reasons = write(recordings, folder, api)
    without_stream = [f"{count:,} answer{'s' * (count != 1)}: {why}" for why, count in left_out.items()]
    for reason in [*without_stream, *reasons]:
        say(console, f"left out: {reason}")
    if not names:
        raise ConfigError([f"captures.table: {settings.captures.table}: no stream to export"])
    newest = (
        f" (of the newest {_NEWEST} answers; for others, add --request-id)" if not ids and len(rows) == _NEWEST else ""
    )
    say(console, f"{len(names):,} stream{'s' * (len(names) != 1)} written to {folder}{newest}")
    return OK
