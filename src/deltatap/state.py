"""The state folder of a run: messages between driver and workers, open streams, the journal, and the plans.

Knows the layout, and how a reader recognizes a complete file. Files are only created, renamed and deleted, so the
folder may be on a Databricks Volume. Leaves each access to ``files.py``, the folder of a plan to ``plan_state.py``, and
the journal's Parquet files to ``worker/journal.py``.

    <state.dir>/<folder_of(run_id)>/
        run_id                  the run's id, if the folder has another name
        captures                which captures table the run writes
        control.json            the driver's message: epoch, beat, shares, stop; replaced every half second
        stop                    exists when someone has asked the run to stop: the epoch of its driver
        workers/<claim>.json    a worker's heartbeat
        kept/*.json             streams that a worker has open, or had open when it was killed (capture.resume)
        journal/*.parquet       captures that have not landed
        journal/*.held          captures whose texts are still being checked; they land only if their worker dies
        aside/*                 unreadable journal files, kept for inspection
        plan-<epoch>/           the plan that was made under this lease; see ``plan_state.py``
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from deltatap.errors import ConfigError
from deltatap.files import Files
from deltatap.messages import Control, Heartbeat, KeptStream, OpenStream, Parked, Permit, Refusal
from deltatap.plan_state import PlanState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from deltatap.delta.identity import Identity
    from deltatap.plan_state import Part

_Record = TypeVar("_Record", Control, Permit, Heartbeat, OpenStream, Parked, Refusal)
_SAFE, _UNSAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"), re.compile(r"[^A-Za-z0-9_-]+")
# The run ids of older versions.
_OLD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# How long to wait after each read of a damaged list of streams, because the list may still be incomplete.
_LOOKS_S = (0.1, 0.2, 0.4, 0.0)
# How many characters of an unsafe id appear in the name of its folder.
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
        files: the access to the files.
    """

    folder: Path
    run_id: str | None = None
    files: Files = field(default_factory=Files, compare=False)

    @classmethod
    def of(cls, folder: Path, run_id: str, files: Files | None = None) -> RunState:
        """The folder of a run, in the configured state folder."""
        name = folder_of(run_id)
        return cls(folder / name, None if name == run_id else run_id, files or Files())

    def at_once(self) -> RunState:
        """The same folder for messages; see :meth:`Files.messages`."""
        return replace(self, files=self.files.messages())

    @property
    def name(self) -> str:
        """The run's id, for a folder that was found in the state folder."""
        try:
            run_id = self.files.load(self.folder / "run_id", self._checked_name)
        except OSError:
            return self.folder.name
        return self.folder.name if run_id is None else run_id

    def _checked_name(self, content: bytes) -> str:
        run_id = content.decode()
        if folder_of(run_id) != self.folder.name:
            raise ValueError(run_id)
        return run_id

    def adopt(self) -> None:
        """Rename a folder of an older version, which used colons in names. Spark cannot read them."""
        if self.run_id is None or not _OLD.fullmatch(self.run_id):
            return
        old = self.folder.with_name(self.run_id)
        if old.is_dir() and not self.files.exists(self.folder):
            self.files.repeat(lambda: old.rename(self.folder))
        for path in self.files.names(self.journal):
            if path.name.startswith(f"{self.run_id}-"):
                self.files.move(path, path.with_name(path.name.replace(self.run_id, self.folder.name, 1)))

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

    def plan(self, epoch: int, written: Sequence[Part] | None = None) -> PlanState:
        """The folder of the plan that was made under the lease with this epoch; see :attr:`PlanState.written`."""
        return PlanState(self.folder / f"plan-{epoch}", None if written is None else tuple(written), self.files)

    def plans(self) -> list[PlanState]:
        """The folders of all plans."""
        found = self.files.names(self.folder)
        return [PlanState(path, None, self.files) for path in found if path.name.startswith("plan-")]

    def is_of(self, captures: Identity) -> bool:
        """Whether the folder is of a run on this captures table. A folder of an older version has no mark, and is."""
        mark = self.files.load(self.folder / "captures", _mark)
        return mark is None or captures.is_same(*mark)

    def require(self, captures: Identity) -> None:
        """Require that no run on another captures table has left the folder.

        Raises:
            ConfigError: if one has, or if the folder cannot be read.
        """
        try:
            if not self.is_of(captures):
                problem = (
                    f"run.id: {self.name}: {self.folder} belongs to a run on another captures table; choose another "
                    "run.id or state.dir, or delete this folder if that table is gone"
                )
                raise ConfigError([problem])
        except OSError as error:
            raise ConfigError([f"state.dir: {self.folder}: cannot be read: {error.strerror}"]) from error

    def is_left(self) -> bool:
        """Whether a run has left more here than unreadable journal files."""
        return any(path != self.aside for path in self.files.names(self.folder))

    def prepare(self, captures: Identity | None = None) -> None:
        """Create the folders, and mark the folder with the captures table; None leaves the mark as it is.

        Raises:
            ConfigError: if the state folder cannot be written.
        """
        try:
            self.files.make(self.journal, self.aside, self.kept, self.folder / "workers")
            self.files.write(self.folder / "probe", b"")
            self.files.delete(self.folder / "probe")
            if self.run_id is not None:
                self.files.write(self.folder / "run_id", self.run_id.encode())
            if captures is not None:
                mark = json.dumps([captures.id, captures.location])
                self.files.write(self.folder / "captures", mark.encode())
        except OSError as error:
            raise ConfigError([f"state.dir: {self.folder.parent}: cannot be written: {error.strerror}"]) from error

    def remove_journal(self) -> bool:
        """Delete the journal's folder; False if a capture may still be in it.

        The file system itself says whether the folder is empty, because a listing may be old.
        """
        for path in self.files.names(self.journal):
            if path.suffix not in (".parquet", ".held"):
                self.files.delete_folder(path) if path.is_dir() else self.files.delete(path)
        return self.files.delete_empty(self.journal)

    def remove(self) -> None:
        """Delete the folder after everything has landed; unreadable journal files in `aside` remain.

        Files that cannot be deleted also remain. They hold no captures.
        """
        with suppress(OSError):
            if not self.files.names(self.aside):
                self.files.delete_folder(self.folder)
                return
            for path in self.files.names(self.folder):
                if path != self.aside:
                    self.files.delete_folder(path) if path.is_dir() else self.files.delete(path)

    def ask_to_stop(self, epoch: int | None = None) -> None:
        """Ask the driver with this epoch to stop the run; None: any driver."""
        self.files.write(self.folder / "stop", b"" if epoch is None else str(epoch).encode())

    def forget_stop(self) -> None:
        """Discard a request to stop that was meant for an earlier driver."""
        self.files.delete(self.folder / "stop")

    def asked_to_stop(self, epoch: int | None = None) -> bool:
        """Whether somebody has asked the driver with this epoch to stop the run; None: any driver.

        A stale listing can show a request that was meant for an earlier driver.
        """
        asked = self.files.load(self.folder / "stop", lambda content: (int(content) if content else epoch,))
        return asked is not None and (epoch is None or asked[0] == epoch)

    def publish(self, control: Control) -> None:
        """Replace the driver's message."""
        self.files.write(self.folder / "control.json", json.dumps(asdict(control)).encode())

    def control(self) -> Control | None:
        """The driver's latest message; None before the first.

        Raises:
            OSError: if the message cannot be read, or is incomplete.
        """
        content = self.files.load(self.folder / "control.json", _content)
        if content is None:
            return None
        if content.get("permits") is not None:
            content["permits"] = {claim: _record(Permit, permit) for claim, permit in content["permits"].items()}
        return _record(Control, content)

    def note_kept(self, name: str, streams: Iterable[KeptStream]) -> None:
        """Replace the list of open streams of a worker, or those that another run has left."""
        self.files.write(self.kept / f"{name}.json", json.dumps([asdict(stream) for stream in streams]).encode())

    def kept_streams(self) -> dict[tuple[str, str, str, str], KeptStream]:
        """The streams that were open, by request; the latest of each request. Skips damaged files and entries.

        Raises:
            OSError: if a list cannot be read. Its requests could be sent twice without it.
        """
        found: dict[tuple[str, str, str, str], KeptStream] = {}
        for path in self.files.names(self.kept, ".json"):
            for stream in kept_streams(path, self.files):
                known = found.get(stream.key)
                if known is None or _rank(stream) > _rank(known):
                    found[stream.key] = stream
        return found

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace a worker's heartbeat."""
        self.files.write(self.folder / "workers" / f"{heartbeat.claim}.json", json.dumps(asdict(heartbeat)).encode())

    def heartbeats(self) -> list[Heartbeat]:
        """The latest heartbeat of every worker, including workers that have ended or died.

        Skips heartbeats that cannot be read now.
        """
        contents = []
        for path in self.files.names(self.folder / "workers", ".json"):
            with suppress(OSError):
                contents.append(self.files.load(path, _content))
        return [_heartbeat(content) for content in contents if content is not None]


def _rank(stream: KeptStream) -> tuple[float, bool, int]:
    return stream.started_at, stream.response_id is not None, -1 if stream.sequence is None else stream.sequence


def kept_streams(path: Path, files: Files) -> list[KeptStream]:
    """The valid entries of a list of streams; none if the file does not exist or stays damaged.

    Raises:
        OSError: if the file cannot be read.
    """
    for again_s in _LOOKS_S:
        content = files.load(path, bytes)
        with suppress(ValueError, RecursionError):
            entries = [] if content is None else json.loads(content)
            return [stream for each in entries if (stream := _kept_stream(each))] if isinstance(entries, list) else []
        files.wait(again_s)
    return []


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


def _mark(content: bytes) -> tuple[str | None, str | None] | None:
    """The id and the location of a table; None if they are incomplete, because a driver may have died meanwhile."""
    try:
        id_, location = json.loads(content)
    except (ValueError, TypeError):
        return None
    return id_, location


def _content(content: bytes) -> dict[str, Any]:
    """A message. An incomplete message is not valid JSON, so it raises a ValueError."""
    decoded = json.loads(content)
    if not isinstance(decoded, dict):
        raise ValueError(decoded)  # noqa: TRY004 - half a message
    return decoded
