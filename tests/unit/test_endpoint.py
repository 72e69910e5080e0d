"""The settings of the endpoint: its URL, its headers, the proxy and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deltatap.config import Settings
from deltatap.endpoint import Source
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings
from tests.unit.test_config import problems

if TYPE_CHECKING:
    from pathlib import Path

AZURE = {"kind": "azure", "api_version": "2024-10-21"}


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ({"base_url": "https://x/v1?api-version=1"}, "base_url: must not contain a query (?) or a fragment (#); use endpoint.api_version"),
        ({"base_url": "https://x/v1?"}, "base_url: must not contain a query"),
        ({"base_url": "https://x/v1#top"}, "base_url: must not contain a query"),
        ({"base_url": "https://me@x/v1"}, "base_url: must not contain a user name or password; use endpoint.api_key"),
        ({"base_url": "https://@x/v1"}, "base_url: must not contain a user name"),
        ({"base_url": "api.openai.com/v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "ftp://x/v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "https:/x/v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "https:///v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "https://x/v 1"}, "base_url: expected an http:// or https:// URL without spaces"),
        ({"base_url": " https://x/v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "https://x/v1\n"}, "base_url: expected an http:// or https:// URL without spaces"),
        ({"base_url": "https://[::1/v1"}, "base_url: expected an http:// or https:// URL"),
        ({"base_url": "https://x/v1/chat/completions"}, "base_url: must not contain the path of the API, which deltatap appends; write https://x/v1"),
        ({"base_url": "https://[::1]:8/v1/chat/completions/"}, "base_url: must not contain the path of the API, which deltatap appends; write https://[::1]:8/v1"),
        ({"base_url": "https://x/v1/responses"}, "base_url: must not contain the path of the API, which deltatap appends; write https://x/v1"),
        ({"base_url": "https://x/v1/messages", "api": "messages"}, "base_url: must not contain the path of the API, which deltatap appends; write https://x/v1"),
        ({"base_url": "https://x/openai/deployments/d/chat/completions", **AZURE}, "base_url: must end before /openai/deployments; the deployment's name is endpoint.model"),
        ({"base_url": "https://x/openai/deployments/d", **AZURE}, "base_url: must not contain the path of the API, which deltatap appends; write https://x"),
        ({"proxy": "p:3128"}, "proxy: expected http://host:port"),
        ({"proxy": "http://"}, "proxy: expected http://host:port"),
        ({"proxy": "http://p:99999"}, "proxy: expected http://host:port"),
        ({"proxy": "http://p/path"}, "proxy: expected http://host:port"),
        ({"proxy": "ENV"}, "proxy: expected http://host:port"),
        ({"proxy": "https://p:3128"}, "proxy: deltatap does not support https:// proxies, only http:// ones"),
        ({"proxy": "socks5://p:1080"}, "proxy: deltatap does not support socks5:// proxies"),
        ({"proxy": {}}, "proxy: expected exactly one of env and secret"),
        ({"proxy": {"env": "A", "secret": "a/b"}}, "proxy: expected exactly one of env and secret"),
        ({"proxy": {"url": "http://p"}}, "proxy: expected http://host:port"),
        ({"proxy": 3128}, "proxy: expected http://host:port"),
        ({"tls": {"client_key": "k.pem"}}, "tls.client_cert: is missing; client_key is its key"),
        ({"tls": {"ca_file": ""}}, "tls.ca_file: expected text with at least 1 character"),
        ({"tls": {"verify": False}}, "tls.verify: unknown key; known keys: ca_file, client_cert, client_key"),
        ({"headers": {"X-A": 1}}, "headers.X-A: expected text, {env: NAME} or {secret: scope/key}"),
        ({"headers": {"X-A": None}}, "headers.X-A: expected text, {env: NAME} or {secret: scope/key}"),
        ({"headers": {"X-A": {"environment": "A"}}}, "headers.X-A: expected text, {env: NAME} or {secret: scope/key}"),
        ({"headers": {"X-A": {"secret": "no-scope"}}}, "headers.X-A: expected text, {env: NAME} or {secret: scope/key}"),
        ({"headers": {"X-A": {}}}, "headers.X-A: expected exactly one of env and secret"),
        ({"headers": {"X A": "a"}}, "headers: a name contains a character that header names cannot contain"),
        ({"headers": {"": "a"}}, "headers: a name contains a character that header names cannot contain"),
        ({"headers": {"X-Ä": "a"}}, "headers: a name contains a character"),
        ({"headers": {"X-A": "a\r\nb: c"}}, "headers.X-A: a header can contain only printable ASCII characters"),
        ({"headers": {"X-A": "Zoë"}}, "headers.X-A: a header can contain only printable ASCII characters"),
        ({"headers": {"X-A": "a", "x-a": "b"}}, "headers.x-a: is set twice"),
        ({"headers": {"content-length": "1"}}, "headers.content-length: must not be set: deltatap sets it"),
        ({"headers": {"Host": "a"}}, "headers.Host: must not be set: deltatap sets it"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers.Transfer-Encoding: must not be set"),
        ({"headers": {"Accept-Encoding": "br"}}, "headers.Accept-Encoding: must not be set"),
        ({"headers": {"Proxy-Authorization": {"env": "P"}}}, "headers.Proxy-Authorization: must not be set: write the proxy's"),
        ({"headers": {"authorization": {"env": "A"}}}, "headers.authorization: endpoint.api_key sets this header; to send your own value, set endpoint.api_key to null"),
        ({"headers": {"X-API-Key": {"env": "A"}}, "api": "messages"}, "headers.X-API-Key: endpoint.api_key sets this header"),
        ({"headers": {"api-key": {"env": "A"}}, **AZURE}, "headers.api-key: endpoint.api_key sets this header"),
        ({"headers": {"Authorization": {"env": "A"}}, "kind": "azure", "api_version": "1", "api_key": {"identity": "azure"}}, "headers.Authorization: endpoint.api_key sets"),
    ],
)  # fmt: skip
def test_each_problem_of_the_network_is_one_line(endpoint: dict[str, object], expected: str) -> None:
    found = problems({"endpoint": endpoint})
    assert [problem for problem in found if problem.startswith(f"settings: endpoint.{expected}")], found
    assert len(found) == len(set(found))
    assert all("\n" not in problem for problem in found)


@pytest.mark.parametrize(
    "endpoint",
    [
        {"base_url": "https://x/v1/"},
        {"base_url": "http://[::1]:8000/v1"},
        {"base_url": "https://x/serving-endpoints", "kind": "databricks"},
        {"base_url": "https://x.openai.azure.com/openai", **AZURE},
        {"proxy": "env"},
        {"proxy": "http://user:p%40ss@proxy.example.org:3128/"},
        {"proxy": "http://[fd00::1]:3128"},
        {"proxy": {"secret": "scope/key"}},
        {"headers": {"X-A": "", "X-B": "run {run_id}", "X-C": {"env": "A"}, "X-D": {"secret": "a/b"}}},
        {"headers": {"Authorization": "Bearer x"}, "api_key": None},
        {"headers": {"Authorization": {"env": "GATEWAY"}}, "api": "messages"},
        {"headers": {"Authorization": {"env": "GATEWAY"}}, **AZURE},
        {"tls": {"client_cert": "both.pem"}},
    ],
)
def test_networks_of_companies_can_be_described(endpoint: dict[str, object]) -> None:
    settings = load_settings({"endpoint": endpoint})
    assert load_settings(settings) == settings


def test_headers_and_the_proxy_can_be_overridden() -> None:
    settings = load_settings(
        {}, ["endpoint.headers.X-A={run_id}", "endpoint.headers.X-B={env: B}", "endpoint.proxy={secret: a/b}"]
    )
    assert settings.endpoint.headers == {"X-A": "{run_id}", "X-B": Source(env="B")}
    assert settings.endpoint.proxy == Source(secret="a/b")  # noqa: S106 - its name
    assert load_settings(settings, ["endpoint.proxy=http://p:1"]).endpoint.proxy == "http://p:1"
    assert load_settings(settings, ["endpoint.proxy="]).endpoint.proxy is None


def test_paths_of_certificates_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({}, ["endpoint.tls.ca_file=ca.pem"]).endpoint.tls.ca_file == str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("Authorization", True),
        ("cf-aig-authorization", True),
        ("Helicone-Auth", True),
        ("Ocp-Apim-Subscription-Key", True),
        ("X-Auth-Token", True),
        ("Cookie", True),
        ("X-Author", False),
        ("X-Team", False),
        ("anthropic-beta", False),
        ("X-Keyboard", False),
    ],
)
def test_stored_settings_hide_headers_that_hold_a_credential(name: str, *, secret: bool) -> None:
    settings = load_settings({"endpoint": {"api_key": None, "headers": {name: "value-4711"}}})
    stored = settings.model_dump(mode="json")
    assert stored["endpoint"]["headers"] == {name: "***" if secret else "value-4711"}
    assert "value-4711" not in repr(settings)
    Settings.model_validate(stored)


def test_no_message_contains_a_pasted_key() -> None:
    values: list[object] = ["sk-secret", {"env": 5, "sk-secret": "x"}, {"value": "sk-secret"}, ["sk-secret"]]
    endpoints: list[dict[str, object]] = [{"api_key": value} for value in values]
    endpoints += [
        {"proxy": value} for value in (*values, "http://u:sk-secret@", "http://u:sk-secret@p:x", "//u:sk-secret@p")
    ]
    endpoints += [{"headers": {"X-A": value}} for value in (*values[1:], "sk-secret\n")]
    endpoints += [{"headers": "sk-secret"}, {"base_url": "https://u:sk-secret@x/v1/responses?key=sk-secret#sk-secret"}]
    for endpoint in endpoints:
        with pytest.raises(ConfigError) as caught:
            load_settings({"endpoint": endpoint})
        assert "sk-secret" not in repr(caught.value).replace("endpoint.api_key.sk-secret", "")
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
