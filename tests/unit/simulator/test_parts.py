"""The simulator's pure parts: answers, faults, frames and shapes."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from deltatap.api.chat import API as CHAT
from deltatap.api.chat import ChatFrames
from deltatap.api.frames import Answer, Facts, Piece
from deltatap.api.messages import API as MESSAGES
from deltatap.simulator import shapes
from deltatap.simulator.answers import ENCODING, Pace, answers
from deltatap.simulator.app import Simulator, SimulatorSettings
from deltatap.simulator.faults import NAMES, BadFaultError, Fault, by_rate, in_sequence, of_model, parse
from deltatap.tokens import count_text

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
PACE = Pace(tokens=60)


def made(body: dict[str, Any], key: str = "k", seed: int = 0, pace: Pace = PACE) -> list[Answer]:
    return answers(CHAT.parse_request(body), key, seed, pace)


def texts(body: dict[str, Any], key: str = "k", seed: int = 0) -> list[str]:
    return [answer.text() for answer in made(body, key, seed)]


def test_an_answer_is_the_same_for_the_same_prompt_and_seed() -> None:
    assert made(BODY, "k", 1) == made(BODY, "k", 1)
    assert texts(BODY, "k") != texts(BODY, "other")
    assert texts(BODY, seed=1) != texts(BODY, seed=2)


def test_pieces_are_whole_characters_and_tokens_match_tiktoken() -> None:
    for key in range(50):
        (answer,) = made(BODY, str(key))
        assert len(answer.pieces) == len(answer.waits_s)
        for piece in answer.pieces:
            piece.text.encode()
            assert "\ufffd" not in piece.text
        assert abs(answer.tokens - count_text(answer.text(), ENCODING)) <= 2
    everything = "".join(texts(BODY, str(key))[0] for key in range(50))
    assert not everything.isascii(), "without text beyond ASCII, no cut is inside a character"


def test_lengths_and_waits_have_a_long_tail() -> None:
    many = [made(BODY, str(key))[0] for key in range(400)]
    lengths = sorted(answer.tokens for answer in many)
    assert 50 < lengths[200] < 72
    assert lengths[-4] > 2.5 * lengths[200]
    first = sorted(answer.waits_s[0] for answer in many)
    assert 0.17 < first[200] < 0.23
    assert first[-4] > 1.8 * first[200]


def test_maximum_choices_and_stop_sequences_are_respected() -> None:
    (cut,) = made({**BODY, "max_tokens": 5})
    assert (cut.tokens, cut.finish_reason) == (5, "length")
    assert made({**BODY, "max_completion_tokens": 5}) == [cut]
    assert len(texts({**BODY, "n": 3})) == 3
    whole = texts(BODY)[0]
    word = whole.split()[7]
    assert texts({**BODY, "stop": word}) == [whole[: whole.index(word)]]
    assert texts({**BODY, "stop": ["nowhere to be found", word]}) == [whole[: whole.index(word)]]


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": ["string", "null"]}, str),
        ({"type": []}, dict),
        ({"type": {}, "properties": [1]}, dict),
        ({"type": "array", "items": [5]}, list),
        ({"enum": 5, "type": "integer"}, int),
        (5, dict),
    ],
)
def test_a_schema_of_any_form_gets_a_value(schema: Any, types: type) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": schema}}}}
    assert type(json.loads(texts({**BODY, "response_format": form})[0])["a"]) is types


def test_only_texts_are_stop_sequences() -> None:
    body = {**BODY, "max_tokens": 9, "stop_sequences": ["a", 1, None]}
    assert MESSAGES.parse_request(body).stop == CHAT.parse_request({**BODY, "stop": ["a", 1, None]}).stop == ("a",)


def test_speed_scales_every_wait() -> None:
    usual, quick = made(BODY)[0], made(BODY, pace=Pace(tokens=60, speed=10))[0]
    assert sum(quick.waits_s) == pytest.approx(sum(usual.waits_s) / 10)
    assert set(made(BODY, pace=Pace(speed=0))[0].waits_s) == {0.0}


def test_input_is_counted_by_openais_rules() -> None:
    assert CHAT.count_input(BODY, "gpt-4o-mini", ENCODING).tokens == 8


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cut", Fault(("cut",))),
        ("cut@5:1", Fault(("cut",), None, 5, 1)),
        ("429=0.2:2", Fault(("429",), "0.2", None, 2)),
        ("bom+crlf", Fault(("bom", "crlf"))),
        ("stall=3@2", Fault(("stall",), "3", 2)),
    ],
)
def test_a_fault_is_parsed_and_formatted(text: str, fault: Fault) -> None:
    assert parse(text) == (fault,)
    assert text.startswith(fault.text)


@pytest.mark.parametrize("text", ["nope", "cut@x", "cut:x", "bom+nope"])
def test_an_unknown_fault_is_refused(text: str) -> None:
    with pytest.raises(BadFaultError, match=r"unknown fault nope; expected one of 400|expected name"):
        parse(text)


def test_faults_apply_in_sequence() -> None:
    model, faults = of_model("gpt-4o!429:2!cut@5:1")
    assert model == "gpt-4o"
    texts_ = [fault and fault.text for fault in (in_sequence(faults, call) for call in range(5))]
    assert texts_ == ["429", "429", "cut@5", None, None]
    stays = parse("500")
    assert in_sequence(stays, 99) == stays[0]


def test_rates_are_respected_and_repeatable() -> None:
    rates = {"cut": 0.2, "500": 0.1}
    drawn = [by_rate(rates, str(key), 0, 7, in_a_row=2) for key in range(4000)]
    counts = Counter(fault.text if fault else None for fault in drawn)
    assert 700 < counts["cut"] < 900
    assert 330 < counts["500"] < 470
    assert drawn == [by_rate(rates, str(key), 0, 7, in_a_row=2) for key in range(4000)]
    assert by_rate({"cut": 1.0}, "k", 2, 7, in_a_row=2) is None


def test_fault_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(st.text(max_size=20))
def test_a_frame_from_the_cache_is_json(piece: str) -> None:
    (frame,) = ChatFrames(Facts("id", 1, "m", {}, with_usage=True)).piece(3, Piece("content", piece))
    chunk = json.loads(frame.removeprefix(b"data: "))
    assert chunk["choices"] == [{"index": 3, "delta": {"content": piece}, "logprobs": None, "finish_reason": None}]
    assert chunk["usage"] is None


def test_fragments_cut_inside_a_character() -> None:
    frame = 'data: {"x": "a🙂"}\n\n'.encode()
    pieces = shapes.fragments(frame)
    assert b"".join(pieces) == frame
    assert len(pieces) == 3
    with pytest.raises(UnicodeDecodeError):
        (pieces[0] + pieces[1]).decode()


def test_the_record_is_read_on_the_event_loop() -> None:
    """In one of Starlette's threads, a dictionary could change while it is read."""
    routes = [route for route in Simulator(SimulatorSettings()).application().routes if isinstance(route, Route)]
    endpoints = {route.path: route.endpoint for route in routes if "/sim/" in route.path or "models" in route.path}
    assert len(endpoints) == 7
    assert [path for path, endpoint in endpoints.items() if not inspect.iscoroutinefunction(endpoint)] == []
