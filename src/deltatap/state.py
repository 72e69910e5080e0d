"""The state folder of a run: messages between driver and workers, the plan, the journal, and the list of landed rows.

Knows the layout, and how to write a file so that a reader sees either the whole file or no file. Files are only
created, renamed and deleted, so the folder may be on a Databricks Volume. Leaves the journal's Parquet files to
``worker/journal.py``.

    <state.dir>/<folder_of(run_id)>/
        run_id                  the run's id, if the folder has another name
        control.json            the driver's message: epoch, beat, shares, stop; replaced every half second
        stop                    exists when someone has asked the run to stop
        workers/<claim>.json    a worker's heartbeat
        kept/*.json             streams that a worker has open, or had open when it was killed (capture.resume)
        journal/*.parquet       captures that have not landed
        journal/*.held          captures whose texts are still being checked; they land only if their worker dies
        aside/*                 unreadable journal files, kept for inspection
        plan-<epoch>/parts/     the owed requests, one file per capture task
        plan-<epoch>/claims/    <part>-<number>-<uuid>: the attempts at a part; the greatest name holds the part
        plan-<epoch>/landed/    which rows of which parts are in captures, 8 bytes per row
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deltatap.errors import ConfigError
from deltatap.messages import Control, Heartbeat, KeptStream, OpenStream, Parked, Permit, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

_Record = TypeVar("_Record", Control, Permit, Heartbeat, OpenStream, Parked, Refusal)
LANDED = np.dtype([("part", "<i4"), ("row", "<i4")])
# Above this number, the files in landed/ are merged into one.
_MERGE_LANDED_ABOVE = 64
_SAFE, _UNSAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"), re.compile(r"[^A-Za-z0-9_-]+")
# The run ids of older versions.
_OLD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# How much of an unsafe id its folder's name shows.
_SHOWN = 40


def folder_of(run_id: str) -> str:
    """The name of a run's folder, and the start of its files' names: safe for Spark and for every file system.

    An id of safe characters is its own folder, as in older versions. Any other id becomes a readable start and a hash.
    The ``~`` keeps the two kinds apart.
    """
    if _SAFE.fullmatch(run_id):
        return run_id
    start = _UNSAFE.sub("-", run_id).strip("-_")[:_SHOWN] or "run"
    return f"{start}~{hashlib.sha256(run_id.encode(errors='surrogatepass')).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class RunState:
    """The folder of one run.

    Attributes:
        folder: the folder.
        run_id: the run's id, if :meth:`prepare` must write it down because the folder has another name.
    """

    folder: Path
    run_id: str | None = None

    @classmethod
    def of(cls, folder: Path, run_id: str) -> RunState:
        """The folder of a run, in the configured state folder."""
        name = folder_of(run_id)
        return cls(folder / name, None if name == run_id else run_id)

    @property
    def name(self) -> str:
        """The run's id, for a folder that was found in the state folder."""
        try:
            return (self.folder / "run_id").read_text(encoding="utf-8")
        except FileNotFoundError:
            return self.folder.name

    def adopt(self) -> None:
        """Rename a folder of an older version, which used colons in names. Spark cannot read them."""
        if self.run_id is None or not _OLD.fullmatch(self.run_id):
            return
        old = self.folder.with_name(self.run_id)
        if old.is_dir() and not self.folder.exists():
            old.rename(self.folder)
        for path in self.journal.glob(f"{self.run_id}-*"):
            path.rename(path.with_name(path.name.replace(self.run_id, self.folder.name, 1)))

    @property
    def journal(self) -> Path:
        """The folder of captures that have not landed."""
        return self.folder / "journal"

    @property
    def kept(self) -> Path:
        """The folder of the streams that workers have open."""
        return self.folder / "kept"

    @property
    def aside(self) -> Path:
        """The folder of unreadable journal files."""
        return self.folder / "aside"

    def plan(self, epoch: int) -> PlanState:
        """The folder of the plan that was made under the lease with this epoch."""
        return PlanState(self.folder / f"plan-{epoch}")

    def plans(self) -> list[PlanState]:
        """The folders of all plans."""
        return [PlanState(path) for path in sorted(self.folder.glob("plan-*"))]

    def prepare(self) -> None:
        """Create the folders.

        Raises:
            ConfigError: if the state folder cannot be written.
        """
        try:
            for folder in (self.journal, self.aside, self.kept, self.folder / "workers"):
                folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "probe", b"")
            (self.folder / "probe").unlink()
            if self.run_id is not None:
                write_whole(self.folder / "run_id", self.run_id.encode())
        except OSError as error:
            raise ConfigError([f"state.dir: {self.folder.parent}: cannot be written: {error.strerror}"]) from error

    def remove(self) -> None:
        """Delete the folder after everything has landed; unreadable journal files in `aside` remain."""
        if not any(self.aside.glob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.iterdir():
            if path.is_dir() and path != self.aside:
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir():
                path.unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """Ask the driver to stop the run."""
        write_whole(self.folder / "stop", b"")

    def forget_stop(self) -> None:
        """Discard a request to stop that was meant for an earlier driver."""
        (self.folder / "stop").unlink(missing_ok=True)

    def asked_to_stop(self) -> bool:
        """Whether someone has asked the run to stop."""
        return (self.folder / "stop").exists()

    def publish(self, control: Control) -> None:
        """Replace the driver's message."""
        write_whole(self.folder / "control.json", json.dumps(asdict(control)).encode())

    def control(self) -> Control | None:
        """The driver's latest message; None before the first."""
        content = _content(self.folder / "control.json")
        if content is None:
            return None
        if content.get("permits") is not None:
            content["permits"] = {claim: _record(Permit, permit) for claim, permit in content["permits"].items()}
        return _record(Control, content)

    def note_kept(self, name: str, streams: Iterable[KeptStream]) -> None:
        """Replace the list of open streams of a worker, or those that another run has left."""
        write_whole(self.kept / f"{name}.json", json.dumps([asdict(stream) for stream in streams]).encode())

    def kept_streams(self) -> dict[tuple[str, str, str, str], KeptStream]:
        """The streams that were open, by request; the latest of each request. Skips damaged files and entries."""
        found: dict[tuple[str, str, str, str], KeptStream] = {}
        for path in sorted(self.kept.glob("*.json")):
            for stream in kept_streams(path):
                known = found.get(stream.key)
                if known is None or _rank(stream) > _rank(known):
                    found[stream.key] = stream
        return found

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace a worker's heartbeat."""
        write_whole(self.folder / "workers" / f"{heartbeat.claim}.json", json.dumps(asdict(heartbeat)).encode())

    def heartbeats(self) -> list[Heartbeat]:
        """The latest heartbeat of every worker, including workers that have ended or died."""
        contents = (_content(path) for path in sorted((self.folder / "workers").glob("*.json")))
        return [_heartbeat(content) for content in contents if content is not None]


@dataclass(frozen=True, slots=True)
class PlanState:
    """The folder of one plan: its parts, the attempts at them, and the rows that have landed."""

    folder: Path

    @property
    def parts(self) -> Path:
        """The folder of the parts that Spark wrote."""
        return self.folder / "parts"

    def part_files(self) -> list[Path]:
        """The files of the parts; a part's number is its index in this list."""
        return sorted(self.parts.glob("part-*.parquet"))

    def claim(self, part: int) -> str:
        """Claim a part for a new attempt; returns the attempt's name."""
        claims = self.folder / "claims"
        claims.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.name.split("-")[1]) for path in claims.glob(f"{part:05d}-*")]
        name = f"{part:05d}-{max(numbers, default=0) + 1:06d}-{uuid.uuid4().hex}"
        (claims / name).touch()
        return name

    def holds(self, claim: str) -> bool:
        """Whether no newer attempt has claimed the part. Between equal numbers, the greater uuid wins."""
        part = claim.split("-", maxsplit=1)[0]
        return max(path.name for path in (self.folder / "claims").glob(f"{part}-*")) <= claim

    def landed(self) -> np.ndarray[Any, Any]:
        """The :data:`LANDED` pairs (part, row) that are in ``captures``."""
        while True:
            try:
                contents = [path.read_bytes() for path in self._landed_files()]
            except FileNotFoundError:  # another process merged the files meanwhile
                continue
            return np.unique(np.frombuffer(b"".join(contents), LANDED))

    def landed_rows(self, part: int) -> np.ndarray[Any, Any]:
        """The rows of a part that are in ``captures``."""
        landed = self.landed()
        rows: np.ndarray[Any, Any] = landed["row"][landed["part"] == part]
        return rows

    def add_landed(self, pairs: np.ndarray[Any, Any]) -> None:
        """Record :data:`LANDED` pairs as landed: after the commit, and before their journal files are deleted."""
        folder = self.folder / "landed"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{uuid.uuid4().hex}.rows", pairs.tobytes())
        files = self._landed_files()
        if len(files) > _MERGE_LANDED_ABOVE:
            write_whole(folder / f"{uuid.uuid4().hex}.rows", self.landed().tobytes())
            for path in files:
                path.unlink(missing_ok=True)

    def _landed_files(self) -> list[Path]:
        return sorted((self.folder / "landed").glob("*.rows"))


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file so that a reader finds all of it or nothing, even after a crash: sync it to disk, then rename it.

    Spark ignores the temporary name, because it begins with a dot.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # on a full disk, leave the space to the next attempt
        temporary.unlink(missing_ok=True)
        raise


