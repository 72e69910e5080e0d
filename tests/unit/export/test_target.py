"""The URL and the headers of ``deltatap export``."""

from __future__ import annotations

import pytest

from deltatap.errors import ConfigError
from deltatap.export.target import headers_of, shown, traces_url


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://h.example/api/2.0/otel", "https://h.example/api/2.0/otel/v1/traces"),
        ("https://h.example/api/2.0/otel/v1/traces/", "https://h.example/api/2.0/otel/v1/traces"),
        ("https://h.example/otlp?key=sk-1#x", "https://h.example/otlp/v1/traces?key=sk-1"),
    ],
)
def test_the_path_of_traces_is_added(given: str, expected: str) -> None:
    assert traces_url(given) == expected
    assert "sk-1" not in shown(expected)


@pytest.mark.parametrize(
    "given", ["", "127.0.0.1:4318", "ftp://h", "http://", "http://h:x", "http://h:0", "http://a b", "http://ü"]
)
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--otlp: expected an http"):
        traces_url(given)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="use --header") as error:
        traces_url("http://me:geheim@h")
    assert "geheim" not in str(error.value)


def test_headers_are_given_as_name_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLP_KEY", "Bearer a=b")
    assert headers_of(["X-A=1=2", " x-b = c ", "X-None=", "Authorization={env: OTLP_KEY}"]) == {
        "X-A": "1=2", "x-b": "c", "Authorization": "Bearer a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("geheim", "--header: expected NAME=VALUE"),
        ("a b=geheim", "--header: expected NAME=VALUE"),
        ("X=gehe\nim", "--header X: a header can contain only printable ASCII characters"),
        ("X={geheim}", "--header X: expected a value, {env: VARIABLE} or {secret: scope/key}"),
        ("X={env: geheim, secret: a/b}", "--header X: expected a value, {env: VARIABLE} or {secret: scope/key}"),
        ("X={env: 0.[}", "--header X: expected a value, {env: VARIABLE} or {secret: scope/key}"),
        ("X={env: " + "9" * 5000 + "}", "--header X: expected a value, {env: VARIABLE} or {secret: scope/key}"),
        ("X={env: [", "--header X: expected a value, {env: VARIABLE} or {secret: scope/key}"),
        ("X={env: NOT_SET}", "--header X.env: the environment variable NOT_SET is not set; set it"),
    ],
)
def test_a_wrong_header_is_named_without_its_value(given: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        headers_of([given])
    assert error.value.problems == (problem,)
