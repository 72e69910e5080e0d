"""Prints one request, and the list of the failed and interrupted ones."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.text import Text

from deltatap.analysis.requested import asked_line, is_recorded, prompt_line, short_id, shortened
from deltatap.model import OUTPUT_KINDS
from deltatap.prices import money
from deltatap.program import program
from deltatap.terminal.console import line
from deltatap.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 50
# How deltatap continued after a break, by outcome.
_FOLLOWED = {
    "stream": "resumed without a new request",
    "whole": "the whole answer was read without a new request",
    "expired": "the provider no longer had the answer, so the request was sent again",
    "unseen": "no event had arrived, so the request was sent again",
}
# Characters of a message and of a prompt in a list.
_MESSAGE, _ASKED = 160, 70
# Maximum number of older rows to name.
_EARLIER = 3


def show_failures(
    console: Console,
    run_id: str,
    found: Sequence[Mapping[str, Any]],
    every: int,
    to_show: str = "",
    to_load: str = "",
    *,
    ended: bool = True,
) -> None:
    """Print failed and interrupted rows, and what to do next.

    Args:
        console: to print to.
        run_id: the run.
        found: its rows, from ``queries.not_completed``.
        every: how many there are.
        to_show: options to append to the command ``show``.
        to_load: options to append to the command ``load``.
        ended: whether the run has ended. If not, rows may be missing.
    """
    if not every:
        line(console, f"run {run_id}: no failed or interrupted rows{'' if ended else ' in the table yet'}")
        return
    line(console, f"run {run_id}: {every:,} failed or interrupted row{'s' * (every > 1)}", style="bold")
    several_modes = len({row["mode"] for row in found}) > 1
    for row in found:
        kind = " ".join(str(part) for part in (row["type"], row["http_status"], row["code"]) if part)
        name = short_id(row["request_id"]) + (f" ({row['mode']})" if several_modes else "")
        status = row["status"] + ("; will not be sent again" if row["final"] else "")
        line(console, f"{name}  {status}  {kind}: {shortened(row['message'] or 'no message', _MESSAGE)}")
        if asked := asked_line(row, _ASKED):
            line(console, f"    {asked}", style="dim")
    if every > len(found):
        line(console, f"{every - len(found):,} more: --limit {every} lists all")
    if again := [row for row in found if not row["final"] and not is_recorded(row["request_id"])]:
        every_one = len(again) == len(found)
        which = "these requests again" if every_one else "the requests that are not marked “will not be sent again”"
        cut = any(row["status"] == "interrupted" for row in again)
        bound = "; an interrupted request is sent in at most capture.max_runs runs" if cut else ""
        line(console, f"the next capture sends {which}, unless a later run has a final row for them{bound}")
    if any(row["type"] == "invalid_request" for row in found):
        load = f"`{program()} load{to_load} FILE --replace`"
        line(
            console, f"invalid_request: a corrected prompt is a new request: load a file with {load}, and capture again"
        )
    line(console, f"to show one request in full: `{program()} show{to_show} REQUEST_ID`", style="dim")


def _show_calls(console: Console, row: Mapping[str, Any]) -> None:
    """Print the earlier calls of a row, its breaks, and the row whose answer it reuses; or say that it made no call."""
    # Tables of older versions lack some columns.
    if reused := row.get("reused_from"):
        line(console, f"the answer of request {reused['request_id']} in run {reused['run_id']}, reused without a call")
    elif row["started_at"] is None:
        line(console, "no call was made")
    for at, call in enumerate(row["retries"] or (), 1):
        received = f"{len(call['text'] or ''):,} characters received"
        line(console, f"call {at}: {call['error_type']}, {received}", style="yellow")
    for each in row.get("resumed") or ():
        line(console, f"broke off ({each['error_type']}): {_FOLLOWED[each['outcome']]}", style="yellow")


def show_capture(console: Console, row: Mapping[str, Any]) -> None:
    """Print one row of ``captures``: its outcome, when its chunks arrived, its times, its text."""
    model = row["response_model"] or row["request_model"]
    error = row["error"]
    why = row["finish_reason"] or (error["type"] if error else "")
    outcome = f"  {row['mode']}  {row['status']} ({why})  {model}  run {row['run_id']}"
    console.print(Text.assemble((visible(row["request_id"]), "bold"), visible(outcome)), soft_wrap=True)
    if error:
        kind = " ".join(str(part) for part in (error["type"], error.get("http_status"), error["code"]) if part)
        line(console, f"{kind}: {error['message'] or ''}", style="red")
    _show_calls(console, row)
    if earlier := row.get("earlier"):
        older = ", ".join(f"{status} in run {run_id}" for run_id, status in earlier[:_EARLIER])
        line(console, f"older rows: {older}; `--run` shows one of them", style="dim")
    if prompt := prompt_line(row["request"], row["api"]):
        line(console, f"prompt: {prompt}")
    times = [chunk["ms"] for chunk in row["chunks"] or () if chunk["kind"] in OUTPUT_KINDS and chunk["ms"] is not None]
    for text in (sparkline(times), ", ".join(_facts(row)), _before_output(row)):
        if text:
            line(console, text)
    if checks := row.get("partial_moderation"):
        line(console, f"moderation: {moderated(json.loads(checks))}")
    for choice in row["choices"] or ():
        for name in ("reasoning", "refusal", "tool_calls", "text"):
            if choice[name]:
                of_choice = f" of choice {choice['index']}" if len(row["choices"]) > 1 else ""
                console.print(f"\n{name}{of_choice}", style="dim", highlight=False)
                console.print(choice[name], markup=False, highlight=False, soft_wrap=True)


def _facts(row: Mapping[str, Any]) -> list[str]:
    """The times, tokens and cost of a row; empty if it made no call."""
    if row["started_at"] is None and not row.get("reused_from"):
        return []
    columns = {
        "TTFT": "ttft_ms", "per token": "tpot_ms", "end to end": "e2e_ms", "loop lag": "loop_lag_ms",
        "start after its scheduled time": "scheduled_ms",
    }  # fmt: skip
    # Tables of older versions lack some columns.
    facts = [f"{name} {row[column]:,.1f} ms" for name, column in columns.items() if row.get(column) is not None]
    for name, source in (("usage_reported", "reported"), ("usage_tiktoken", "counted by tiktoken")):
        tokens = {of: (row[name] or {}).get(f"{of}_tokens") for of in ("input", "output")}
        # A server may report one of the two.
        if counts := [f"{count:,} {of}" for of, count in tokens.items() if count is not None]:
            facts.append(f"{' + '.join(counts)} tokens ({source})")
            break
    if row["cost_usd"] is not None:
        facts.append(f"${money(row['cost_usd'])}")
    return facts


def _before_output(row: Mapping[str, Any]) -> str:
    """Where the time before the first output went, on the worker and at the server; empty if it made no call."""
    if row["started_at"] is None or row.get("reused_from"):
        return ""
    columns = {"queued": "queued_ms", "request sent after": "dispatch_ms", "response headers after": "headers_ms"}
    steps = [f"{name} {row[column]:,.1f} ms" for name, column in columns.items() if row.get(column) is not None]
    if connection := row.get("connection"):
        opened = {"DNS": "dns_ms", "connect": "connect_ms", "TLS": "tls_ms"}
        parts = [f"{name} {connection[key]:,.1f}" for name, key in opened.items() if connection[key] is not None]
        steps.append(f"new connection ({', '.join(parts)} ms)" if parts else "reused connection")
    return ", ".join(steps)


def moderated(checks: Sequence[Mapping[str, Any]]) -> str:
    """The results of the checks of a text, in one line."""
    failed = Counter(check["error"] for check in checks if check["error"])
    count = f"{len(checks):,} check{'s' * (len(checks) != 1)}"
    count += (
        f" ({', '.join(f'{times:,} without a result: {error}' for error, times in failed.items())})" if failed else ""
    )
    first = next((check for check in checks if check["flagged"]), None)
    if first is None:
        return f"{'not flagged' if len(checks) > failed.total() else 'unknown'}; {count}"
    place = "at its end" if first["chunk"] is None else f"at chunk {first['chunk']:,}"
    named = f" ({', '.join(first['categories'])})" if first["categories"] else ""
    seen = f"a reader had seen {first['seen']:,} characters"
    return f"flagged{named} after {first['chars']:,} characters, {place}; {seen}; {count}"


def sparkline(times: Sequence[float], width: int = _WIDTH) -> str:
    """A line of bars with the number of chunks over time, from the request to the last chunk; empty without chunks.

    Args:
        times: of the chunks, in ms since the request was written.
        width: number of bars.
    """
    if not times:
        return ""
    end = max(times) or 1.0
    counts = [0] * width
    for at in times:
        counts[min(width - 1, int(at / end * width))] += 1
    highest = max(counts)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)
    return f"│{bars}│ {len(times):,} chunks in {end / 1000:,.2f} s"
