"""Calls of /moderations over a real socket, and the meaning of responses."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from deltatap.config import Timeouts
from deltatap.endpoint import ApiKey, Endpoint
from deltatap.errors import ProtocolError
from deltatap.http.client import EndpointClient
from deltatap.http.moderations import verdict_of
from deltatap.model import CaptureError, Verdict
from tests.calls import KEY, refusal, request, server

if TYPE_CHECKING:
    from collections.abc import Sequence


def result(flagged: object, **categories: object) -> dict[str, Any]:
    return {"flagged": flagged, "categories": categories}


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({"results": [result(False, hate=False)]}, Verdict(False)),
        ({"results": [result(True, hate=False, violence=True)]}, Verdict(True, ("violence",))),
        ({"results": [result(False), result(True, x=True), result(True, x=True, y=True)]}, Verdict(True, ("x", "y"))),
        ({"results": [{"flagged": True}]}, Verdict(True)),
        ({"results": [{"flagged": True, "categories": None}]}, Verdict(True)),
        ({"results": [result(True, **{"a\ud800": True})]}, Verdict(True, ("a\ufffd",))),
        ({"results": [result(True, **{"n" * 300: True})]}, Verdict(True, ("n" * 99 + "…",))),
        ({"results": [result(True, odd="yes", other=1)]}, Verdict(True)),
    ],
)
def test_a_text_is_flagged_if_any_result_is(body: Any, verdict: Verdict) -> None:
    assert verdict_of(json.dumps(body).encode()) == verdict


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"results": []}', b'{"results": [{}]}', b'{"results": [{"flagged": "true"}]}',
        b'{"results": {"flagged": true}}', b'{"results": [{"flagged": true, "categories": [1]}]}', b"<html>",
        b'{"results": [null]}',
    ],
)  # fmt: skip
def test_any_other_response_is_not_a_verdict(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not the result of a moderation"):
        verdict_of(body)


def moderate(answers: Sequence[bytes], texts: Sequence[str], **described: Any) -> tuple[list[Any], list[bytes]]:
    """Moderate texts with one client. Returns the results, and the heads and bodies of the requests."""

    async def made() -> tuple[list[Any], list[bytes]]:
        left, seen = list(answers), list[bytes]()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while left:
                seen.extend(await request(reader))
                if answer := left.pop(0):
                    writer.write(answer)
                else:
                    await reader.read()

        async with server(handler) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url, **{"api_key": None, **described}), Timeouts())
            try:
                found = [await client.moderate("mine", text, within_s=0.5) for text in texts]
            finally:
                await client.close()
        return found, seen

    return asyncio.run(made())


def answer(body: Any, status: str = "200 OK") -> bytes:
    return refusal(status, json.dumps(body).encode())


def test_a_text_is_sent_to_the_same_endpoint_with_its_key_and_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    good, bad = answer({"results": [result(False)]}), answer({"results": [result(True, hate=True)]})
    found, seen = moderate(
        [good, bad], ["fine", 'so "bad" 🙂'], api_key=ApiKey(env="TEST_KEY"), headers={"x-team": "t"}
    )
    assert found == [Verdict(False), Verdict(True, ("hate",))]
    head, body = seen[2], json.loads(seen[3])
    assert head.startswith(b"POST /v1/moderations HTTP/1.1\r\n")
    assert f"authorization: bearer {KEY}".encode() in head.lower()
    assert b"x-team: t" in head.lower()
    assert body == {"model": "mine", "input": 'so "bad" 🙂'}


def test_failures_are_errors_and_hide_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    limited = refusal("429 Too Many Requests", b'{"error": {"message": "slow"}}', b"retry-after: 3")
    answers = [limited, answer({"error": {"message": f"no {KEY}"}}, "404 Not Found"), answer({"results": "?"}), b""]
    found, _ = moderate(answers, ["x"] * 4, api_key=ApiKey(env="TEST_KEY"))
    assert [type(each) for each in found] == [CaptureError] * 4
    assert [(each.type, each.retry_after_s) for each in found] == [
        ("rate_limit", 3.0), ("not_found", None), ("protocol", None), ("timeout", None),
    ]  # fmt: skip
    assert KEY not in repr(found)


def test_categories_hide_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    found, _ = moderate(
        [answer({"results": [result(True, **{f"has {KEY}": True})]})], ["x"], api_key=ApiKey(env="TEST_KEY")
    )
    assert found == [Verdict(True, ("has ***",))]
