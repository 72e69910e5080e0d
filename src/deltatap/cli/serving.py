"""The commands that serve an endpoint: ``replay`` and ``simulate``."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from deltatap.cli.runner import ENDPOINTS, HOST, OK, PORT, Command, app, command, guarded, reader, say, unwrapped
from deltatap.errors import ConfigError
from deltatap.simulator.faults import BREAKS, ENDINGS, REFUSALS, SHAPES, TRAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from deltatap.config import Settings

_SPEED = typer.Option(min=0, help="Speed factor: 2 is twice as fast, 0 does not wait at all.")


@command(ENDPOINTS)
def replay(
    settings: Settings,
    console: Console,
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs to replay. Default: all runs.")
    ] = None,
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 8090,
    speed: Annotated[float, _SPEED] = 1.0,
    most: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of answers, newest first.")] = 10_000,
) -> int:
    """Serve captured answers as an OpenAI- and Anthropic-compatible endpoint, with their original timing.

    A request gets the answer with its request_id (a query parameter, or the header x-deltatap-request-id), or else the
    answer that was captured for the same body (request_hash), or for the same last prompt and model. Each API serves
    every answer that it can express, streamed or whole. A stream that broke off breaks off again at the same place.

    Other request options: run_id, speed, from_ms, loop, cut, stall, stall_ms, merge, split, bytes_per_s and
    drop_usage. To watch answers arrive, open / in a browser.
    """
    from deltatap.analysis.queries import newest_answers  # noqa: PLC0415
    from deltatap.replay.app import Replay  # noqa: PLC0415
    from deltatap.replay.recordings import recordings_of  # noqa: PLC0415
    from deltatap.simulator.server import listen, serve  # noqa: PLC0415

    # Reading the answers takes a while, so a port that is in use is reported first.
    with listen(host, port) as listening:
        tables = reader(settings, console)
        rows = newest_answers(tables, settings, run_ids or [], most)
        tables.close()
        recordings, reasons = recordings_of(rows)
        for reason, count in reasons.items():
            say(console, f"{count:,} answer{'s' * (count > 1)} left out: {reason}")
        if not recordings:
            raise ConfigError([f"captures.table: {settings.captures.table}: no answer to replay"])
        say(console, f"{len(recordings):,} answer{'s' * (len(recordings) > 1)}")
        page = "to watch an answer in a browser"
        serve(Replay(recordings, speed=speed).application(), listening, "base_url of a client", page=page)
    return OK


def _with_faults(callback: Callable[..., None]) -> Callable[..., None]:
    """Add the names of the faults to the help."""
    groups = {
        "Faults that refuse a request": REFUSALS,
        "Faults that break a stream": BREAKS,
        "Faults that change the end, the headers or the content type": ENDINGS,
        "Faults that change where events and reads begin and end": SHAPES,
        "Faults that add or omit data that only some servers send": TRAITS,
    }
    listed = [f"{what}: {', '.join(names)}." for what, names in groups.items()]
    callback.__doc__ = "\n\n".join([inspect.cleandoc(callback.__doc__ or ""), *listed])
    return callback


@app.command(cls=Command, rich_help_panel=ENDPOINTS)
@unwrapped
@_with_faults
def simulate(
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 8089,
    seed: Annotated[int, typer.Option(help="Random seed of answers, delays and faults.")] = 0,
    ttft_ms: Annotated[float, typer.Option(help="Median time to first token.")] = 200.0,
    itl_ms: Annotated[float, typer.Option(help="Median inter-token latency.")] = 20.0,
    tokens: Annotated[float, typer.Option(help="Median answer length in tokens.")] = 120.0,
    sigma: Annotated[float, typer.Option(help="Factor for the spread around the three medians. 0: no spread.")] = 1.0,
    speed: Annotated[float, _SPEED] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault and its rate, from 0 to 1: cut=0.02. Repeatable.",
            metavar="FAULT=RATE",
        ),
    ] = None,
    in_a_row: Annotated[int, typer.Option(help="Maximum consecutive faults for one prompt.")] = 2,
    api_key_env: Annotated[
        str | None, typer.Option(help="Require the key in this environment variable.", metavar="NAME")
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Maximum requests per minute. Requests above the limit get a 429.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Maximum tokens per minute. Requests above the limit get a 429.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of answers generated at once. Other requests wait for a free slot."),
    ] = None,
    flag: Annotated[
        list[str] | None,
        typer.Option(help="A word that /moderations flags. Repeatable. Default: forbidden.", metavar="WORD"),
    ] = None,
    moderation_ms: Annotated[float, typer.Option(min=0, help="Duration of a call to /moderations.")] = 0.0,
) -> None:
    """Serve a simulated endpoint, OpenAI- and Anthropic-compatible, that injects faults and records what it sent.

    Set your client's base URL to the URL that the command prints. A model name can request faults:
    gpt-4o-mini!429=0.2:2!cut@5:1 means two rate limits, then a connection that is cut after five pieces, then an
    answer. gpt-4o-mini!planted@5 inserts, after five pieces, a word that /moderations flags. /sim/calls, /sim/counts,
    /sim/stats and /sim/moderations return the record.
    """
    from deltatap.simulator.faults import BadFaultError, parse  # noqa: PLC0415
    from deltatap.terminal import plain_console  # noqa: PLC0415

    rates = {}
    try:
        for text in fault or []:
            name, _, rate = text.rpartition("=")
            parse(name)
            rates[name] = float(rate)
            if not 0 <= rates[name] <= 1:
                raise typer.BadParameter(f"--fault {text}: expected a rate from 0 to 1, found {rate}")
    except (BadFaultError, ValueError) as error:
        raise typer.BadParameter(f"--fault {text}: expected FAULT=RATE ({error})") from None

    def work() -> int:
        from deltatap.simulator.answers import ENCODING, Pace  # noqa: PLC0415
        from deltatap.simulator.app import Simulator, SimulatorSettings  # noqa: PLC0415
        from deltatap.simulator.moderations import FLAGGED  # noqa: PLC0415
        from deltatap.simulator.server import listen, serve  # noqa: PLC0415
        from deltatap.tokens import encoding  # noqa: PLC0415

        usual = Pace()
        sigmas = [each * sigma for each in (usual.ttft_sigma, usual.itl_sigma, usual.tokens_sigma)]
        settings = SimulatorSettings(
            seed=seed,
            pace=Pace(ttft_ms, sigmas[0], itl_ms, sigmas[1], tokens, sigmas[2], speed),
            faults=rates,
            in_a_row=in_a_row,
            api_key_env=api_key_env,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            slots=slots,
            flagged=flag or FLAGGED,
            moderation_ms=moderation_ms,
        )
        encoding(ENCODING)  # Loaded before the first call, so that no call waits for it.
        with listen(host, port) as listening:
            serve(Simulator(settings).application(), listening)
        return OK

    sys.exit(guarded(plain_console(), work))
