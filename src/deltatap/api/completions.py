"""Legacy completions: `POST /completions`. Pure. The prompt is one text, and output is in `choices[].text`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltatap.api.choices import ChoicesAccumulator, ChoicesApi, ChoicesFrames
from deltatap.api.input_tokens import InputTokens
from deltatap.api.prompt import BadPromptError, prompt_text
from deltatap.api.values import count
from deltatap.tokens import count_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.api.frames import Answer, Piece
    from deltatap.api.growing import GrowingChoice


class CompletionsAccumulator(ChoicesAccumulator):
    """Receives legacy completions."""

    __slots__ = ()

    def _part(self, choice: GrowingChoice, given: dict[str, Any]) -> object:  # noqa: ARG002 - same signature for all
        """The choice itself. Some servers answer with chat completions."""
        return given if "text" in given else given.get("delta") or given.get("message")

    FIELDS = {"text": ChoicesAccumulator.content, "content": ChoicesAccumulator.content}  # noqa: RUF012 - ClassVar in the base


@dataclass(slots=True)
class CompletionsFrames(ChoicesFrames):
    """Writes `text_completion`, streamed and whole."""

    prefix = "cmpl"
    kind = "text_completion"
    whole_kind = "text_completion"

    def _output(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"text": delta.get("content", "")}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {piece.kind: piece.text}

    def _logprobs(self, texts: Sequence[str]) -> dict[str, Any] | None:
        text = "".join(texts)
        if not text or not self.facts.logprobs:
            return None
        return {"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [{text: -0.25}], "text_offset": [0]}

    def _whole_output(self, answer: Answer) -> dict[str, Any]:
        return {"text": answer.text()}


class Completions(ChoicesApi):
    """Legacy completions."""

    name = "completions"
    operation = "text_completion"
    title = "legacy completions"
    path = "/completions"
    prompt_field = "prompt"
    max_output_names = ("max_tokens",)
    says = frozenset(("content",))
    accumulator = CompletionsAccumulator
    frames = CompletionsFrames

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The prompt as one text."""
        for name in ("messages", "system"):
            if row.get(name):
                raise BadPromptError(f"{name}: endpoint.api is completions, which accepts only text in prompt")
        return {"prompt": prompt_text(row)}

    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:  # noqa: ARG002
        """The tokens of the prompt. OpenAI has published no rule for a prompt that is not one text, or for `suffix`."""
        prompt = body.get("prompt")
        known = isinstance(prompt, str) and not body.get("suffix")
        return InputTokens(sum(count_text(text, encoding) for text in _texts(prompt)), not known)

    def generated(self, body: Mapping[str, Any]) -> int:
        """All `best_of` choices, although the response has only `n` of them."""
        return max(self.choices(body), count(body.get("best_of")) or 1)

    def echo(self, body: Mapping[str, Any]) -> str | None:
        """The prompt, if `echo` is set."""
        prompt = body.get("prompt")
        return prompt if body.get("echo") and isinstance(prompt, str) else None


def _texts(prompt: object) -> list[str]:
    if isinstance(prompt, list):
        return [text if isinstance(text, str) else json.dumps(text) for text in prompt]
    return [prompt] if isinstance(prompt, str) else []


API = Completions()