def _rank(stream: KeptStream) -> tuple[float, bool, int]:
    return stream.started_at, stream.response_id is not None, -1 if stream.sequence is None else stream.sequence


def kept_streams(path: Path) -> list[KeptStream]:
    """The entries of a file that are whole."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [stream for entry in content if (stream := _kept_stream(entry))] if isinstance(content, list) else []


def _kept_stream(entry: object) -> KeptStream | None:
    if not isinstance(entry, dict):
        return None
    texts = [entry.get(name) for name in ("request_id", "request_hash", "mode", "endpoint")]
    started_at, response_id, sequence = (entry.get(name) for name in ("started_at", "response_id", "sequence"))
    if not (
        all(isinstance(text, str) for text in texts)
        and type(started_at) in (int, float)
        and (response_id is None or isinstance(response_id, str))
        and (sequence is None or type(sequence) is int)
    ):
        return None
    return KeptStream(*texts, started_at, response_id, sequence)  # type: ignore[arg-type, call-arg] # checked above


def _heartbeat(content: dict[str, Any]) -> Heartbeat:
    parked = [
        _record(Parked, {**entry, "refusal": _record(Refusal, entry["refusal"])}) for entry in content.get("parked", ())
    ]
    streams = tuple(_record(OpenStream, entry) for entry in content.get("streams", ()))
    return _record(Heartbeat, {**content, "parked": tuple(parked), "streams": streams})


def _record(kind: type[_Record], content: dict[str, Any]) -> _Record:
    """A message without the fields that only another version of deltatap knows."""
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in known})


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content
