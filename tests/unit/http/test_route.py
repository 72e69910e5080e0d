"""Headers of the configuration: what is sent, and what stays hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.driver.check import _models
from deltatap.http.credentials import Secrets
from deltatap.http.route import route_of
from tests.calls import refusal
from tests.networks import COMPLETED, call, network, serving, settings_of

if TYPE_CHECKING:
    from deltatap.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("environment")


def headers_of(endpoint: Endpoint, run_id: str = "") -> dict[str, str]:
    return dict(route_of(endpoint, run_id=run_id).headers)


def test_headers_are_sent_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "g4teway-secret")
    monkeypatch.setenv("TEST_KEY", "sk-test-4711")
    headers = {
        "X-Run": "run {run_id}!",
        "x-gateway": {"env": "GATEWAY"},
        "X-Team": "a, b",
        "user-agent": "ours",
        "OpenAI-Organization": "org",
    }
    with serving() as server:
        settings = settings_of(f"http://127.0.0.1:{server.port}/v1", headers=headers, api_key={"env": "TEST_KEY"})
        assert call(settings) == COMPLETED
        assert _models(settings).level == "ok"
        for head in server.heads:
            lines = head.split(b"\r\n")
            for line in (
                b"X-Run: run !", b"x-gateway: g4teway-secret", b"X-Team: a, b", b"User-Agent: ours",
                b"OpenAI-Organization: org", b"Authorization: Bearer sk-test-4711",
            ):  # fmt: skip
                name, _, value = line.partition(b": ")
                sent = [other.partition(b": ") for other in lines]
                assert [found for other, _, found in sent if other.lower() == name.lower()] == [value]
    assert headers_of(settings.endpoint, "r1")["X-Run"] == "run r1!"
    assert headers_of(settings.endpoint, "a:b/é😀 'x'")["X-Run"] == "run a:b/%C3%A9%F0%9F%98%80 'x'!"
    assert route_of(settings.endpoint).secrets == {"g4teway-secret"}


def test_secrets_that_the_driver_has_read_are_used_and_hidden() -> None:
    endpoint = settings_of(
        "https://api.x.org/v1",
        headers={"X-Team": {"secret": "team/token"}},
        proxy={"secret": "team/proxy"},
    ).endpoint
    secrets = Secrets({"team/token": "Key t0ken-of-the-team", "team/proxy": "http://u:pa55word@p:3128"})
    route = route_of(endpoint, secrets)
    assert route.headers == {"X-Team": "Key t0ken-of-the-team"}
    assert str(route.proxy) == "the proxy p:3128"
    assert {"Key t0ken-of-the-team", "t0ken-of-the-team", "pa55word"} <= route.secrets
    assert "t0ken" not in repr(route) + repr(secrets)
    assert "pa55word" not in repr(route) + repr(secrets)


def test_a_secret_that_a_server_repeats_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "Bearer g4teway-secret")
    refused = refusal("401 X", b'{"error": {"message": "wrong: g4teway-secret (Bearer g4teway-secret)"}}')
    with serving(answer=refused) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        settings = settings_of(url, headers={"X-Gateway": {"env": "GATEWAY"}})
        assert call(settings) == ("authentication", None, "wrong: *** (***)")
        assert _models(settings).detail.endswith("(authentication): wrong: *** (***)")


def test_a_header_may_replace_the_key_and_is_a_secret() -> None:
    with serving() as server:
        settings = settings_of(f"http://127.0.0.1:{server.port}/v1", headers={"authorization": "Basic c2VjcmV0"})
        assert call(settings) == COMPLETED
        assert server.heads[0].lower().count(b"authorization:") == 1
        assert b": Basic c2VjcmV0\r\n" in server.heads[0]
    assert route_of(settings.endpoint).secrets == {"Basic c2VjcmV0", "c2VjcmV0"}
    for shown in (settings.model_dump_json(), repr(settings), repr(route_of(settings.endpoint))):
        assert "c2VjcmV0" not in shown


def test_a_missing_variable_of_a_header_names_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    for endpoint, key in (
        ({"headers": {"X-A": {"env": "NOT_THERE"}}}, "headers.X-A"),
        ({"proxy": {"env": "NOT_THERE"}}, "proxy"),
    ):
        expected = f"endpoint.{key}.env: the environment variable NOT_THERE is not set; set it"
        assert network(settings_of("http://127.0.0.1:9/v1", **endpoint)) == (expected,)
