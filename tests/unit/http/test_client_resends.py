"""Refused calls that are sent again at once: without stream options, or with a new token."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import pytest

from deltatap.config import Timeouts
from deltatap.endpoint import Endpoint
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import Credential, Token
from deltatap.model import Call, Wire
from tests.calls import ANSWER, WHOLE, WIRE, answering, call, calls, refusal, request, server

ASKING = Wire('{"model":"m","stream":true,"stream_options":{"include_usage":true}}', "m", "stream", 1, usage=True)
NO_OPTIONS = b'{"error": {"message": "Extra inputs are not permitted: stream_options"}}'


@pytest.mark.parametrize("status", [400, 422])
def test_stream_options_that_a_server_refuses_are_not_sent_again(status: int) -> None:
    no = refusal(f"{status} X", NO_OPTIONS)
    found = calls([no, ANSWER, no], [ASKING, ASKING, replace(ASKING, model="other")])
    refused, resent, other = found.made
    assert (refused.status, refused.resend, refused.http_status) == ("failed", True, status)
    assert (resent.status, resent.resend) == ("completed", False)
    assert json.loads(resent.body) == {"model": "m", "stream": True}
    assert other.resend, "a router may send another model to another server"
    assert [b"stream_options" in body for _, body in found.requests] == [True, False, True]


ECHO = b"""{"error": {"message": "top_p is 9 in {'stream_options': {'include_usage': True}, 'top_p': 9}"}}"""
BAD = b"""{"error": {"message": "top_p is 9 in {'top_p': 9}"}}"""


def test_refusal_that_quotes_stream_options_changes_no_later_request() -> None:
    echo, bad = refusal("400 X", ECHO), refusal("400 X", BAD)
    found = calls([echo, bad, ANSWER], [ASKING] * 3)
    assert [(call.status, call.resend) for call in found.made[:2]] == [("failed", True), ("failed", False)]
    assert [b"stream_options" in body for _, body in found.requests] == [True, False, True]


@pytest.mark.parametrize(
    ("resent", "request_id", "wire", "answer"),
    [
        (ANSWER, "b", ASKING, refusal("400 X", BAD)),
        (ANSWER, "a", WHOLE, refusal("400 X", BAD)),
        (refusal("429 X", b"{}"), "a", ASKING, ANSWER),
    ],
)
def test_refused_stream_options_stay_known(resent: bytes, request_id: str, wire: Wire, answer: bytes) -> None:
    answers = [refusal("400 X", NO_OPTIONS), resent, answer, ANSWER]
    sent: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            sent.append((await request(reader))[1])
            writer.write(answers.pop(0))

    async def made() -> None:
        async with server(handler) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url, api_key=None), Timeouts())
            try:
                for each, of in ((ASKING, "a"), (ASKING, "a"), (wire, request_id), (ASKING, "c")):
                    await client.call(each, of)
            finally:
                await client.close()

    asyncio.run(made())
    assert [b"stream_options" in body for body in sent] == [True, False, False, False]


@pytest.mark.parametrize("status", [401, 403, 404, 409, 413, 429, 502, 503])
def test_stream_options_are_still_sent_after_any_other_status(status: int) -> None:
    found = calls([refusal(f"{status} X", NO_OPTIONS)] * 2, [ASKING] * 2)
    assert [call.resend for call in found.made] == [False, False]
    assert all(b"stream_options" in body for _, body in found.requests)


@pytest.mark.parametrize("wire", [ASKING, WIRE])
def test_other_refusals_with_the_same_status_are_not_resent(wire: Wire) -> None:
    text = NO_OPTIONS if wire is WIRE else b'{"error": {"message": "max_tokens is too large"}}'
    assert [call.resend for call in calls([refusal("400 X", text)], [wire]).made] == [False]


@pytest.mark.parametrize(("status", "resent"), [(401, True), (400, False), (403, False), (429, False), (500, False)])
def test_only_a_401_renews_the_token(status: int, *, resent: bool) -> None:
    tokens = iter(["old", "new", "newest"])
    credential = Credential(lambda: Token(next(tokens)))
    found = calls([refusal(f"{status} X", b"{}"), ANSWER], [WIRE, WIRE], credential)
    assert found.made[0].resend is resent
    assert [b"Bearer new" in head for head, _ in found.requests] == [False, resent]


def test_refused_key_that_cannot_be_renewed_is_not_resent() -> None:
    def lost() -> Token:
        if credential.current is None:
            return Token("old")
        raise ConnectionError("the identity provider is down")

    credential = Credential(lost)
    assert not calls([refusal("401 X", b"{}")], [WIRE], Credential(lambda: Token("key"))).made[0].resend
    assert not calls([refusal("401 X", b"{}")], [WIRE], credential).made[0].resend


def test_call_that_is_cancelled_while_its_token_is_renewed_keeps_its_error() -> None:
    async def made() -> Call:
        renewing, loop = asyncio.Event(), asyncio.get_running_loop()
        go_on = threading.Event()

        def fetch() -> Token:
            if credential.refusing:
                loop.call_soon_threadsafe(renewing.set)
                go_on.wait(20)
            credential.refusing = True
            return Token("old")

        class Renewing(Credential):
            refusing = False

        credential = Renewing(fetch)

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(refusal("401 X", b"{}"))

        async with server(handler) as base_url:
            client = EndpointClient(Endpoint(base_url=base_url), Timeouts(), credential=credential)
            calling = asyncio.create_task(client.call(WIRE))
            try:
                await asyncio.wait_for(renewing.wait(), 20)
                calling.cancel()
                return await calling
            finally:
                go_on.set()
                await client.close()

    found = asyncio.run(made())
    assert found.error is not None
    assert (found.error.type, found.resend) == ("authentication", False)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("422 X", b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}'),
        ("400 X", b'{"detail":"Unsupported parameter(s): `stream_options`"}'),
        ("400 X", b'[{"error":{"code":400,"message":"Unknown name \\"include_usage\\""}}]'),
        ("501 X", b'{"errors":[{"message":"stream_options is not supported"}]}'),
        ("200 X", b'data: {"error":{"message":"stream_options is not supported"}}\n\n'),
    ],
)
def test_stream_options_refused_in_any_form(status: str, body: bytes) -> None:
    assert call(answering(refusal(status, body)), wire=ASKING).resend
