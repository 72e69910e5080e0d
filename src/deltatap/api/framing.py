"""The class that writes the responses of an API, for the simulator and the replay. Pure.

Each API's module has a subclass. `frames.py` has the records that it writes, and `captured.py` a captured answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api.frames import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deltatap.api.captured import Captured
    from deltatap.api.frames import Answer, Facts, Frame
    from deltatap.model import StreamError


@dataclass(slots=True)
class Frames(ABC):
    """Builds one response of an API. All methods except the last three return a list with one frame per event.

    Attributes:
        facts: what all frames share.
        typed: whether each event has a type.
    """

    facts: Facts
    typed: ClassVar[bool] = True

    @abstractmethod
    def begin(self) -> list[bytes]:
        """Before the first piece."""

    def role(self, choice: int, content: str = "") -> list[bytes]:
        """The start of a choice, with the first content if the server sends both together."""
        return self.piece(choice, Piece("content", content)) if content else []

    @abstractmethod
    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:
        """A piece, with the finish_reason if the server sends it with the last piece."""

    @abstractmethod
    def empty(self) -> list[bytes]:
        """An event without output."""

    @abstractmethod
    def finish(self, choice: int, reason: str) -> list[bytes]:
        """The end of a choice."""

    @abstractmethod
    def end(self, reason: str | None) -> list[bytes]:
        """The end of the response. If `reason` is None, the stream ends without a finish_reason."""

    @abstractmethod
    def error(self, *, named: bool) -> list[bytes]:
        """An error in the middle of a stream; `named` gives the event a type."""

    @abstractmethod
    def refuse(self, error: StreamError) -> list[bytes]:
        """A captured error in the middle of a stream, in the form of this API."""

    @abstractmethod
    def replayed(self, captured: Captured) -> Iterator[Frame]:
        """The frames of a captured answer."""

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def whole_error(self, body: dict[str, Any], error: StreamError) -> dict[str, Any]:
        """The body of a response that is not streamed and ended in an error."""
        return {**body, "error": {"message": error.message, "type": error.type, "code": error.code}}


class BackgroundFrames(Frames, ABC):
    """Builds one response of an API that can generate it in the background."""

    __slots__ = ()

    @abstractmethod
    def unfinished(self, status: str) -> dict[str, Any]:
        """The body of a response that has not completed."""

    @abstractmethod
    def cancelled(self) -> list[bytes]:
        """The end of a response that was cancelled."""
