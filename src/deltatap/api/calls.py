"""Which tool call each captured chunk belongs to. Pure.

A row has the text of each chunk, and the complete calls of each choice, but does not say which call a chunk belongs to.
The texts of a call's chunks, joined, are its name and its arguments, so the chunks are matched with the calls in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.api.frames import Piece

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Called:
    """A tool call of a captured answer.

    Attributes:
        id, type, name: of the call.
        arguments: as text.
        sent: the call as it was sent, if the server executed it.
        named: whether its chunks start with its name.
    """

    id: str | None
    type: str
    name: str
    arguments: str
    sent: Mapping[str, Any] | None = None
    named: bool = True

    @property
    def text(self) -> str:
        """The texts of its chunks, joined."""
        return self.name * self.named + self.arguments

    def pieces(self, number: int) -> tuple[Piece, Piece]:
        """The call with its name, and its arguments."""
        return self.start(number), Piece("arguments", self.arguments, number)

    def start(self, number: int) -> Piece:
        """The piece with the name."""
        return Piece("call", self.name, number, self.id, self.type, self.sent)


def pieces_of_calls(calls: Sequence[Called], texts: Sequence[str], *, complete: bool = True) -> list[list[Piece]]:
    """The pieces of each chunk. If the texts do not match the calls, all calls are in the first chunk.

    Args:
        calls: the calls of one choice, in order.
        texts: the texts of the chunks with pieces of these calls, in order of arrival.
        complete: whether to add arguments that no chunk has. An API can add them at the end of a call.
    """
    places = [0] * len(calls)
    wholes = [call.text for call in calls]
    made: list[list[Piece]] = []
    latest = -1
    for text in texts:
        order = sorted(range(len(calls)), key=lambda at: (at != latest, places[at] > 0, at))
        found = next(
            (at for at in order if wholes[at].startswith(text, places[at]) and places[at] < len(wholes[at])), None
        )
        if found is None:
            return [
                [piece for number, call in enumerate(calls) for piece in call.pieces(number)],
                *([] for _ in texts[1:]),
            ]
        made.append(_pieces(calls[found], found, places[found], text))
        places[found] += len(text)
        latest = found
    for number, call in enumerate(calls if complete else ()):
        if made and places[number] < len(wholes[number]):
            last = next((its for its in reversed(made) if any(piece.call == number for piece in its)), made[-1])
            last += _pieces(call, number, places[number], wholes[number][places[number] :])
    return made


def _pieces(call: Called, number: int, place: int, text: str) -> list[Piece]:
    """The pieces of a text that starts at a position in a call. The first piece has the complete name."""
    made = [call.start(number)] if not place else []
    arguments = text[max(0, len(call.name) - place) :] if call.named else text
    return [*made, Piece("arguments", arguments, number)] if arguments else made
