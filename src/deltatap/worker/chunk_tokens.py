"""How many output tokens each chunk of a stream has. Pure.

There are three sources, best first:

- ``usage``: some servers send the number of output tokens so far with each chunk, for example vLLM with
  ``stream_options.continuous_usage_stats``. The tokens of a chunk are the increase since the previous chunk.
- ``logprobs``: log probabilities come with each chunk, one for each token.
- ``tiktoken``: the whole text is encoded, and each token belongs to the chunk that contains its last byte.

One source is used for the whole answer. The server's counts are used only if every event with output has one, and its
usage only if it grows with every such event. The count of an event belongs to the last output of its choice in that
event; other outputs of the event have 0. Chunks that are not output have 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deltatap.model import KINDS, OUTPUT_KINDS

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping, Sequence

    from deltatap.model import Received

    Array = np.ndarray[Any, Any]
    # Where tiktoken's tokens end, in bytes of UTF-8: by choice and kind, for each text.
    Texts = Mapping[tuple[int, int], Sequence[Array]]

IS_OUTPUT = np.array([kind in OUTPUT_KINDS for kind in KINDS])


def chunk_tokens(received: Received, texts: Texts, echoed: Mapping[tuple[int, int], int]) -> tuple[Array, str | None]:
    """The output tokens of each chunk, and their source; None if no output arrived in chunks.

    Args:
        received: the answer.
        texts: its output, as tiktoken encodes it.
        echoed: the bytes of the repeated prompt before the output, by choice and kind.
    """
    chunks = received.chunks
    tokens = np.zeros(len(chunks), np.int32)
    output = np.flatnonzero(IS_OUTPUT[np.frombuffer(chunks.kind, np.int8)]) if chunks else tokens
    if not len(output):
        return tokens, None
    if (found := _by_usage(received, output)) is not None:
        source = "usage"
    elif not echoed and (found := _by_logprobs(received, output)) is not None:
        source = "logprobs"  # log probabilities of an echoed prompt look like those of the output
    else:
        found, source = _by_text(received, output, texts, echoed), "tiktoken"
    tokens[output] = found
    return tokens, source


def _by_usage(received: Received, output: Array) -> Array | None:
    """The tokens of each output, from usage; None if an event has none, or if it does not grow."""
    if not received.counts.used:
        return None
    used_event = np.frombuffer(received.counts.used_event, np.intc)
    used = np.frombuffer(received.counts.used, np.int64)
    event = np.frombuffer(received.chunks.event, np.intc)[output]
    choice = np.frombuffer(received.chunks.choice, np.intc)[output]
    place = np.flatnonzero(np.append(event[1:] != event[:-1], [True]))  # the last output of each event
    at = np.searchsorted(used_event, event[place], "right") - 1
    if (used_event[at] != event[place]).any():
        return None
    counts, starts = used[at], np.zeros(1, np.intp)
    if (choice != choice[0]).any():
        mixed = (event[1:] == event[:-1]) & (choice[1:] != choice[:-1])
        if mixed.any() or used_event[-1] == event[-1]:
            return None  # without usage of the whole answer, the counts before it are ambiguous
        order = np.argsort(choice[place], kind="stable")
        firsts = np.flatnonzero(np.diff(choice[place][order], prepend=-1))
        ends = np.append(firsts[1:], len(order)) - 1
        if used[-1] >= counts[order[ends]].sum():  # each choice has its own count, as with vLLM
            counts, place, starts = counts[order], place[order], firsts
    grown = _steps(counts)
    grown[starts] = counts[starts]
    if (grown < 1).any():
        return None
    found = np.zeros(len(output), np.int32)
    found[place] = grown
    return found


def _by_logprobs(received: Received, output: Array) -> Array | None:
    """The tokens of each output, from log probabilities; None if a choice has none in an event with its output."""
    counts, chunks = received.counts, received.chunks
    if not counts.probed:
        return None
    probed, of = np.unique(_keys(counts.probed_event, counts.probed_choice), return_inverse=True)
    tokens = np.bincount(of, np.frombuffer(counts.probed, np.intc)).astype(np.int32)
    keys, from_end = np.unique(_keys(chunks.event, chunks.choice)[output][::-1], return_index=True)
    at = np.minimum(np.searchsorted(probed, keys), len(probed) - 1)
    if (probed[at] != keys).any() or (tokens[at] < 1).any():
        return None
    found = np.zeros(len(output), np.int32)
    found[len(output) - 1 - from_end] = tokens[at]
    return found


def _keys(events: array[int], choices: array[int]) -> Array:
    """One number for each pair of event and choice."""
    return np.frombuffer(events, np.intc).astype(np.int64) << 32 | np.frombuffer(choices, np.intc)


def _by_text(received: Received, output: Array, texts: Texts, echoed: Mapping[tuple[int, int], int]) -> Array:
    """The tokens of each output, as tiktoken encodes the texts."""
    chunks = received.chunks
    sizes = _steps(np.frombuffer(chunks.end, np.intc))[output]
    choice, kind = np.frombuffer(chunks.choice, np.intc)[output], np.frombuffer(chunks.kind, np.int8)[output]
    # The chunks of the texts, one text after the other. Their sizes are accumulated, so one search finds all tokens.
    order: Array | slice = slice(None)
    lasts = [len(output) - 1]
    if (choice != choice[0]).any() or (kind != kind[0]).any():
        order = np.lexsort((kind, choice))
        choice, kind = choice[order], kind[order]
        lasts = [*np.flatnonzero((choice[1:] != choice[:-1]) | (kind[1:] != kind[:-1])).tolist(), *lasts]
    ends = sizes[order].cumsum()
    start, found, missing = 0, [], dict(texts)
    for last in lasts:
        key, end = (int(choice[last]), int(kind[last])), int(ends[last])
        at = start + echoed.get(key, 0)
        for tokens in missing.pop(key, ()):
            if len(tokens):
                found.append(np.minimum(tokens + at, end))  # tool calls can end with text that no chunk had
                at += int(tokens[-1])
        start = end
    found += [np.full(len(tokens), start) for each in missing.values() for tokens in each]
    made = np.empty(len(output), np.int32)
    made[order] = _steps(np.concatenate(found or [ends[:0]]).searchsorted(ends, "right"))
    return made


def _steps(values: Array) -> Array:
    """The difference between each value and the previous one; for the first value, between it and 0.

    Faster than ``np.diff``.
    """
    made = values.copy()
    made[1:] -= values[:-1]
    return made
