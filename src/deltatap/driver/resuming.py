"""Open streams between runs (``capture.resume``): the next run resumes the streams that a dead or stopped run had open.

Knows which lists of open streams a run takes over and leaves behind, and how many breaks the run had. The
lists are files in the state folder (``state.py``). Workers use them (``worker/resuming.py``).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.delta import tables
from deltatap.delta.final import final_sql
from deltatap.delta.reader import rows
from deltatap.delta.readers import reader_beside
from deltatap.files import Files
from deltatap.state import RunState, kept_streams

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings
    from deltatap.delta.identity import Identity
    from deltatap.driver.active import ActiveRun
    from deltatap.messages import KeptStream

# The folder in the state folder for the streams that ended runs have left. No run has this name.
_LEFT = ".left"
_WORDS = {
    "stream": ("broken stream was resumed", "broken streams were resumed"),
    "whole": ("broken answer was read in full", "broken answers were read in full"),
    "expired": (
        "broken answer was no longer available: its request was sent again",
        "broken answers were no longer available: their requests were sent again",
    ),
    "unseen": (
        "request broke off before its first event: it was sent again",
        "requests broke off before their first event: they were sent again",
    ),
}


def carry(settings: Settings, captures: Identity, dead: RunState) -> None:
    """Leave the streams of a dead run to the next run, before its folder is removed."""
    if streams := [stream for stream in dead.kept_streams().values() if stream.response_id is not None]:
        _leave(settings, captures, dead, streams)


def take(run: ActiveRun) -> None:
    """Take over the open streams that ended runs have left; with ``capture.owed: all``, only those of this run."""
    left = _left(run.settings)
    if not run.settings.capture.resume:
        return
    start = f"{_table(run.settings, run.lease.captures)}-"
    whose = f"{start}{run.state.folder.name}.json" if run.settings.capture.owed == "all" else ".json"
    for path in left.files.names(left.kept, whose):
        if not path.name.startswith(start):
            continue
        run.state.note_kept(f"left-{path.stem}", kept_streams(path, left.files))
        left.files.delete(path)
    with suppress(OSError):  # runs on other tables leave their streams here, too
        left.kept.rmdir()
        left.folder.rmdir()


def leave(run: ActiveRun) -> None:
    """Leave the streams that the provider may still have, and whose requests have no final row, to the next run."""
    open_ = [stream for stream in run.state.kept_streams().values() if stream.response_id is not None]
    if not run.settings.capture.resume or not open_:
        return
    settled = _settled(run.spark, run.settings, open_)
    if owed := [stream for stream in open_ if stream.key[1:] not in settled]:
        _leave(run.settings, run.lease.captures, run.state, owed)


def notes(spark: SparkSession, settings: Settings, run_id: str) -> list[str]:
    """One line for each kind of break in the run, with the number of breaks."""
    if not settings.capture.resume:
        return []
    counts = ", ".join(
        f"coalesce(sum(size(filter(resumed, r -> r.outcome = '{outcome}'))), 0) AS {outcome}" for outcome in _WORDS
    )
    found = rows(
        reader_beside(spark).query(
            f"SELECT {counts} FROM {tables.quoted(settings.captures.table)} "
            f"WHERE run_id = {tables.literal(run_id)} AND resumed IS NOT NULL"
        )
    )[0]
    return [
        f"{found[outcome]:,} {one if found[outcome] == 1 else several} (capture.resume)"
        for outcome, (one, several) in _WORDS.items()
        if found[outcome]
    ]


def _settled(spark: SparkSession, settings: Settings, streams: list[KeptStream]) -> set[tuple[str, str, str]]:
    """The requests among these that have a final row."""
    ids = ", ".join(sorted({tables.literal(stream.request_id) for stream in streams}))
    final = final_sql("c", keep_interrupted=settings.capture.keep_interrupted)
    found = reader_beside(spark).query(
        f"SELECT request_id, request_hash, mode FROM {tables.quoted(settings.captures.table)} AS c "
        f"WHERE {final} AND endpoint = {tables.literal(settings.endpoint.label)} AND request_id IN ({ids})"
    )
    return {(row["request_id"], row["request_hash"], row["mode"]) for row in rows(found)}


def _leave(settings: Settings, captures: Identity, state: RunState, streams: list[KeptStream]) -> None:
    left = _left(settings)
    left.files.make(left.kept)
    left.note_kept(f"{_table(settings, captures)}-{state.folder.name}", streams)


def _left(settings: Settings) -> RunState:
    return RunState(Path(settings.state.dir) / _LEFT, files=Files(settings.state.files_per_s))


def _table(settings: Settings, captures: Identity) -> str:
    """A name for the captures table that is the same for every spelling of its name."""
    return captures.id or hashlib.sha256(settings.captures.table.encode()).hexdigest()[:32]
