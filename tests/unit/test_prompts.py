from __future__ import annotations

import hashlib
import json
import tracemalloc
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatap.api.prompt import Json
from deltatap.api.registry import NAMES
from deltatap.prompts import build_request, depends_on_resume, request_hash_of, wire, without_stream_options

if TYPE_CHECKING:
    from deltatap.model import Mode, Request, Wire

HI = [{"role": "user", "content": "Hi"}]


def build(keep: tuple[str, ...] = (), defaults: dict[str, Any] | None = None, **row: Any) -> Request:
    return build_request(row, api="chat", model="gpt-4o-mini", defaults=defaults or {}, keep=keep)


def sent(request: Request, *, api: str = "chat", mode: Mode = "stream", include_usage: bool = True) -> Wire:
    return wire(request.body or "", api=api, mode=mode, include_usage=include_usage)


def body(**row: Any) -> dict[str, Any]:
    request = build(**row)
    assert request.error is None, request.error
    made: dict[str, Any] = json.loads(request.body or "")
    return made


def test_a_prompt_is_one_user_message() -> None:
    assert body(prompt="Hi") == {"model": "gpt-4o-mini", "messages": HI}


def test_a_system_prompt_comes_first() -> None:
    assert body(prompt="Hi", system="Be brief.")["messages"] == [{"role": "system", "content": "Be brief."}, *HI]
    assert body(messages=HI, system="Be brief.")["messages"] == [{"role": "system", "content": "Be brief."}, *HI]


def test_the_model_and_params_of_a_row_override_the_defaults() -> None:
    request = build(
        defaults={"temperature": 0, "seed": 1}, prompt="Hi", model="gpt-4o", params='{"temperature": 1, "n": 2}'
    )
    assert request.model == "gpt-4o"
    assert json.loads(request.body or "") == {"model": "gpt-4o", "messages": HI, "temperature": 1, "seed": 1, "n": 2}


def test_values_of_a_map_are_decoded_if_they_are_json() -> None:
    pairs = [("temperature", "0.5"), ("stop", '["a"]'), ("user", "me"), ("seed", None)]
    made = body(prompt="Hi", params=pairs)
    assert (made["temperature"], made["stop"], made["user"]) == (0.5, ["a"], "me")
    assert "seed" not in made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.7"), "0.7"),
        (Decimal("100.0"), "100"),
        (Decimal(10) ** 30, "1000000000000000000000000000000"),
        (date(2026, 1, 2), '"2026-01-02"'),
        (datetime(2026, 1, 2, 3, 4, 5), '"2026-01-02T03:04:05"'),  # noqa: DTZ001 - TIMESTAMP_NTZ has no zone
        (datetime(2026, 1, 2, 3, 4, 5, 600, timezone(timedelta(hours=2))), '"2026-01-02T01:04:05.000600Z"'),
        (time(3, 4), '"03:04:00"'),
        (b"\xff\x00", '"/wA="'),
        ({"k": "v", "none": None}, '{"k":"v"}'),
        ({1: True, date(2026, 1, 2): Decimal("1.5")}, '{"1":true,"2026-01-02":1.5}'),
        ([Decimal("0.5"), None, [b"x"]], '[0.5,null,["eA=="]]'),
    ],
)  # fmt: skip
def test_the_values_of_sql_types_become_what_json_calls_them(value: Any, expected: str) -> None:
    params = build(prompt="Hi", params={"x": value})
    messages = build(messages=[{"role": "user", "content": "Hi", "x": value}])
    assert (params.body or "").endswith(f',"x":{expected}}}'), params
    assert (messages.body or "").endswith(f',"x":{expected}}}]}}'), messages
    kept = build(keep=("x",), prompt="Hi", x=value).keep or {}
    assert json.loads(kept["x"] or "") == json.loads(expected) if expected[0] != '"' else kept["x"] == expected[1:-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(7, "7"), (9007199254740993, "9007199254740993"), (7.0, "7"), (Decimal(7), "7"), ("", None), (0, "0"), (None, None)],
)  # fmt: skip
def test_a_request_id_is_text(given: object, expected: str | None) -> None:
    request = build(prompt="Hi", request_id=given)
    assert request.request_id == (expected or request.request_hash)


