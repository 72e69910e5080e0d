"""Finds the captured answer for a request. Pure.

A request can name a row by its request id, its run or both. Otherwise, it gets the answer to the same body, or else to
the same last prompt and model. If several answers match, a fixed order decides which one is best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deltatap.prompts import request_hash_of
from deltatap.replay.options import PREFIX, without_selection
from deltatap.replay.recordings import prompt_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deltatap.replay.options import Options
    from deltatap.replay.recordings import Recording

_SHOWN = 20


class NotFoundError(Exception):
    """No captured answer matches a request."""


class AmbiguousError(Exception):
    """Several captured answers match a request.

    Attributes:
        choices: the answers.
    """

    def __init__(self, message: str, choices: Sequence[Recording]) -> None:
        super().__init__(message)
        self.choices = choices


class Library:
    """The captured answers."""

    def __init__(self, recordings: Iterable[Recording]) -> None:
        """Index the answers.

        Args:
            recordings: oldest first.
        """
        self.recordings = list(recordings)
        self._by_id: dict[str, list[Recording]] = {}
        self._by_hash: dict[str, list[Recording]] = {}
        self._by_prompt: dict[str, list[Recording]] = {}
        for each in self.recordings:
            self._by_id.setdefault(each.request_id, []).append(each)
            self._by_hash.setdefault(each.request_hash, []).append(each)
            if each.prompt:
                self._by_prompt.setdefault(each.prompt, []).append(each)

    def models(self) -> list[str]:
        """The captured models."""
        return sorted({each.model for each in self.recordings if each.model})

    def find(self, body: Mapping[str, Any], api: str, options: Options, *, streamed: bool) -> Recording:
        """The answer that a request asks for.

        Answers from the same API are best, then those captured in the same mode, then completed ones, then the newest.

        Args:
            body: of the request; empty if it has none.
            api: the API that is asked.
            options: of the request.
            streamed: whether the request asks for a stream.

        Raises:
            NotFoundError: no answer matches.
            AmbiguousError: several answers match, and the order does not decide which is best.
        """
        if options.run_id is not None and not any(each.run_id == options.run_id for each in self.recordings):
            raise NotFoundError(f"no answer of the run {options.run_id} can be replayed")
        found, by = self._candidates(body, api, options)
        if of_model := [each for each in found if each.model == body.get("model")]:
            found = of_model
        rank = max(_rank(each, api, streamed=streamed) for each in found)
        best = [each for each in found if _rank(each, api, streamed=streamed) == rank]
        several = len({each.request_id for each in best}) > 1 and len({each.request_hash for each in best}) > 1
        # A request id and a run name one request.
        if None in (options.request_id, options.run_id) and (several or len({each.model for each in best}) > 1):
            raise AmbiguousError(
                f"{len(best)} captured answers have {by}: {_to_add(options, best[-1])}", best[-_SHOWN:]
            )
        return best[-1]

    def _candidates(self, body: Mapping[str, Any], api: str, options: Options) -> tuple[list[Recording], str]:
        """The answers that match, and what they have in common."""
        run, id_ = options.run_id, options.request_id
        where = "" if run is None else f" in the run {run}"

        def of_run(found: Iterable[Recording]) -> list[Recording]:
            return [each for each in found if run in (None, each.run_id)]

        if id_ is not None:
            if found := of_run(self._by_id.get(id_, ())):
                return found, f"the request id {id_}"
            raise NotFoundError(f"no answer with the request id {id_} was captured{where}")
        if not body:
            raise NotFoundError("a request without a body needs the option request_id")
        asked = without_selection(body)
        if found := of_run(self._by_hash.get(_hash_of(asked), ())):
            return found, "this request body"
        prompt, model = prompt_of(asked, api), asked.get("model")
        if not (found := of_run(self._by_prompt.get(prompt, ()))):
            raise NotFoundError(
                f"no answer was captured for this request{where}: neither its request_hash nor its last prompt matches"
            )
        if model is None:
            return found, "this last prompt"
        if of_model := [each for each in found if each.model == model]:
            return of_model, "this last prompt and model"
        models = ", ".join(sorted({each.model or "(none)" for each in found})[:_SHOWN])
        raise NotFoundError(f"no answer of the model {model} was captured for this prompt{where}, only of {models}")


def _hash_of(body: Mapping[str, Any]) -> str:
    """The request_hash of a body; empty if it has no hash, because deltatap could not have sent it."""
    try:
        return request_hash_of(body)
    except (ValueError, RecursionError):  # NaN, half a surrogate pair, nested too deeply
        return ""


def _to_add(options: Options, newest: Recording) -> str:
    """What a request must add to its options to get one of several answers, with the values of the newest answer."""
    values = {"request_id": newest.request_id, "run_id": newest.run_id}
    named = {"request_id": options.request_id, "run_id": options.run_id}
    missing = [name for name, value in named.items() if value is None]
    headers = " and ".join(PREFIX + name.replace("_", "-") for name in missing)
    newest_is = " and ".join(f"{name}={quote(values[name])}" for name in missing)
    return f"add {' and '.join(missing)} (newest: {newest_is}) as query parameters, or as headers ({headers})"


def _rank(found: Recording, api: str, *, streamed: bool) -> tuple[bool, bool, bool]:
    return found.api == api, found.streamed == streamed, found.completed
