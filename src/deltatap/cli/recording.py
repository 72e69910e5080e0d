"""The command ``record``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from deltatap.cli.runner import CAPTURE, HOST, OK, PORT, command, given, hint, say, session
from deltatap.errors import ConfigError
from deltatap.program import program
from deltatap.visible import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from deltatap.config import Settings

_LAST_LINE = (
    "run_id", "status", "completed", "interrupted", "failed", "requests", "input_tokens", "output_tokens", "cost_usd",
)  # fmt: skip


@command(CAPTURE)
@hint("run it again: the next start lands the journal")
def record(
    settings: Settings,
    console: Console,
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, PORT] = 8091,
) -> int:
    """Record your application's requests and answers, with a proxy between the application and endpoint.base_url.

    Set your application's base URL to the URL that the command prints. Requests go to the same path of the endpoint,
    with the application's own key. Answers come back byte for byte, as they arrive. Every call to chat completions,
    legacy completions, Responses and Messages becomes a row of record.table, with the arrival time of each chunk.
    Prompts and answers are stored; keys are not. Other paths are forwarded, but not recorded.

    To stop, press Ctrl-C. Open requests then get timeouts.grace_s seconds to finish. The last line of the output is
    JSON.
    """
    from deltatap.driver.needs import NETWORK, checked, prices_of, process_needs, require  # noqa: PLC0415
    from deltatap.record.forwarding import Target  # noqa: PLC0415
    from deltatap.record.run import into_its_table  # noqa: PLC0415
    from deltatap.record.run import record as run_recording  # noqa: PLC0415
    from deltatap.simulator.server import listen  # noqa: PLC0415

    settings = into_its_table(settings)
    prices = prices_of(settings)
    # The application has the key, and the endpoint may start later.
    needs = {need.name: need for need in process_needs(settings) if need.name != "key"}
    require([need for name, need in needs.items() if name != NETWORK])
    unreachable = checked(needs[NETWORK]).problems
    target = Target.of(settings.endpoint.base_url)
    with listen(host, port) as listening:
        address, number = listening.getsockname()[:2]
        if target.host in (host, address, "localhost") and target.port == number:
            raise ConfigError(
                [f"endpoint.base_url: {settings.endpoint.base_url} is this proxy; use the URL of the real endpoint"]
            )
        spark = session(settings, console)

        def ready(run_id: str) -> None:
            for problem in unreachable:
                say(console, problem, "warning")
            shown = f"[{address}]" if ":" in address else address
            say(console, f"run {run_id} records prompts and answers of {settings.endpoint.base_url}")
            say(console, f"table: {settings.captures.table} (keys are not stored)")
            print(f"record: http://{shown}:{number}{target.path}", flush=True)  # noqa: T201 - programs wait for this line

        ended = run_recording(settings, spark, prices, listening, ready)
    for note in ended.notes:
        say(console, note)
    row = ended.row
    rows = sum(row[name] or 0 for name in ("completed", "interrupted", "failed"))
    say(console, f"{rows:,} row{'s' * (rows != 1)} in {settings.captures.table}")
    tables = f"--set captures.table={settings.captures.table}{given('runs')}"
    say(console, f"next: `{program()} report {tables}` lists the requests, `{program()} show ID {tables}` shows one")
    print(json_text({name: row[name] for name in _LAST_LINE}, ensure_ascii=True))  # noqa: T201 - a line for programs
    return OK
