"""Secrets are struck out of a finished call, wherever they stand and however they are split or written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatap.api.chat import ChatAccumulator
from deltatap.http import redact
from deltatap.http.redact import struck_pieces, without_secrets
from deltatap.model import Call, CaptureError

if TYPE_CHECKING:
    import re
    from collections.abc import Sequence

    from deltatap.model import Received

KEY = "sk-0123456789abcdef"
ESCAPED = "".join(f"\\u{ord(char):04X}" for char in KEY)


def event(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def received(*events: Any, keep_raw: bool = True) -> Received:
    accumulator = ChatAccumulator(keep_raw=keep_raw)
    for number, what in enumerate(events):
        data = what if isinstance(what, bytes) else json.dumps(what).encode()
        accumulator.add(data, float(number), number)
    return accumulator.finish()


def call(*events: Any, error: CaptureError | None = None, **more: Any) -> Call:
    return Call(
        0.0, 1.0, 0.0, None, None, None, None, received(*events), "completed", error, 200, **({"body": "{}"} | more)
    )


def spoken(found: Received, choice: int = 0) -> str:
    return "".join(
        row["text"] for row in found.chunks.to_dicts() if row["kind"] == "content" and row["choice"] == choice
    )


CASES: dict[str, tuple[list[Any], str]] = {
    "in one chunk": ([event(content=f"a {KEY} b")], "a *** b"),
    "twice": ([event(content=KEY + KEY)], "******"),
    "over two chunks": ([event(content="a " + KEY[:5]), event(content=KEY[5:] + " b")], "a *** b"),
    "over three, with another event between": (
        [event(content=KEY[:3]), event(content=KEY[3:9]), event(reasoning="hm"), event(content=KEY[9:])], "***"),
    "a character in each": ([event(content=char) for char in f"a{KEY}b"], "a***b"),
    "at the start of the next": ([event(content="a"), event(content=KEY + "b")], "a***b"),
    "a part of it": ([event(content=KEY[:-1])], KEY[:-1]),
    "escaped once": ([f'{{"choices":[{{"index":0,"delta":{{"content":"{ESCAPED}"}}}}]}}'.encode()], "***"),
    "escaped in the text": ([event(content=f'{{"key": "{ESCAPED}"}}')], '{"key": "***"}'),
    "in the other choice": (
        [{"choices": [{"index": 1, "delta": {"content": KEY[:9]}}, {"index": 0, "delta": {"content": "a"}}]},
         {"choices": [{"index": 1, "delta": {"content": KEY[9:]}}]}], "a"),
    "in both choices at once": (
        [{"choices": [{"index": at, "delta": {"content": KEY[:9]}} for at in (0, 1)]},
         {"choices": [{"index": at, "delta": {"content": KEY[9:]}} for at in (1, 0)]}], "***"),
    "in reasoning": ([event(reasoning=KEY[:9]), event(reasoning=KEY[9:]), event(content="a")], "a"),
    "in a tool call": (
        [event(tool_calls=[{"index": 0, "id": KEY, "function": {"name": "f", "arguments": '{"k":"' + KEY[:8]}}]),
         event(tool_calls=[{"index": 0, "function": {"arguments": KEY[8:] + '"}'}}]), event(content="a")], "a"),
    "in a tool call, escaped and split": (
        [event(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ESCAPED[:20]}}]),
         event(tool_calls=[{"index": 0, "function": {"arguments": ESCAPED[20:]}}]), event(content="a")], "a"),
    "in names": ([{**event(content="a"), "model": KEY, "id": f"x-{KEY}", "system_fingerprint": KEY}], "a"),
    "in annotations": ([event(content="a", annotations=[{"url": f"https://x/?key={KEY}"}])], "a"),
    "in log probabilities": (
        [{"choices": [{"index": 0, "delta": {"content": KEY}, "logprobs": {"content": [{"token": KEY[:9], "bytes": [*KEY[:9].encode()]}]}}]}],
        "***"),
    "in an event that is not JSON": ([event(content="a"), KEY.encode()], "a"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_secret_is_struck_out_of_everything_received(case: str) -> None:
    events, text = CASES[case]
    found = without_secrets(call(*events), {KEY}).received
    assert found.text == text
    for choice in found.choices:
        assert spoken(found, choice.index) == choice.text
    left = repr(found) + "".join(found.chunks.text) + repr([list(kind.values()) for kind in found.chunks.to_dicts()])
    assert KEY not in left
    assert ESCAPED not in left
    assert KEY[9:] not in left, "not even the second half of a split one"
    before = received(*events)
    assert len(found.chunks) == len(before.chunks)
    assert (found.chunks.ms, found.chunks.kind, found.chunks.event) == (
        before.chunks.ms,
        before.chunks.kind,
        before.chunks.event,
    )
    assert [kind for kind, _ in found.raw or ()] == [kind for kind, _ in before.raw or ()]


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (f"wrong key {KEY}!", "wrong key ***!"),
        (f"wrong key {KEY[:12]}…", "wrong key ***…"),
        (f"wrong key {KEY[:5]}…", f"wrong key {KEY[:5]}…"),
        (f'{{"said": "{ESCAPED}"}}', '{"said": "***"}'),
        ("nothing", "nothing"),
    ],
)
def test_the_secret_is_struck_out_of_errors(message: str, left: str) -> None:
    error = CaptureError("authentication", f"no-{KEY}", message, 401)
    expected = CaptureError("authentication", "no-***", left, 401)
    assert without_secrets(error, {KEY}) == expected
    struck = without_secrets(call(error=error, body=f'{{"k":"{KEY}"}}'), {KEY})
    assert (struck.error, struck.body) == (expected, '{"k":"***"}')


def test_a_call_without_a_secret_stays_the_same_object() -> None:
    made = call(event(content="a \\ b"), event(content=KEY[:9]))
    assert without_secrets(made, {KEY}) is made
    assert without_secrets(made, ()) is made


@pytest.mark.parametrize("short", ["EMPTY", "none", "1234567", ""])
def test_values_of_fewer_than_eight_characters_are_no_secrets(short: str) -> None:
    made = call(event(content=f"a {short} b"))
    assert without_secrets(made, {short}) is made


def test_long_answers_take_linear_time() -> None:
    backslashes = without_secrets(
        call(event(content="\\" * 1_000_000), error=CaptureError("x", None, "\\" * 9_999)), {KEY}
    )
    assert backslashes.received.text == "\\" * 1_000_000
    found = without_secrets(call(*[event(content=KEY)] * 5_000), {KEY}).received
    assert found.text == spoken(found) == "***" * 5_000


def test_an_event_that_nests_deeply_is_searched_as_far_as_possible() -> None:
    deep = b'{"choices":[{"index":0,"delta":{"content":"%b","x":%b%b}}]}' % (KEY[:9].encode(), b"[" * 900, b"]" * 900)
    found = without_secrets(call(deep, event(content=KEY[9:])), {KEY}).received
    assert found.text == spoken(found) == "***"
    assert KEY[9:] not in repr(found)


def test_the_longer_of_two_secrets_is_struck_out_first() -> None:
    longer = KEY + "-2"
    assert without_secrets(call(event(content=f"{longer} {KEY}")), {KEY, longer}).received.text == "*** ***"


SECRETS = ("aab-aab-aab", "aab-aab-aab-c", "b-aab-aa")


@given(
    st.lists(st.one_of(st.sampled_from([*SECRETS, "aab-", "aab", "c"]), st.text("ab-c", max_size=9)), max_size=9),
    st.data(),
)
def test_no_split_leaves_a_secret(parts: Sequence[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    struck = struck_pieces(pieces, sorted(SECRETS, key=len, reverse=True))
    assert len(struck) == len(pieces)
    assert not any(secret in "".join(struck) for secret in SECRETS)
    found = without_secrets(call(*(event(content=piece) for piece in pieces)), SECRETS).received
    assert spoken(found) == (found.text or "")
    assert not any(secret in repr(found) for secret in SECRETS)


ODD_SECRETS = (KEY, 'a"b/c\\d-ef', "pä\u0142-\U0001f600-xy", "\\" * 8, "u0073u0073")


@st.composite
def escaped_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A secret, and a text with the secret: each character plain or as a code, after any number of backslashes."""
    secret = draw(st.sampled_from(ODD_SECRETS))
    noise = st.text('\\u07aAsä"/', max_size=6)
    allowed = draw(st.sampled_from((1, 1, 3, 4)))
    parts = []
    for char in secret:
        code = f"{ord(char):04x}"
        backslashes = "\\" * draw(st.sampled_from((0, 0, 1, 2, 4, 8, 9)[: draw(st.sampled_from((6, 7)))]))
        parts.append(backslashes + draw(st.sampled_from([char, f"u{code}", f"u{code.upper()}", "x"][:allowed])))
    return secret, draw(noise) + "".join(parts) + draw(noise)