@pytest.mark.parametrize("column", [None, "gpt-4o"])
def test_the_model_in_params_is_the_model_of_the_request(column: str | None) -> None:
    request = build(prompt="Hi", model=column, params='{"model": "o3"}')
    assert (request.model, sent(request).model, json.loads(request.body or "")["model"]) == ("o3", "o3", "o3")
    alone = build_request({"prompt": "x", "params": {"model": "o3"}}, api="chat", model=None, defaults={}, keep=())
    assert alone.model == "o3"


def test_messages_may_be_json_and_nulls_are_dropped() -> None:
    struct = [{"role": "user", "content": "Hi", "name": None}]
    assert body(messages=struct)["messages"] == HI
    assert body(messages=json.dumps(HI))["messages"] == HI


def test_tool_calls_may_be_json_text() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    chat = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": json.dumps(calls)},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]
    made = body(messages=chat)["messages"]
    assert made[1] == {"role": "assistant", "tool_calls": calls}
    assert made[2]["tool_call_id"] == "c"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"type": "text", "text": "Hi"}]', [{"type": "text", "text": "Hi"}]),
        ("[1, 2]", "[1, 2]"),
        ('[{"text": "no type"}]', '[{"text": "no type"}]'),
        ("[]", "[]"),
        ("[not json", "[not json"),
        (' [{"type": "text"}]', [{"type": "text"}]),
    ],
)
def test_content_is_parts_only_when_it_is_objects_with_a_type(content: str, expected: Any) -> None:
    assert body(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == expected


TOO_DEEP = "the request is nested deeper than 250"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no prompt: expected text in prompt, or messages"),
        ({"prompt": "  "}, "no prompt: expected text in prompt, or messages"),
        ({"messages": []}, "no prompt: messages is empty"),
        ({"prompt": "x", "messages": HI}, "both prompt and messages: expected one of them"),
        ({"messages": "nope"}, "messages is not valid JSON"),
        ({"messages": '{"role": "user"}'}, "messages: expected a JSON array of objects with role and content"),
        ({"messages": "[1]"}, "messages[0]: expected an object with role and content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: expected one of system, "),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected text or a list of parts"),
        (
            {"messages": [*HI, {"role": "assistant", "content": "x", "tool_calls": "{"}]},
            "messages[1].tool_calls is not valid JSON",
        ),
        ({"prompt": "x", "params": "{"}, "params is not valid JSON"),
        ({"prompt": "x", "params": "[]"}, "params: expected a JSON object"),
        ({"prompt": "x", "params": 5}, "params: expected a JSON object or a MAP"),
        ({"prompt": "x", "params": [("a", 1, 2)]}, "params: expected a JSON object or a MAP"),
        ({"prompt": "x", "system": 5}, "system: expected text, found a value of type int"),
        ({"prompt": "x", "model": ["m"]}, "model: expected text, found a value of type list"),
        ({"messages": 5}, "messages: expected a list of objects with role and content"),
        ({"prompt": "x", "params": '{"stream": false}'}, "params must not contain stream: deltatap sets it"),
        ({"prompt": "x", "params": '{"temperature": NaN}'}, "params contains NaN or an infinite number"),
        ({"messages": [{"role": "user", "content": "x", "y": float("nan")}]}, "messages contains NaN or an infinite"),
        ({"prompt": "x", "params": '{"model": 4}'}, "params.model: expected text"),
        ({"prompt": "x", "params": '{"model": null}'}, "params.model: expected text"),
        ({"prompt": "x", "params": [("model", "[]")]}, "params.model: expected text"),
        ({"prompt": "x", "params": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"}, "params is nested too deeply"),
        ({"prompt": "x", "params": '{"a":' + "[" * 300 + "]" * 300 + "}"}, "the request is nested deeper than 250"),
        ({"messages": "[" * 100_000}, "messages is nested too deeply"),
        *(
            ({"messages": f'[{{"role": "user", "content": "x", "y": {a * depth}1{b * depth}}}]'}, TOO_DEEP)
            for depth in (300, 480, 600, 900)
            for a, b in (("[", "]"), ('{"a":', "}"))
        ),
        ({"prompt": "x", "params": {"a": timedelta(1)}}, "expected a JSON value, found one of type time"),
        ({"prompt": "x\ud800"}, "text that is not valid Unicode"),
        ({"prompt": "x", "params": '{"user": "cut \\ud83d"}'}, "text that is not valid Unicode"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], message: str) -> None:
    request = build(**row)
    assert request.body is None
    assert (request.error or "").startswith(message)
    assert request.request_id == request.request_hash, "a bad row gets an id, too"
    assert build(**row).request_hash == request.request_hash
    assert build(request_id="mine", **row).request_id == "mine"


def test_no_model_anywhere_is_a_bad_row() -> None:
    request = build_request({"prompt": "x"}, api="chat", model=None, defaults={}, keep=())
    assert request.error == "no model: the row has none and endpoint.model is null"


def test_the_hash_is_of_compact_json_with_sorted_keys_in_utf_8() -> None:
    request = build(prompt="Grüße 🙂", params='{"top_p": 1, "n": 2}')
    canonical = json.dumps(json.loads(request.body or ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert request.request_hash == hashlib.sha256(canonical.encode()).hexdigest()
    assert request.request_hash == build(prompt="Grüße 🙂", params='{"n": 2, "top_p": 1}').request_hash
    assert request.request_id == request.request_hash


def test_streaming_does_not_change_the_hash() -> None:
    request = build(prompt="Hi")
    text = sent(request).body
    assert request_hash_of(json.loads(text)) == request.request_hash


def test_the_wire_asks_for_a_stream_and_keeps_the_order_of_keys() -> None:
    schema = '{"response_format": {"z": 1, "a": 2}, "n": 3}'
    request = build(prompt="Hi", params=schema)
    text, choices = sent(request).body, sent(request).choices
    assert text.endswith('"response_format":{"z":1,"a":2},"n":3,"stream":true,"stream_options":{"include_usage":true}}')
    assert choices == 3
    plain = sent(build(prompt="Hi"), include_usage=False)
    text, choices = plain.body, plain.choices
    assert "stream_options" not in text
    assert choices == 1


def test_kept_columns_are_copied_as_text() -> None:
    request = build(keep=("a", "b", "c", "d"), prompt="Hi", a="x", b=3, c=None, d=[{"e": 1}])
    assert request.keep == {"a": "x", "b": "3", "c": None, "d": '[{"e": 1}]'}
    assert build(prompt="Hi").keep is None


@pytest.mark.parametrize("depth", [900, 2000])
@pytest.mark.parametrize("prompt", ["Hi", None])
def test_a_kept_variant_of_any_depth_is_copied(depth: int, prompt: str | None) -> None:
    text = "[" * depth + "]" * depth
    request = build(keep=("a",), prompt=prompt, a=Json(text))
    assert request.keep == {"a": text}
    assert (request.error is None) == (prompt is not None)
    assert request == build(keep=("a",), prompt=prompt, a=Json(text))


@pytest.mark.parametrize("null", ["null", " null\n"])
def test_null_in_json_is_null(null: str) -> None:
    assert build(prompt="Hi", messages=null, params=null).request_hash == build(prompt="Hi").request_hash
    assert build(messages=null).error == build().error


def test_the_depth_of_a_long_text_takes_little_memory() -> None:
    text = "[" * 300 + '"' + "a" * 1_000_000 + '"' + "]" * 300
    tracemalloc.start()
    try:
        assert build(prompt=text).error is None, "brackets in a text do not count"
        before = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert before < 20 * len(text)


_LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"]))
    | st.decimals(allow_nan=False) | st.dates() | st.datetimes() | st.timedeltas() | st.binary()
)  # fmt: skip
_ANY = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_LEAF, inner, max_size=3),
    max_leaves=8,
)
_TEXT = st.none() | st.text()
_MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), _ANY)


