"""Responses: `POST /responses`. Pure.

Events are typed. The prompt is text or a list of items, and the system prompt is in `instructions`. There is one
choice, and a stream always reports usage. `responses_frames.py` writes the events.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api import prompt
from deltatap.api.accumulate import Accumulator
from deltatap.api.base import Api, json_schema
from deltatap.api.choices import openai_usage
from deltatap.api.codes import UNFINISHED
from deltatap.api.growing import Text
from deltatap.api.input_tokens import InputTokens, count_messages, count_tools, without_rule
from deltatap.api.items import arguments_in, identifier, is_call, part_texts, sent_call, texts
from deltatap.api.output import ITEM, PART, TEXT, Calls, Place, Texts, place_of
from deltatap.api.responses_frames import ResponsesFrames
from deltatap.api.values import decode, to_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltatap.api.frames import ParsedRequest
    from deltatap.api.growing import GrowingChoice
    from deltatap.api.items import SentCall
    from deltatap.api.output import Call, Stretch
    from deltatap.model import Received

# The events that repeat a complete text: its field, and its name in the event.
_REPEATS = {
    "response.output_text.done": ("content", "text"),
    "response.audio.transcript.done": ("content", "transcript"),
    "response.refusal.done": ("refusal", "refusal"),
    "response.reasoning_summary_text.done": ("summary", "text"),
    "response.reasoning_text.done": ("reasoning", "text"),
}
_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
# Statuses of an answer that failed.
_FAILED = ("failed", "cancelled", "canceled", "expired", "error")
# Codes that mean that the request is at fault. For a failed response, all other codes mean that the server is.
_INVALID = (
    "data_residency_mismatch",
    "empty_image_file",
    "image_file_not_found",
    "image_file_too_large",
    "image_parse_error",
    "image_too_large",
    "image_too_small",
    "invalid_base64_image",
    "invalid_image",
    "invalid_image_format",
    "invalid_image_mode",
    "invalid_image_url",
    "unsupported_image_media_type",
)


class ResponsesAccumulator(Accumulator):
    """Receives typed events. All output belongs to choice 0. A whole response is the object in `response.completed`.

    Deltas contain most output. Later events repeat it, and add only what no delta had. The content that an item
    or a part has when it starts is used last, because deltas may follow. The status of the response decides: an item
    that failed in a completed response does not make the response an error.
    """

    __slots__ = ("_calls", "_held", "_known", "_texts")
    PLAIN = "type"
    ANSWER = "output"
    STATUSES = Accumulator.STATUSES | dict.fromkeys(_INVALID, 400)  # type: ignore[operator]

    def __init__(self, choices: int = 1, *, keep_raw: bool = False) -> None:
        super().__init__(choices, keep_raw=keep_raw)
        self._texts = Texts()
        self._calls = Calls()
        self._held: list[dict[str, Any]] = []
        # After a break: the number of the last event before it, until a later one arrives.
        self._known: int | None = None

    def read_on(self) -> None:
        """Prepare for the rest of the answer. Events that are sent again are skipped."""
        super().read_on()
        self._known = self.sequence

    def add(self, data: bytes, ms: float, read: int, event: str = "") -> None:
        """Add one event, unless it arrived before a break."""
        if self._known is not None:
            number = _number(data)
            if number is not None and number <= self._known:
                return
            self._known = None
        super().add(data, ms, read, event)

    def add_whole(self, data: bytes) -> None:
        """Add a whole response. After a break, it completes the output of the stream, at an unknown time."""
        if not self._chunks:
            super().add_whole(data)
            return
        self._known = None
        self.add(b'{"type":"%b","response":%b}' % (_type_of(data).encode(), data), math.nan, self._read)

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:
        type_, number = chunk.get("type"), chunk.get("sequence_number")
        if type(number) is int:
            self.sequence = number
        if type(type_) is not str or not type_:
            type_ = event
        take = self.EVENTS.get(type_)
        if take is not None:
            take(self, chunk)
        elif type_ in _REPEATS:
            self._text_done(chunk, *_REPEATS[type_])
        elif type_ in _ENDS:
            self._end(chunk.get("response"), type_, data)
            self._report(chunk.get("usage"))
        elif type_ == "error":
            self._refuse(chunk, data)

    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        if self._error is not None and answer.keys().isdisjoint(("output", "output_text", "status")):
            self._ended(answer)  # then there is no response, but perhaps usage
        else:
            self._end(answer, _ends_with(answer), data)

    def _report(self, usage: object) -> None:
        if (found := openai_usage(usage)) is not None:
            self._used(found)

    def _notice(self, event: str) -> bool:
        return super()._notice(event) and event not in _REPEATS and event not in _ENDS

    def finish(self) -> Received:
        """The data received so far."""
        self._add_held()
        self._calls.fill_items()
        return super().finish()

    def _start(self, event: dict[str, Any]) -> None:
        if type(event.get("response")) is dict:
            self._identify(event["response"])

    # Texts

    def _content(self, event: dict[str, Any]) -> None:
        self._delta(event, "content", "content_index")
        if event.get("logprobs"):
            self._probed(self._choice(), {"content": event["logprobs"]})

    def _refusal(self, event: dict[str, Any]) -> None:
        self._delta(event, "refusal", "content_index")

    def _summary(self, event: dict[str, Any]) -> None:
        self._delta(event, "summary", "summary_index")

    def _reasoning(self, event: dict[str, Any]) -> None:
        self._delta(event, "reasoning", "content_index")

    def _delta(self, event: dict[str, Any], field_: str, index_name: str) -> None:
        item, index = event.get("output_index"), event.get(index_name)
        stretch = None
        if type(item) is int and type(index) is int:
            stretch = self._texts.stretches.get((field_, item, index))
        if stretch is None:
            stretch = self._texts.of_delta(field_, event, self._choice())
        self._add(stretch, event.get("delta"))

    def _add(self, stretch: Stretch, text: object) -> None:
        self._output(stretch.choice, stretch.into, text, stretch.kind)
        stretch.end = stretch.into.tell()

    def _text_done(self, event: dict[str, Any], name: str, of: str) -> None:
        if text := identifier(event.get(of)):
            self._repeated(place_of(name, event), text, event, TEXT)

    def _repeated(self, place: Place, text: str, part: dict[str, Any], size: int) -> None:
        """A complete text, which has usually arrived."""
        choice = self._choice()
        self._annotated(part)
        self._fill(*self._texts.repeated(place, text, size, choice), part)

    def _annotated(self, part: dict[str, Any]) -> None:
        if part.get("annotations"):
            self.annotate(self._choice(), part["annotations"])

    def _annotation(self, event: dict[str, Any]) -> None:
        if event.get("annotation"):
            self.annotate(self._choice(), event["annotation"])

    def _fill(self, stretch: Stretch, missing: str, part: dict[str, Any]) -> None:
        """Add the end of a text, and the log probabilities if all of the text is missing."""
        if not missing:
            return
        if stretch.start == stretch.end and part.get("logprobs"):
            self._probed(stretch.choice, {"content": part["logprobs"]})
        self._add(stretch, missing)

    def _part_added(self, event: dict[str, Any]) -> None:
        if _texts_of(event):
            self._held.append(event)

    def _part_done(self, event: dict[str, Any]) -> None:
        for place, text, part in _texts_of(event):
            self._repeated(place, text, part, PART)

    # Items

    def _item_added(self, event: dict[str, Any]) -> None:
        item = event.get("item")
        if type(item) is not dict:
            return
        number, id_ = to_index(event.get("output_index")), identifier(item.get("id"))
        choice = self._choice()
        self._texts.number(id_, number)
        if is_call(item):
            given = sent_call(item)
            call = self._calls.opened(number, id_, given, choice)
            if not given.as_json and not call.name.tell():
                self._called(choice, call, given.name, None)
            hold = bool(given.arguments)
        else:
            if item.get("type") == "message":
                self.role(choice, item.get("role"))
            hold = any(texts(item))
        if hold:
            self._held.append(event)

    def _item_done(self, event: dict[str, Any], *, held: bool = False) -> None:
        item = event.get("item")
        if type(item) is not dict:
            return
        number, id_ = to_index(event.get("output_index")), identifier(item.get("id"))
        if is_call(item):
            given = sent_call(item)
            choice = self._choice()
            call = self._calls.completed(number, id_, given, choice)
            if not (held and given.as_json and call.arguments.tell()):
                self._complete(choice, call, given)
            return
        for text in texts(item):
            self._repeated(Place(text.field, number, id_, text.at), text.text, text.part, ITEM)

    def _complete(self, choice: GrowingChoice, call: Call, given: SentCall) -> None:
        """Take a complete call: the name and the arguments that have not arrived."""
        arrived = call.arguments.tell()
        if given.as_json:
            # The arguments are JSON of the item's fields, but the pieces that arrived are not wrapped in that JSON.
            if not arrived:
                self._called(choice, call, None, given.arguments)
            elif len(given.arguments) > arrived:
                call.arguments = Text()
                call.arguments.write(given.arguments)
        else:
            self._called(choice, call, None if call.name.tell() else given.name, call.missing(given.arguments))
        call.complete = True

    def _arguments(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        self._called(choice, self._calls.of_piece(event, choice), None, event.get("delta"))

    def _arguments_done(self, event: dict[str, Any]) -> None:
        choice = self._choice()
        call = self._calls.of_piece(event, choice)
        name = None if call.name.tell() else event.get("name")
        self._called(choice, call, name, call.missing(arguments_in(event)))

    def _command_done(self, event: dict[str, Any]) -> None:
        """A command of a shell. Until the complete call arrives, its arguments are the commands, one per line."""
        choice = self._choice()
        call, command = self._calls.of_piece(event, choice), event.get("command")
        if type(command) is str and not call.complete:
            if call.arguments.tell() == call.line:
                self._called(choice, call, None, command)
            call.arguments.write("\n")
            call.line = call.arguments.tell()

    def _command_output(self, event: dict[str, Any]) -> None:
        """The output of a command. The complete result usually follows."""
        call = self._calls.at(event)
        if call is not None and call.item is not None and not call.complete:
            call.item = {**call.item, "output": event.get("output")}

    # The end

    def _end(self, response: object, type_: str, data: bytes) -> None:
        found = response if type(response) is dict else {}
        if found.get("output"):
            self._complete_output(self._choice(), found["output"])
        text = identifier(found.get("output_text"))
        if text is not None and not self._choice().text.tell():
            self._repeated(Place("content", None, None, 0), text, {}, ITEM)
        self._add_held()
        status, error = found.get("status"), found.get("error")
        if type_ not in ("response.completed", "response.incomplete") or status in _FAILED or error:
            self._ended(found)
            status = status if status in _FAILED + UNFINISHED else type_.removeprefix("response.")
            self._refuse({"error": error or {"code": status, "message": f"the response has the status {status}"}}, data)
            return
        details = found.get("incomplete_details")
        reason = identifier(details.get("reason")) if type(details) is dict else None
        if found or self._output_came:
            ended = "incomplete" if status == "incomplete" else type_.removeprefix("response.")
            self._finish(self._choice(), reason or ended)
        self._ended(found)

    def _ended(self, response: dict[str, Any]) -> None:
        self._identify(response)
        self._report(response.get("usage"))
        if response.get("moderation"):
            self._moderation = response["moderation"]
        if response.get("content_filters"):
            self._filters.append({"content_filters": response["content_filters"]})
        self.done = True

    def _complete_output(self, choice: GrowingChoice, output: object) -> None:
        """Add what only the complete response has, in its order. In a whole response, that is all of its output."""
        given = [(at, item) for at, item in enumerate(output) if type(item) is dict] if type(output) is list else []
        calls = [(number, identifier(item.get("id")), sent_call(item)) for number, item in given if is_call(item)]
        spoken = [
            (Place(text.field, number, identifier(item.get("id")), text.at), text)
            for number, item in given
            if not is_call(item)
            for text in texts(item)
        ]
        missing = zip(spoken, self._texts.compare([(place, text.text) for place, text in spoken], choice), strict=True)
        known = zip(calls, self._calls.compare(calls, choice), strict=True)
        first = not self._output_came
        for _, item in given:
            if first and item.get("type") == "message":
                self.role(choice, item.get("role"))
            if is_call(item):
                (_, id_, sent), call = next(known)
                call.describe(id_, sent)
                self._complete(choice, call, sent)
                continue
            for _ in texts(item):
                (place, text), (stretch, lacking) = next(missing)
                self._annotated(text.part)
                if lacking:
                    into = self._texts.open(place, choice) if stretch is None else stretch
                    self._fill(into, lacking, text.part)

    def _add_held(self) -> None:
        """Add the content that items and parts had when they started, if it has not arrived since."""
        held, self._held = self._held, []
        for added in held:
            if "item" in added:
                self._item_done(added, held=True)
            else:
                self._part_done(added)

    # All other events mark where something starts or continues.
    EVENTS: ClassVar[Mapping[str, Callable[[Any, dict[str, Any]], None]]] = {
        "response.created": _start,
        "response.queued": _start,
        "response.in_progress": _start,
        "response.output_item.added": _item_added,
        "response.output_item.done": _item_done,
        "response.content_part.added": _part_added,
        "response.content_part.done": _part_done,
        "response.reasoning_summary_part.added": _part_added,
        "response.reasoning_summary_part.done": _part_done,
        "response.output_text.delta": _content,
        "response.audio.transcript.delta": _content,
        "response.output_text.annotation.added": _annotation,
        "response.refusal.delta": _refusal,
        "response.reasoning_summary_text.delta": _summary,
        "response.reasoning_text.delta": _reasoning,
        "response.function_call_arguments.delta": _arguments,
        "response.function_call_arguments.done": _arguments_done,
        "response.custom_tool_call_input.delta": _arguments,
        "response.custom_tool_call_input.done": _arguments_done,
        "response.mcp_call_arguments.delta": _arguments,
        "response.mcp_call_arguments.done": _arguments_done,
        "response.code_interpreter_call_code.delta": _arguments,
        "response.code_interpreter_call_code.done": _arguments_done,
        "response.apply_patch_call_operation_diff.delta": _arguments,
        "response.apply_patch_call_operation_diff.done": _arguments_done,
        "response.shell_call_command.delta": _arguments,
        "response.shell_call_command.done": _command_done,
        "response.shell_call_output_content.done": _command_output,
    }


def _ends_with(answer: Mapping[str, Any]) -> str:
    """The type of the event that would end the stream of a whole response."""
    status = answer.get("status")
    known = status in (*_FAILED, *UNFINISHED, "incomplete")
    return f"response.{status}" if known else "response.completed"


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        value = decode(data)
    except ValueError:
        return {}
    return value if type(value) is dict else {}


def _type_of(data: bytes) -> str:
    return _ends_with(_decoded(data))


def _number(data: bytes) -> int | None:
    number = _decoded(data).get("sequence_number")
    return number if type(number) is int else None


def _texts_of(event: dict[str, Any]) -> list[tuple[Place, str, dict[str, Any]]]:
    """The texts of the part in an event, with their places."""
    part = event.get("part")
    if type(part) is not dict:
        return []
    name = "summary" if "summary_index" in event else "reasoning" if part.get("type") == "reasoning_text" else "content"
    return [(place_of(text.field, event), text.text, part) for text in part_texts(part, 0, name)]


class Responses(Api):
    """Responses."""

    name = "responses"
    openai_type = "responses"
    title = "the Responses API"
    path = "/responses"
    prompt_field = "input"
    system = "instructions"
    max_output_names = ("max_output_tokens",)
    finish_reasons: ClassVar[Mapping[str, str]] = {"completed": "stop", "max_output_tokens": "length"}
    end_mark = b""
    accumulator = ResponsesAccumulator
    frames = ResponsesFrames
    resume: ClassVar[Mapping[str, Any]] = {"background": True, "store": True}

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The input as text or as items, and the system prompt as instructions."""
        system = row.get("system")
        given = prompt.prompt_text(row) if row.get("messages") is None else prompt.messages(row, allow_items=True)
        return {"input": given, "instructions": system} if system else {"input": given}

    def resume_problem(self, body: Mapping[str, Any], *, resume: bool) -> str | None:
        """Without ``capture.resume``, an answer in the background would be paid for again when its stream breaks."""
        if body.get("background") and not resume:
            return "background: use capture.resume: true instead, which sends it and resumes broken streams"
        if resume and body.get("store") is False:
            return "store: false cannot be combined with capture.resume, which reads answers that the provider stores"
        return None

    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
        """Counted by the rules of chat completions, so always approximate."""
        given = body.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        if body.get("instructions"):
            messages = [{"role": "system", "content": body["instructions"]}, *messages]
        counted = count_messages(messages, model, encoding) + count_tools(body.get("tools"), model, encoding)
        return counted + without_rule(body.get("text"), encoding) + InputTokens(0, approximate=True)

    def sent(self, call: Mapping[str, Any]) -> tuple[str, str]:
        """Name and arguments of a call that the server executed."""
        if not is_call(dict(call)):
            return super().sent(call)
        found = sent_call(dict(call))
        return found.name, found.arguments

    def parse_request(self, body: Mapping[str, Any]) -> ParsedRequest:
        """Like the base class, but reasoning, the output format and log probabilities have other names."""
        reasoning, text = body.get("reasoning"), body.get("text")
        effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
        return replace(
            super().parse_request(body),
            reasoning=effort not in (None, "none"),
            schema=json_schema(text.get("format")) if isinstance(text, dict) else None,
            logprobs="message.output_text.logprobs" in (body.get("include") or ()),
        )


API = Responses()
