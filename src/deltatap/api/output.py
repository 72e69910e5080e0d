"""Which parts of a response have arrived: every text and every call, by its place in the output. Pure.

The Responses API sends most output twice or more: in deltas, at the end of each text, part and item, and in the
complete response. These records find the parts that an event repeats. Only new parts are added. A text or a
call is found by its place in the output or, if a server numbers the places differently, by its id or its order.
`responses.py` knows the events, and `items.py` knows what an item holds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from deltatap.api.growing import GrowingChoice, ToolCall
from deltatap.api.items import SentCall, identifier
from deltatap.api.values import joined, to_index
from deltatap.model import CONTENT, REASONING, REFUSAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deltatap.api.growing import Text

# The events that repeat a text, from the smallest to the largest: for the text, for its part, for its item.
TEXT, PART, ITEM = 1, 2, 3
# For each field with a text: the kind of its chunks, and the name of its number in an event.
FIELDS = {
    "content": (CONTENT, "content_index"),
    "refusal": (REFUSAL, "content_index"),
    "summary": (REASONING, "summary_index"),
    "reasoning": (REASONING, "content_index"),
}


class Place(NamedTuple):
    """The place of a text: its field, the number and the id of its item, and its number in the item."""

    field: str
    item: int | None
    id: str | None
    at: int


@dataclass(slots=True)
class Stretch:
    """One text of the response, as a stretch of all text of its kind.

    Attributes:
        choice: the choice of the response.
        kind: of its chunks.
        into: all text of this kind.
        start, end: where its first piece starts and its last piece ends.
        place: of its first piece.
        repeated: the largest of the events that have repeated it.
    """

    choice: GrowingChoice
    kind: int
    into: Text
    start: int
    end: int
    place: int
    repeated: int = 0

    def starts(self, text: str) -> bool:
        """Whether the text starts with the part that has arrived.

        If other texts arrived in between, it does not.
        """
        size = self.end - self.start
        if size > len(text):
            return False
        return text.startswith(self.into.since(self.place, size))

    def missing(self, text: str) -> str:
        """The end of the complete text, if only its start has arrived. Nothing if another text has arrived."""
        size = self.end - self.start
        return text[size:] if size < len(text) and self.starts(text) else ""


class Texts:
    """The texts of a response.

    Attributes:
        stretches: by field, number (or id) of the item, and number in the item.
    """

    __slots__ = ("_latest", "_numbers", "stretches")

    def __init__(self) -> None:
        self.stretches: dict[tuple[str, int | str | None, int], Stretch] = {}
        self._latest: dict[int, Stretch] = {}
        self._numbers: dict[str, int] = {}

    def number(self, id_: str | None, item: int | None) -> None:
        """Learn the number of an item with this id."""
        if id_ is not None and item is not None:
            self._numbers.setdefault(id_, item)

    def of_delta(self, field: str, event: Mapping[str, Any], choice: GrowingChoice) -> Stretch:
        """The text that a delta continues, or a new one."""
        place = place_of(field, event)
        found = self._find(place)
        return self.open(place, choice) if found is None else found

    def open(self, place: Place, choice: GrowingChoice) -> Stretch:
        """A new text."""
        kind = FIELDS[place.field][0]
        into = {CONTENT: choice.text, REFUSAL: choice.refusal, REASONING: choice.reasoning}[kind]
        stretch = self._latest[kind] = Stretch(choice, kind, into, into.tell(), into.tell(), into.place())
        self.stretches[_key(place)] = stretch
        self.number(place.id, place.item)
        return stretch

    def _find(self, place: Place) -> Stretch | None:
        """The text at a place, by the number or by the id of its item."""
        by_id = None if place.id is None else self._numbers.get(place.id)
        items = [item for item in (place.item, by_id, place.id) if item is not None]
        found = (self.stretches.get((place.field, item, place.at)) for item in items or (None,))
        return next((stretch for stretch in found if stretch is not None), None)

    def repeated(self, place: Place, text: str, size: int, choice: GrowingChoice) -> tuple[Stretch, str]:
        """The text that an event repeats, and the part of it that has not arrived."""
        stretch = self._find(place)
        if stretch is None:
            last = self._latest.get(FIELDS[place.field][0])
            unplaced = place.item is None and place.id is None
            if last is not None and last.repeated < size and (unplaced or last.starts(text)):
                stretch = self.stretches[_key(place)] = last
        if stretch is None:
            stretch = self.open(place, choice)
        stretch.repeated = max(stretch.repeated, size)
        return stretch, stretch.missing(text)

    def compare(self, texts: Iterable[tuple[Place, str]], choice: GrowingChoice) -> list[tuple[Stretch | None, str]]:
        """The parts of the complete response's texts that have not arrived yet.

        First, the texts at the same places are compared; then, in their order, the others of each kind.
        """
        whole = {CONTENT: choice.text, REFUSAL: choice.refusal, REASONING: choice.reasoning}
        arrived = {kind: into.getvalue() for kind, into in whole.items()}
        left = {id(each): each for each in self.stretches.values()}
        given = [(place, text, self._find(place)) for place, text in texts]
        same = []
        for _, text, stretch in given:
            found = stretch is not None and id(stretch) in left and stretch.starts(text)
            same.append(left.pop(id(stretch)) if found else None)
        others: dict[int, deque[tuple[int, int]]] = {kind: deque() for kind in whole}
        for each in left.values():
            if each.start < each.end:
                others[each.kind].append((each.start, each.end))
        compared: list[tuple[Stretch | None, str]] = []
        for (place, text, _), stretch in zip(given, same, strict=True):
            kind = FIELDS[place.field][0]
            rest = text if stretch is None else text[stretch.end - stretch.start :]
            missing = _without(others[kind], arrived[kind], rest)
            if stretch is None and missing == text and others[kind]:
                # The other text replaces this one: some servers change white space.
                others[kind].popleft()
                missing = ""
            compared.append((stretch, missing))
        return compared


@dataclass(slots=True)
class Call(ToolCall):
    """A tool call of the response.

    Attributes:
        item_id: the id of its item.
        described: whether the call's type and name have arrived. Until then there are only pieces of the arguments.
        complete: whether the complete item has arrived.
        line: where the last line of its arguments starts, if they are commands.
    """

    item_id: str | None = None
    described: bool = False
    complete: bool = False
    line: int = 0

    @property
    def open_for_pieces(self) -> bool:
        """Whether pieces with another id can belong to this call."""
        return self.item_id is None or (self.described and not self.complete)

    def may_be(self, item_id: str | None, given: SentCall) -> bool:
        """Whether the item can be this call. Some servers change the id of an item in between."""
        name = self.name.getvalue()
        if (name and given.name and name != given.name) or (self.described and self.type != given.type):
            return False
        for known, its in ((self.id, given.id), (self.item_id, item_id)):
            if known and its:
                return known == its
        return True

    def has(self, item_id: str | None, given: SentCall) -> bool:
        """Whether the item has an id of this call."""
        return any(known is not None and known == its for known, its in ((self.id, given.id), (self.item_id, item_id)))

    def describe(self, item_id: str | None, given: SentCall) -> None:
        """Take what the item says about the call."""
        self.type, self.described = given.type, True
        self.id, self.item_id = self.id or given.id, self.item_id or item_id
        if not self.complete:
            self.item = given.item
        if given.as_json and not self.name.tell():
            self.name.write(given.name)

    def missing(self, arguments: str) -> str:
        """The end of the complete arguments, if only their start has arrived. Nothing if others have arrived."""
        if len(arguments) <= self.arguments.tell():
            return ""
        arrived = self.arguments.getvalue()
        return arguments[len(arrived) :] if arguments.startswith(arrived) else ""


class Calls:
    """The tool calls of a response."""

    __slots__ = ("_by_id", "_by_number", "_last", "_next")

    def __init__(self) -> None:
        self._by_number: dict[int, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._last: Call | None = None
        self._next = 0

    def of_piece(self, event: Mapping[str, Any], choice: GrowingChoice) -> Call:
        """The call that a piece of arguments belongs to."""
        number, id_ = to_index(event.get("output_index")), identifier(event.get("item_id"))
        call = None if id_ is None else self._by_id.get(id_)
        if call is None and number is not None:
            call = self._by_number.get(number)
        elif call is None and self._last is not None and (id_ is None or self._last.open_for_pieces):
            call = self._last
        if call is None:
            call = self._new(number, choice)
            self._known(call, id_, None)
        return call

    def opened(self, number: int | None, item_id: str | None, given: SentCall, choice: GrowingChoice) -> Call:
        """The call that an item opens. At a new place, it is a new call, even if its ids are known."""
        found = self._find(number, item_id, given) if number is None else self._by_number.get(number)
        if found is None or not found.may_be(item_id, given) or (found.complete and not found.has(item_id, given)):
            found = self._new(number, choice)
        self._known(found, item_id, given)
        return found

    def completed(self, number: int | None, item_id: str | None, given: SentCall, choice: GrowingChoice) -> Call:
        """The call that an item completes."""
        found = self._find(number, item_id, given)
        if found is None:
            found = self._new(number, choice)
        self._known(found, item_id, given)
        return found

    def _find(self, number: int | None, item_id: str | None, given: SentCall) -> Call | None:
        known = [
            None if item_id is None else self._by_id.get(item_id),
            None if number is None else self._by_number.get(number),
            None if given.id is None else self._by_id.get(given.id),
        ]
        if number is None and self._last is not None and not self._last.complete:
            known.append(self._last)
        return next((call for call in known if call is not None and call.may_be(item_id, given)), None)

    def compare(self, items: Iterable[tuple[int, str | None, SentCall]], choice: GrowingChoice) -> Iterator[Call]:
        """The calls of the complete response: first by place and id, then in their order; the others are new."""
        found = []
        taken: set[int] = set()
        given = list(items)
        for each in given:
            call = self._find(*each)
            if call is not None and id(call) in taken:
                call = None
            if call is not None:
                taken.add(id(call))
            found.append(call)
        left = deque(call for _, call in sorted(self._by_number.items()) if id(call) not in taken)
        for (number, item_id, sent), known in zip(given, found, strict=True):
            call = known
            if call is None and left and left[0].may_be(item_id, sent):
                call = left.popleft()
            yield self._new(number, choice) if call is None else call

    def _new(self, number: int | None, choice: GrowingChoice) -> Call:
        """A new call with this number, or with the next one if another call has it."""
        if number is None or number in self._by_number:
            number = self._next
        self._next = max(self._next, number + 1)
        call = self._last = Call()
        self._by_number[number] = choice.tool_calls[number] = call
        return call

    def _known(self, call: Call, item_id: str | None, given: SentCall | None) -> None:
        if given is not None:
            call.describe(item_id, given)
        for each in (item_id, given.id if given else None):
            if each is not None:
                self._by_id.setdefault(each, call)

    def fill_items(self) -> None:
        """Put the arguments that arrived into calls that were cut before the complete call arrived."""
        for call in self._by_number.values():
            if call.item is not None and not call.complete and call.arguments.tell():
                name = "code" if call.type == "code_interpreter_call" else "arguments"
                call.item = {**call.item, name: joined(call.arguments.getvalue())}

    def at(self, event: Mapping[str, Any]) -> Call | None:
        """The call, or the result of a call, at the place of an event."""
        number = to_index(event.get("output_index"))
        return None if number is None else self._by_number.get(number)


def place_of(field: str, event: Mapping[str, Any]) -> Place:
    """The place of a text that an event continues or repeats."""
    index = to_index(event.get(FIELDS[field][1])) or 0
    return Place(field, to_index(event.get("output_index")), identifier(event.get("item_id")), index)


def _key(place: Place) -> tuple[str, int | str | None, int]:
    return place.field, place.id if place.item is None else place.item, place.at


def _without(others: deque[tuple[int, int]], arrived: str, text: str) -> str:
    """The text without the start that has already arrived at other places.

    The stretches of that start are then used up.
    """
    while text and others:
        start, end = others[0]
        size = min(end - start, len(text))
        if not arrived.startswith(text[:size], start):
            break
        others.popleft()
        if start + size < end:
            others.appendleft((start + size, end))
        text = text[size:]
    return text