@settings(deadline=None)  # a busy machine exceeds the default deadline
@given(
    api=st.sampled_from(NAMES),
    prompt=_TEXT | _ANY,
    messages=_TEXT | st.lists(_MESSAGE | _ANY) | _ANY,
    system=_TEXT | _ANY,
    model=_TEXT | _ANY,
    request_id=_ANY,
    params=st.text() | st.dictionaries(st.text(), st.text()) | _ANY,
)
def test_no_row_raises_an_exception(api: str, **row: Any) -> None:
    """Whatever a struct of the UDF holds; the job refuses columns of most of these types before it starts."""
    request = build_request(row, api=api, model="m", defaults={"temperature": 0}, keep=("params", "prompt"))
    assert (request.body is None) == (request.error is not None)
    assert len(request.request_hash) == 64
    assert isinstance(request.model, str | None)
    if request.body is not None:
        wire(request.body, api=api, mode="stream", include_usage=True).body.encode()


def of(api: str, **row: Any) -> Any:
    request = build_request(row, api=api, model="m", defaults={"temperature": 0}, keep=())
    return request.error or json.loads(request.body or "")


def test_legacy_completions_take_text() -> None:
    assert of("completions", prompt="Hi") == {"model": "m", "prompt": "Hi", "temperature": 0}
    assert of("completions", prompt="Hi", params='{"echo": true}')["echo"] is True
    assert of("completions", messages=HI).startswith(
        "messages: endpoint.api is completions, which accepts only text in prompt"
    )
    assert of("completions", prompt="Hi", system="Be brief.").startswith("system: endpoint.api is completions")
    assert (
        of("completions", prompt="Hi", params='{"prompt": "x"}') == "params must not contain prompt: deltatap sets it"
    )
    assert of("completions", prompt=" ") == "no prompt: expected text in prompt, or messages"


