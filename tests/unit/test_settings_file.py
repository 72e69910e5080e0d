"""YAML as settings files use it: what each text means, and where a file is wrong."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from deltatap.errors import ConfigError
from deltatap.settings_file import parse, read
from deltatap.settings_loading import load_settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-11-25", "2026-11-25"),
        ("2026-11-25 10:00:00", "2026-11-25 10:00:00"),
        ("0755", "0755"),
        ("01234", "01234"),
        ("0o17", "0o17"),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("22:22:22", "22:22:22"),
        ("no", "no"),
        ("on", "on"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("40_000", 40000),
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.0", -0.0),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("1e", "1e"),
        ("[1, 0.5, a]", [1, 0.5, "a"]),
        ("{50256: -100, yes: 1, 1.50: a, null: b, 2026-01-01: c}", {"50256": -100, "yes": 1, "1.50": "a", "null": "b", "2026-01-01": "c"}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &x {b: 1}\nc: {b: 2, <<: *x}", {"a": {"b": 1}, "c": {"b": 2}}),
        ("# nothing", None),
        ("---\na: 1\n...\n", {"a": 1}),
    ],
)  # fmt: skip
def test_what_a_text_means(text: str, value: Any) -> None:
    found = parse(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("budget: {cost_usd: 5}\nbudget: {runtime_s: 600}", "line 2, column 1: is not valid YAML: budget is set twice, first on line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4, column 3: is not valid YAML: b is set twice, first on line 2"),
        ("{1: a, '1': b}", "line 1, column 8: is not valid YAML: 1 is set twice, first on line 1"),
        ("{[a]: b}", "line 1, column 2: is not valid YAML: a key must be text"),
        ("a: !!python/object:os.system {}", "line 1, column 4: is not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "line 2, column 1: is not valid YAML: but found another document"),
        ("a: [1", "line 1, column 6: is not valid YAML: expected ',' or ']'"),
        ("a:\tb: c", "line 1"),
        ("a: *x", "line 1, column 4: is not valid YAML: found undefined alias"),
        ("a: \0", "is not valid YAML: special characters are not allowed"),
        ("[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("9" * 5000, "is not valid YAML: Exceeds the limit"),
    ],
)  # fmt: skip
def test_a_wrong_text_says_where(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}"):
        parse(text)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: 1\na: 2", ", line 2, column 1: is not valid YAML: a is set twice, first on line 1"),
        ("a: 1".encode("utf-16"), ": is not UTF-8 text (byte 0)"),
        (b"- a", ": expected a mapping of sections, found list"),
        (b"a: \xff", ": is not UTF-8 text (byte 3)"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "c.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert error.value.problems == (f"{path}{problem}",)


def test_an_empty_file_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    for content, value in ((b"", {}), (b"\xef\xbb\xbfrun: {id: a}", {"run": {"id": "a"}})):
        path.write_bytes(content)
        assert read(path) == value


@pytest.mark.parametrize(
    ("text", "overrides", "section", "expected"),
    [
        ("request: {metadata: {day: 2026-11-25}}", (), "request", {"metadata": {"day": "2026-11-25"}}),
        ("", ("request.metadata.day=2026-11-25",), "request", {"metadata": {"day": "2026-11-25"}}),
        ("request: {logit_bias: {50256: -100, a: 1}}", (), "request", {"logit_bias": {"50256": -100, "a": 1}}),
        ("request: {top_p: 1e-3}", (), "request", {"top_p": 0.001}),
        ("request: {}", ("request.stop==",), "request", {"stop": "="}),
        ("request: {}", ("request.stop=a=b",), "request", {"stop": "a=b"}),
        ("request: {}", ("request.seed=0755",), "request", {"seed": "0755"}),
        ("run: {labels: {country: no, day: 2026-01-01}}", (), "run", {"id": None, "labels": {"country": "no", "day": "2026-01-01"}}),
    ],
)  # fmt: skip
def test_values_arrive_as_they_were_written(
    tmp_path: Path, text: str, overrides: tuple[str, ...], section: str, expected: Any
) -> None:
    path = tmp_path / "c.yml"
    path.write_text(text)
    settings = load_settings(path, overrides)
    assert settings.model_dump()[section] == (
        expected | settings.request if overrides and section == "request" else expected
    )


def test_yes_and_no_are_booleans_where_a_key_is_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("capture: {keep_raw: yes}\nendpoint: {include_usage: Off, name: on}")
    settings = load_settings(path, ("capture.reuse=on",))
    assert (settings.capture.keep_raw, settings.endpoint.include_usage, settings.endpoint.name) == (True, False, "on")
    assert settings.capture.reuse


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"request": {"a": [{"b": float("nan")}]}}, "request: expected a JSON value in a[0].b, found nan"),
        ({"request": {"a": {1, 2}}}, "request: expected a JSON value in a, found set"),
        ({"request": {"a": b"x"}}, "request: expected a JSON value in a, found bytes"),
        ({"request": {"a": "cut \ud83d"}}, "request: expected a JSON value in a, found text with half of a"),
        ({"state": {"dir": "s3a://b/state"}}, "state.dir: expected a path on this machine or under /Volumes"),
        ({"state": {"dir": "dbfs:/Volumes/a/b"}}, "state.dir: expected a path on this machine or under /Volumes, such as /Volumes/a/b"),
        ({"state": {"dir": "file:///tmp/x"}}, "state.dir: expected a path on this machine or under /Volumes, such as /tmp/x"),
        ({"captures": {"table": "a..b"}}, "captures.table: expected a path with a /, or a name such as catalog.schema.table"),
        ({"captures": {"table": "`a"}}, "captures.table: expected a path with a /, or a name such as"),
        ({"captures": {"table": " "}}, "captures.table: expected a path with a /, or a name such as"),
        ({"capture": {"limit": 2**31}}, "capture.limit: expected a number less than or equal to 2147483647, found 2147483648"),
        ({"capture": {"sample": 0.1}}, "capture.sample: expected a mapping of keys, found 0.1"),
        ({"run": {"id": 1.1}}, "run.id: expected a string, found 1.1; write it in quotes"),
        ({"captures": {"table": "a.`b`c"}}, "captures.table: expected a path with a /, or a name such as"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_named(tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(tree)
    assert error.value.problems[0].startswith(f"settings: {problem}")


def test_dates_in_a_dict_are_text() -> None:
    assert load_settings({"request": {"day": date(2026, 1, 2)}}).request == {"day": "2026-01-02"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("s3a://bucket/x/captures", "s3a://bucket/x/captures"),
        ("abfss://c@a.dfs.core.windows.net/x/", "abfss://c@a.dfs.core.windows.net/x"),
        ("dbfs:/x/y", "dbfs:/x/y"),
        ("file:///x/y", "file:///x/y"),
        ("/x/y", "/x/y"),
        ("~/x", str(Path.home() / "x")),
        ("x/y", str(Path("x/y").absolute())),
        ("my-cat.s.prompts", "my-cat.s.prompts"),
        ("`my.cat`.`a``b`.größe", "`my.cat`.`a``b`.größe"),
        ("my prompts", "my prompts"),
        ("delta.`/x/y z`", "/x/y z"),
        ("DELTA.`s3a://b/x`", "s3a://b/x"),
    ],
)
def test_the_location_of_a_table(table: str, expected: str) -> None:
    assert load_settings({"captures": {"table": table}}).captures.table == expected