@given(escaped_texts())
def test_the_quick_check_misses_nothing_that_the_pattern_finds(given_text: tuple[str, str]) -> None:
    secret, text = given_text
    found = redact._spans(text, [secret]), redact._struck_bytes(text.encode(), (secret,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "_can_match", lambda *_: True)
        patch.setattr(redact, "_can_match_bytes", lambda *_: True)
        assert found == (redact._spans(text, [secret]), redact._struck_bytes(text.encode(), (secret,)))


@pytest.mark.parametrize("code", [False, True])
def test_the_slow_pattern_runs_only_if_it_can_match(monkeypatch: pytest.MonkeyPatch, *, code: bool) -> None:
    searched: list[str] = []
    pattern = redact._escaped

    def noting(secret: str) -> re.Pattern[str]:
        searched.append(secret)
        return pattern(secret)

    monkeypatch.setattr(redact, "_escaped", noting)
    text = f"a {KEY[:-1]} \\n b \\u00e4" + ("\\u0073" if code else "")
    assert redact._struck_text(text, (KEY,)) == text
    assert searched == [KEY] * code


def test_headers_about_timing_are_stripped_of_secrets() -> None:
    struck = without_secrets(call(server_timing=(("x-ratelimit-key", f"a {KEY}"), (f"x-ratelimit-{KEY}", "1"))), [KEY])
    assert struck.server_timing == (("x-ratelimit-key", "a ***"), ("x-ratelimit-***", "1"))
