"""The parts that chat completions and legacy completions share: chunks with a list of choices. Pure.

This module knows the fields that OpenAI and compatible servers put into a chunk, how they report usage, and how the
simulator and the replay write a chunk. `chat.py` and `completions.py` know which field of a choice holds the output.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from deltatap.api.accumulate import Accumulator
from deltatap.api.base import Api
from deltatap.api.captured import error_in
from deltatap.api.frames import DONE, MODERATION, SAFE, STREAM_ERROR, Answer, Frame, Piece, event, openai_error
from deltatap.api.framing import Frames
from deltatap.api.values import count, to_index, to_json
from deltatap.model import CONTENT, EMPTY, REASONING, REFUSAL, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from deltatap.api.captured import Captured, Event
    from deltatap.api.growing import GrowingChoice
    from deltatap.model import StreamError

# Azure's filter results and Databricks' guardrails, as they appear in a chunk.
_FILTERS = frozenset(("prompt_filter_results", "input_guardrail", "output_guardrail"))
_CHOICE_FILTERS = ("content_filter_results", "content_filter_offsets")
# The sources that Perplexity and xAI search, as they appear in a chunk. Perplexity repeats them in every chunk.
_SOURCES = ("citations", "search_results")
# Fields of a chunk and of a choice that most chunks do not have.
RARE = _FILTERS.union(_SOURCES, ("moderation", "x_groq", "base_resp"))
_RARE_IN_CHOICE = frozenset((*_CHOICE_FILTERS, "error", "usage"))
# Fields of a part of content.
_PART = frozenset(("type", "text", "refusal", "thinking", "summary", "annotations"))
_PROMPT_FILTERS = [{"prompt_index": 0, "content_filter_results": SAFE}]


def openai_usage(given: object) -> Usage | None:
    """Parse usage as chat completions or the Responses API reports it. None if it is not an object."""
    if type(given) is not dict:
        return None
    inputs = _details(given, "prompt_tokens_details", "input_tokens_details")
    outputs = _details(given, "completion_tokens_details", "output_tokens_details")
    input_tokens = _largest(given.get("prompt_tokens"), given.get("input_tokens"))
    output_tokens = _largest(given.get("completion_tokens"), given.get("output_tokens"))
    total_tokens = count(given.get("total_tokens"))
    reasoning = _largest(outputs.get("reasoning_tokens"), given.get("reasoning_tokens"))
    # Moonshot and DeepSeek report cached tokens outside the details, and gateways to Anthropic under its names.
    cached = _largest(
        inputs.get("cached_tokens"),
        *(given.get(name) for name in ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")),
    )
    written = _largest(inputs.get("cache_write_tokens"), given.get("cache_creation_input_tokens"))
    audio = count(inputs.get("audio_tokens"))
    apart = total_tokens is None and (reasoning or 0) > (output_tokens or 0)
    if total_tokens is not None and input_tokens is not None:
        surplus = total_tokens - input_tokens - (output_tokens or 0)
        # Perplexity counts reasoning, like citations, neither in the output nor in the total.
        apart = surplus == 0 and "citation_tokens" in given
        # Portkey counts Anthropic's cache only in the total, and Mistral counts audio only there.
        caches, spoken = (cached or 0) + (written or 0), audio or 0
        if surplus > 0 and surplus in (caches, spoken, caches + spoken):
            input_tokens, surplus = input_tokens + surplus, 0
        if surplus >= 0:
            # xAI counts reasoning tokens only in the total, and all of it is billed.
            output_tokens = total_tokens - input_tokens
    if apart and reasoning is not None and output_tokens is not None:
        output_tokens += reasoning
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total_tokens,
        cached_input_tokens=cached,
        reasoning_tokens=reasoning,
        audio_input_tokens=audio,
        audio_output_tokens=count(outputs.get("audio_tokens")),
        cache_write_tokens=written,
        accepted_prediction_tokens=count(outputs.get("accepted_prediction_tokens")),
        rejected_prediction_tokens=count(outputs.get("rejected_prediction_tokens")),
        image_input_tokens=count(inputs.get("image_tokens")),
        image_output_tokens=count(outputs.get("image_tokens")),
        citation_tokens=count(given.get("citation_tokens")),
        web_searches=count(given.get("num_search_queries")),
    )


def _largest(*values: object) -> int | None:
    """The largest count. Servers that send two names for one count leave one of them out, null or zero."""
    return max((tokens for value in values if (tokens := count(value)) is not None), default=None)


def _details(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    found = next((usage[name] for name in names if usage.get(name)), None)
    return found if type(found) is dict else {}


def _numbered(choices: list[Any], *, alike: bool) -> list[Any]:
    """The choices of an event. If some have no number, or `alike` if some have the same, their order numbers them."""
    given = [to_index(choice.get("index")) if type(choice) is dict else None for choice in choices]
    if None not in given and (not alike or len(set(given)) == len(given)):
        return choices
    return [{**choice, "index": at} if type(choice) is dict else choice for at, choice in enumerate(choices)]


class ChoicesAccumulator(Accumulator):
    """Receives chunks with choices. A whole response is one chunk with all output.

    Attributes:
        FIELDS: the method that takes each field of a choice's output.
    """

    __slots__ = ()
    FIELDS: ClassVar[Mapping[str, Callable[[Any, GrowingChoice, Any], None]]]

    @abstractmethod
    def _part(self, choice: GrowingChoice, given: dict[str, Any]) -> object:
        """The object of a choice that holds its output."""

    def _take(self, chunk: dict[str, Any], data: bytes, event: str) -> None:  # noqa: ARG002 - these events have no types
        choices = chunk.get("choices")
        if type(choices) is list:
            if self._asked > 1 and len(choices) > 1:
                choices = _numbered(choices, alike=self._whole)
            for given in choices:
                if type(given) is not dict:
                    self._fail("has a choice that is not an object", data)
                    return
                self._take_choice(given, data)
        elif choices is not None:
            self._fail("has choices that are not a list", data)
            return
        if chunk.get("usage"):
            self._report(chunk["usage"])
        self._identify(chunk)
        if not RARE.isdisjoint(chunk):
            self._take_rare(chunk, data)

    def _report(self, usage: object) -> None:
        if (found := openai_usage(usage)) is not None:
            self._used(found)

    def _take_rare(self, chunk: dict[str, Any], data: bytes) -> None:
        """Take the fields that most chunks do not have."""
        self._filters += [{name: chunk[name]} for name in chunk if name in _FILTERS and chunk[name]]
        self._annotations |= {name: chunk[name] for name in _SOURCES if chunk.get(name)}
        if chunk.get("moderation"):
            self._moderation = chunk["moderation"]
        if chunk.get("base_resp") and chunk.get(self.PLAIN):  # without choices, the chunk has been checked
            self._check(chunk, data)
        groq = chunk.get("x_groq")
        if type(groq) is dict:
            if groq.get("error"):
                self._refuse(groq, data)
            if groq.get("usage"):
                self._report(groq["usage"])

    def _take_whole(self, answer: dict[str, Any], data: bytes) -> None:
        self._take(answer, data, "")

    def _take_choice(self, given: dict[str, Any], data: bytes) -> None:
        choice = self._choice(given.get("index"))
        kinds = self._chunks.kind
        before = len(kinds)
        part = self._part(choice, given)
        if type(part) is dict:
            fields = self.FIELDS
            for name, value in part.items():
                if value and name in fields:
                    fields[name](self, choice, value)
        if given.get("finish_reason"):
            self._finish(choice, given["finish_reason"])
            native = given.get("native_finish_reason")
            choice.native = native if type(native) is str else None
        if given.get("logprobs"):
            self._probed(choice, given["logprobs"])
        if not _RARE_IN_CHOICE.isdisjoint(given):
            self._take_rare_of_choice(choice, given, data)
        if len(kinds) == before:
            self._mark(EMPTY, "", choice)

    def _take_rare_of_choice(self, choice: GrowingChoice, given: dict[str, Any], data: bytes) -> None:
        """Take the fields that most choices do not have."""
        if given.get("error"):
            self._refuse({"error": given["error"]}, data)
        results = {name: given[name] for name in _CHOICE_FILTERS if given.get(name)}
        if results:
            self._filters.append({"index": choice.index, **results})
        if given.get("usage"):
            self._report(given["usage"])

    def content(self, choice: GrowingChoice, value: object) -> None:
        """Take text, a list of parts, or an object that is not a part. Images are only in the raw events."""
        if type(value) is str:
            self._output(choice, choice.text, value, CONTENT)
        elif type(value) is dict and _PART.isdisjoint(value):
            # Some servers decode the JSON that a model has written.
            self._output(choice, choice.text, to_json(value), CONTENT)
        else:
            for part in value if type(value) is list else [value]:
                self._content_part(choice, part)

    def _content_part(self, choice: GrowingChoice, part: object) -> None:
        """Take a part: text, Mistral's thinking, or Databricks' reasoning with its summary."""
        if type(part) is str:
            self._output(choice, choice.text, part, CONTENT)
        elif type(part) is dict:
            text = part.get("text")
            text = text.get("value") if type(text) is dict else text
            if part.get("type") in ("reasoning", "thinking"):
                self._output(choice, choice.reasoning, text, REASONING)
            else:
                self._output(choice, choice.text, text, CONTENT)
            self._output(choice, choice.refusal, part.get("refusal"), REFUSAL)
            for name in ("thinking", "summary"):
                found = part.get(name)
                for inner in found if type(found) is list else [found]:
                    thought = inner.get("text") if type(inner) is dict else inner
                    self._output(choice, choice.reasoning, thought, REASONING)
            if part.get("annotations"):
                self.annotate(choice, part["annotations"])


@dataclass(slots=True)
class ChoicesFrames(Frames):
    """Writes chunks with choices. A subclass knows which field of a choice holds the output.

    Attributes:
        prefix: the start of the response id.
        kind, whole_kind: the value of `object` in a chunk and in a whole response.
    """

    typed = False
    prefix: ClassVar[str]
    kind: ClassVar[str]
    whole_kind: ClassVar[str]
    _around: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    @abstractmethod
    def _output(self, delta: dict[str, Any]) -> dict[str, Any]:
        """The part of a streamed choice that holds its output."""

    @abstractmethod
    def _whole_output(self, answer: Answer) -> dict[str, Any]:
        """The part of a whole choice that holds its output."""

    @abstractmethod
    def _logprobs(self, texts: Sequence[str]) -> dict[str, Any] | None:
        """The log probabilities of tokens; None if they are not requested."""

    @abstractmethod
    def _delta(self, piece: Piece) -> dict[str, Any]:
        """A piece as the `delta` of a chat completion."""

    def begin(self) -> list[bytes]:
        """Azure's filter results for the prompt, in a chunk without choices."""
        if "filters" not in self.facts.traits:
            return []
        return [self._frame({"choices": [], "prompt_filter_results": _PROMPT_FILTERS})]

    def piece(self, choice: int, piece: Piece, finish: str | None = None) -> list[bytes]:
        """A delta. Plain pieces of content differ only in their text, so the rest is encoded once."""
        facts = self.facts
        if piece.kind == "content" and finish is None and not facts.logprobs and not facts.traits:
            if choice not in self._around:
                before, after = self._choice(choice, {"content": "\0"}).split(rb'"\u0000"')
                self._around[choice] = (before, after)
            before, after = self._around[choice]
            return [before + json.dumps(piece.text, ensure_ascii=False).encode() + after]
        return [self._choice(choice, self._delta(piece), finish, piece.text)]

    def empty(self) -> list[bytes]:
        """A chunk without choices."""
        return [self._frame({"choices": []})]

    def finish(self, choice: int, reason: str) -> list[bytes]:
        """The finish_reason, alone or with usage; then Azure's late filter results."""
        traits = self.facts.traits
        made = []
        if "finish_with_content" not in traits:
            more = {"usage": self.facts.usage} if "usage_with_finish" in traits else {}
            made.append(self._choice(choice, {}, reason, more=more))
        if "late_filters" in traits:
            late = {
                "index": choice,
                "finish_reason": None,
                "content_filter_results": SAFE,
                "content_filter_offsets": {"check_offset": 0, "start_offset": 0, "end_offset": 99},
            }
            made.append(self._frame({"choices": [late]}))
        return made

    def end(self, reason: str | None) -> list[bytes]:  # noqa: ARG002 - each choice has its own finish_reason
        """The moderation, then the usage, each in a chunk without choices."""
        facts = self.facts
        made = [self._frame({"choices": [], "moderation": MODERATION})] if "moderation" in facts.traits else []
        if facts.with_usage and "usage_with_finish" not in facts.traits:
            made.append(self._frame({"choices": [], "usage": facts.usage}))
        return made

    def error(self, *, named: bool) -> list[bytes]:
        """An error object as data."""
        return [event(openai_error("server_error", "server_error", STREAM_ERROR), "error" if named else "")]

    def refuse(self, error: StreamError) -> list[bytes]:
        """An error object as data."""
        return [event(openai_error(error.type, error.code, error.message))]

    def replayed(self, captured: Captured) -> Iterator[Frame]:
        """One chunk per captured event, then `[DONE]` if the answer is complete."""
        begun: set[int] = set()
        ms = 0.0
        for its in captured.events:
            ms = its.ms
            made = self._replayed_event(captured, its, begun)
            outputs = sum(bool(part.pieces) for part in its.parts)
            for number, data in enumerate(made, 1):
                yield Frame(ms, data, outputs if number == len(made) else 0)
        if captured.completed:
            yield Frame(ms, DONE)

    def _replayed_event(self, captured: Captured, its: Event, begun: set[int]) -> list[bytes]:
        """The chunks of one event. A chunk that another API has sent has the role before its first output."""
        choices: dict[int, tuple[dict[str, Any], str | None]] = {}
        more: dict[str, Any] = {}
        refused: list[bytes] = []
        for kind, index, text, pieces in its.parts:
            if kind in ("error", "failed"):
                if kind == "error" and captured.same:
                    return [captured.error_frame(text)]
                refused = self.refuse(error_in(text))
                continue
            if kind == "usage":
                more |= self._replayed_usage(captured, text)
                continue
            if index is None or (kind == "empty" and not captured.same):
                continue
            delta, finish = choices.get(index, ({}, None))
            if index not in begun and (kind == "role" or (pieces and not captured.same)):
                begun.add(index)
                for name, value in self._start().items():
                    delta.setdefault(name, value)
            for piece in pieces:
                self._add(delta, piece)
            choices[index] = delta, text if kind == "finish" else finish
        given = [
            {"index": index, **self._output(delta), "logprobs": None, "finish_reason": finish}
            for index, (delta, finish) in choices.items()
            if delta or finish or captured.same
        ]
        if given and more and not captured.same:
            return [self._bare(choices=given), self._bare(choices=[], **more), *refused]
        made = [self._bare(choices=given, **more)] if given or more or (captured.same and not refused) else []
        return [*made, *refused]

    def _replayed_usage(self, captured: Captured, tokens: str) -> dict[str, Any]:
        """The usage, or the tokens so far. An answer of another API that broke off has only a part of it."""
        if not captured.same and "completion_tokens" not in self.facts.usage:
            return {}
        return {"usage": {**self.facts.usage, "completion_tokens": int(tokens)} if tokens else self.facts.usage}

    def _bare(self, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON
        facts = self.facts
        made = {"id": self._id(), "object": self.kind, "created": facts.created, "model": facts.model}
        return event({**made, **facts.named(), **fields})

    def _start(self) -> dict[str, Any]:
        """The start of the delta that begins a choice."""
        return {}

    def _add(self, delta: dict[str, Any], piece: Piece) -> None:
        """Add a piece to a delta."""
        delta |= self._delta(piece)

    def _choice(
        self, index: int, delta: dict[str, Any], finish: str | None = None, text: str = "", more: Mapping[str, Any] = {}
    ) -> bytes:
        logprobs = self._logprobs([text]) if text else None
        choice = {"index": index, **self._output(delta), "logprobs": logprobs, "finish_reason": finish}
        if "filters" in self.facts.traits:
            choice["content_filter_results"] = SAFE
        return self._frame({"choices": [choice], **more})

    def _frame(self, more: dict[str, Any]) -> bytes:
        facts = self.facts
        chunk: dict[str, Any] = {
            "id": self._id(),
            "object": self.kind,
            "created": facts.created + 0.5 if "float_created" in facts.traits else facts.created,
            "model": facts.model,
            **facts.named(),
            **more,
        }
        if "no_id" in facts.traits:
            del chunk["id"]
        if facts.with_usage:
            chunk.setdefault("usage", facts.usage if "usage_each" in facts.traits else None)
        return event(chunk)

    def _id(self) -> str:
        facts = self.facts
        return f"{self.prefix}-{facts.id}" if facts.response_id is None else facts.response_id

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A whole response with all choices."""
        facts = self.facts
        made: dict[str, Any] = {
            "id": self._id(),
            "object": self.whole_kind,
            "created": facts.created,
            "model": facts.model,
            "choices": [self._whole_choice(index, answer) for index, answer in enumerate(answers)],
            "usage": facts.usage or None,
            **facts.named(),
        }
        if "filters" in facts.traits:
            made["prompt_filter_results"] = _PROMPT_FILTERS
        if "moderation" in facts.traits:
            made["moderation"] = MODERATION
        if "no_id" in facts.traits:
            del made["id"]
        return made

    def _whole_choice(self, index: int, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": index if answer.index is None else answer.index,
            **self._whole_output(answer),
            "logprobs": self._logprobs([piece.text for piece in answer.pieces]),
            "finish_reason": answer.finish_reason or None,
        }
        if {"filters", "late_filters"} & set(self.facts.traits):
            choice["content_filter_results"] = SAFE
        return choice


class ChoicesApi(Api):
    """An API whose responses have choices."""

    takes_n = True
    takes_stream_options = True
    per_deployment = True
    frames: ClassVar[type[ChoicesFrames]]