def test_responses_take_text_or_items() -> None:
    assert of("responses", prompt="Hi") == {"model": "m", "input": "Hi", "temperature": 0}
    assert of("responses", prompt="Hi", system="Be brief.") == {
        "model": "m", "input": "Hi", "instructions": "Be brief.", "temperature": 0,
    }  # fmt: skip
    assert of("responses", prompt="Hi", params='{"instructions": "Be kind."}')["instructions"] == "Be kind."
    twice = of("responses", prompt="Hi", system="Be brief.", params='{"instructions": "Be kind."}')
    assert twice == "params must not contain instructions: deltatap sets it"
    items = [*HI, {"type": "function_call_output", "call_id": "c", "output": "Rain"}]
    assert of("responses", messages=json.dumps(items))["input"] == items
    assert of("chat", messages=json.dumps(items)).startswith("messages[1].role: expected one of")
    assert of("responses", prompt="Hi", params='{"input": "x"}') == "params must not contain input: deltatap sets it"
    assert of("responses", prompt="x", messages=HI) == "both prompt and messages: expected one of them"


@pytest.mark.parametrize(
    ("api", "mode", "include_usage", "ours"),
    [
        ("chat", "stream", True, {"stream": True, "stream_options": {"include_usage": True}}),
        ("chat", "stream", False, {"stream": True}),
        ("chat", "complete", True, {}),
        ("completions", "stream", True, {"stream": True, "stream_options": {"include_usage": True}}),
        ("responses", "stream", True, {"stream": True}),
        ("responses", "complete", True, {}),
    ],
)
def test_what_deltatap_adds_to_a_body(api: str, mode: Mode, include_usage: bool, ours: dict[str, Any]) -> None:  # noqa: FBT001
    request = build_request({"prompt": "Hi"}, api=api, model="m", defaults={}, keep=())
    wire_ = sent(request, api=api, mode=mode, include_usage=include_usage)
    added = json.loads(wire_.body)
    assert {key: added.pop(key) for key in ("stream", "stream_options") if key in added} == ours
    assert added == json.loads(request.body or "")
    assert (wire_.model, wire_.mode, wire_.usage) == ("m", mode, "stream_options" in ours)
    assert request_hash_of(json.loads(wire_.body)) == request.request_hash, "the same request in each mode"


QUIET: dict[str, Any] = {"include_obfuscation": False, "continuous_usage_stats": True}


@pytest.mark.parametrize(
    ("api", "mode", "include_usage", "options"),
    [
        ("chat", "stream", True, {**QUIET, "include_usage": True}),
        ("chat", "stream", False, QUIET),
        ("chat", "complete", True, None),
        ("completions", "stream", True, {**QUIET, "include_usage": True}),
        ("responses", "stream", True, QUIET),
        ("responses", "complete", True, None),
    ],
)
def test_stream_options_of_the_user(api: str, mode: Mode, include_usage: bool, options: dict[str, Any] | None) -> None:  # noqa: FBT001
    plain = build_request({"prompt": "Hi"}, api=api, model="m", defaults={}, keep=())
    params: list[Any] = [json.dumps({"stream_options": QUIET}), {"stream_options": json.dumps(QUIET)}]
    for of_row, defaults in ((params[0], {}), (params[1], {}), (None, {"stream_options": QUIET})):
        row = {"prompt": "Hi", "params": of_row}
        request = build_request(row, api=api, model="m", defaults=defaults, keep=())
        assert request.error is None
        assert request.request_hash != plain.request_hash
        wire_ = sent(request, api=api, mode=mode, include_usage=include_usage)
        assert json.loads(wire_.body).get("stream_options") == options
        assert wire_.usage == (options is not None)
        if mode == "stream":
            assert request_hash_of(json.loads(wire_.body)) == request.request_hash
            assert json.loads(without_stream_options(wire_.body)) == json.loads(
                sent(plain, api=api, include_usage=False).body
            )


@pytest.mark.parametrize("options", ["null", "{}"])
def test_stream_options_without_a_value_change_nothing(options: str) -> None:
    assert build(prompt="Hi", params=f'{{"stream_options": {options}}}') == build(prompt="Hi")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("true", "stream_options: expected an object, such as {include_obfuscation: false}"),
        ("[]", "stream_options: expected an object, such as {include_obfuscation: false}"),
        ('{"include_usage": true}', "stream_options.include_usage: must not be set: deltatap sets it; use endpoint.include_usage"),
        ('{"include_usage": false, "include_obfuscation": false}', "stream_options.include_usage: must not be set: deltatap sets it; use endpoint.include_usage"),
    ],
)  # fmt: skip
def test_bad_stream_options_make_a_bad_row(options: str, problem: str) -> None:
    assert build(prompt="Hi", params=f'{{"stream_options": {options}}}').error == f"params: {problem}"


def test_choices_count_only_in_apis_that_have_them() -> None:
    for api, count in (("chat", 3), ("completions", 3), ("responses", 1)):
        request = build_request({"prompt": "Hi", "params": '{"n": 3}'}, api=api, model="m", defaults={}, keep=())
        assert sent(request, api=api).choices == count


@pytest.mark.parametrize(
    ("params", "resume", "problem"),
    [
        ({"background": True}, False, "params.background: use capture.resume: true instead"),
        ({"background": True}, True, None),
        ({"background": False}, False, None),
        ({"background": None}, False, None),
        ({"store": False}, True, "params.store: false cannot be combined with capture.resume"),
        ({"store": False}, False, None),
        ({"store": True}, True, None),
    ],
)
def test_a_request_that_would_be_paid_twice_or_not_kept_is_refused(
    params: dict[str, Any], *, resume: bool, problem: str | None
) -> None:
    row = {"prompt": "x", "params": json.dumps(params)}
    request = build_request(row, api="responses", model="m", defaults={}, keep=(), resume=resume)
    assert (request.error or "").startswith(problem or "")
    assert (request.error is None) == (problem is None)
    assert depends_on_resume(request, "responses") == (problem is not None)
    chat = build_request(row, api="chat", model="m", defaults={}, keep=())
    assert chat.error is None
