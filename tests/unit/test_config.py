"""All settings: defaults, overrides, and the line that names each problem."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from deltatap.config import Settings
from deltatap.errors import ConfigError
from deltatap.settings_loading import load_settings

LOCAL = Path(__file__).parents[2] / "conf/local.yml"


def problems(source: object, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_settings(source, overrides)  # type: ignore[arg-type]
    return caught.value.problems


def test_local_yml_lists_every_key_with_its_default() -> None:
    stated = yaml.safe_load(LOCAL.read_text())
    defaults = Settings().model_dump()
    assert load_settings(LOCAL) == Settings()
    assert {section: set(keys) for section, keys in stated.items() if isinstance(keys, dict)} == {
        section: set(keys) for section, keys in defaults.items() if isinstance(keys, dict)
    }


@pytest.mark.parametrize("key", ["state.dir", "prompts.table", "endpoint.tls.ca_file"])
def test_a_path_in_a_home_folder_that_does_not_exist(key: str) -> None:
    (problem,) = problems(LOCAL, f"{key}=~no-such-user/x")
    assert key in problem
    assert "expected a path whose ~ stands for a home folder that exists" in problem


def test_overrides_are_typed_by_the_key_they_set() -> None:
    settings = load_settings(
        LOCAL,
        ["run.id=123", "capture.concurrency=8", "request.temperature=0.5", "run.labels.team=a.b", "endpoint.model=1e5"],
    )
    assert settings.run.id == "123"
    assert settings.capture.concurrency == 8
    assert settings.request == {"temperature": 0.5}
    assert settings.run.labels == {"team": "a.b"}
    assert settings.endpoint.model == "1e5"


def test_a_problem_of_an_override_names_set() -> None:
    found = problems({"capture": {"limit": "x"}}, "run.labels={night: 1}", "capture.concurrency=x", "captur.e=1")
    assert sorted(found) == [
        "--set captur: unknown key; did you mean capture?",
        "--set capture.concurrency: expected an integer, found 'x'",
        "--set run.labels.night: expected a string, found 1; write it in quotes",
        "settings: capture.limit: expected an integer, found 'x'",
    ]


def test_an_empty_override_unsets_a_key() -> None:
    settings = load_settings(
        {"capture": {"concurrency": 3, "limit": 5}}, ["endpoint.api_key=", "capture.concurrency=", "capture.limit="]
    )
    assert settings.endpoint.api_key is None
    assert settings.capture.concurrency == 64
    assert settings.capture.limit is None


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"captur": {}}, "settings: captur: unknown key; did you mean capture?"),
        ({"capture": {"concurency": 3}}, "settings: capture.concurency: unknown key; did you mean concurrency?"),
        ({"capture": {"zzz": 3}}, "settings: capture.zzz: unknown key; known keys: arrivals, "),
        ({"capture": {"concurrency": "8"}}, "settings: capture.concurrency: expected an integer, found '8'"),
        (
            {"capture": {"concurrency": 0}},
            "settings: capture.concurrency: expected a number greater than or equal to 1, found 0",
        ),
        (
            {"capture": {"mode": "both"}},
            "settings: capture.mode: expected 'stream', 'complete' or 'paired', found 'both'",
        ),
        (
            {"endpoint": {"api": "chatt"}},
            "settings: endpoint.api: expected 'chat', 'completions'",
        ),
        ({"endpoint": {"api_key": {}}}, "settings: endpoint.api_key: expected exactly one of env, secret and identity"),
        (
            {"endpoint": {"kind": "azure", "base_url": "https://x.openai.azure.com"}},
            "settings: endpoint.api_version: is missing; set one, such as 2024-10-21, or use a base_url that ends with",
        ),
        ({"endpoint": {"api_version": "2024-10-21"}}, "settings: endpoint.api_version: is only valid for kind azure"),
        ({"request": {"messages": []}}, "settings: request.messages: must not be set: deltatap sets it"),
        ({"endpoint": {"api": "responses"}, "request": {"input": "x"}}, "settings: request.input: must not be set"),
        (
            {"limits": {"requests_per_minute": 0.5}},
            "settings: limits.requests_per_minute: expected a number greater than or equal to 1, found 0.5",
        ),
        ({"budget": {"tokens": 1.5}}, "settings: budget.tokens: expected an integer, found 1.5"),
        *(
            ({section: {name: odd}}, f"settings: {section}.{name}: expected a finite number, found {odd}")
            for section, name in (("budget", "cost_usd"), ("analysis", "max_loop_lag_ms"), ("timeouts", "total_s"))
            for odd in (math.inf, math.nan)
        ),
        (
            {"endpoint": {"api_key": {"secret": "no-scope"}}},
            "settings: endpoint.api_key.secret: expected {env: NAME}, the name of an environment variable",
        ),
        *(
            ({"run": {"id": f"a{sign}b"}}, "settings: run.id: expected text without line breaks and control characters")
            for sign in "\n\r\0\x1b\x85\u2028"
        ),
        ({"run": {"id": ""}}, "settings: run.id: expected text with at least 1 character, found ''"),
        ({"captures": {"table": ""}}, "settings: captures.table: expected text with at least 1 character, found ''"),
        ({"capture": {"keep_raw": 1}}, "settings: capture.keep_raw: expected a boolean, found 1"),
        ({"prompts": {"table": None}}, "settings: prompts: expected exactly one of table and sql"),
        ({"prompts": {"sql": "SELECT 1"}}, "settings: prompts: expected exactly one of table and sql"),
        (
            {"endpoint": {"base_url": "localhost:8089"}},
            "settings: endpoint.base_url: expected an http:// or https:// URL",
        ),
        (
            {"endpoint": {"base_url": "http://x:abc/v1"}},
            "settings: endpoint.base_url: expected an http:// or https:// URL",
        ),
        (
            {"endpoint": {"base_url": "http://[::1/v1", "kind": "azure"}},
            "settings: endpoint.base_url: expected an http:// or https:// URL",
        ),
        ({"endpoint": {"base_url": "http://me:pw@x/v1"}}, "settings: endpoint.base_url: must not contain a user name"),
        (
            {"capture": {"resume": True}},
            "settings: capture.resume: expected endpoint.api responses, found chat, which cannot resume streams",
        ),
        (
            {"capture": {"resume": True, "mode": "complete"}, "endpoint": {"api": "responses"}},
            "settings: capture.resume: expected capture.mode stream or paired, found complete",
        ),
        (
            {"endpoint": {"api": "responses"}, "request": {"background": True}},
            "settings: request.background: use capture.resume: true instead",
        ),
        (
            {"capture": {"resume": True}, "endpoint": {"api": "responses"}, "request": {"store": False}},
            "settings: request.store: false cannot be combined with capture.resume",
        ),
        ({"request": {"stream": False}}, "settings: request.stream: must not be set"),
        (
            {"request": {"stream_options": {"include_usage": True}}},
            "settings: request.stream_options.include_usage: must not be set: deltatap sets it; use endpoint.include_usage",
        ),
        ({"request": {"stream_options": True}}, "settings: request.stream_options: expected an object"),
        ({"capture": {"arrivals": 5}}, "settings: capture.arrivals: expected a mapping of keys, found 5"),
        ({"capture": {"arrivals": {"process": "poisson"}}}, "settings: capture.arrivals.per_second: expected "),
        (
            {"capture": {"arrivals": {"per_second": 0}}},
            "settings: capture.arrivals.per_second: expected a number greater than 0, found 0",
        ),
        (
            {"capture": {"arrivals": {"per_second": 1, "process": "uniform"}}},
            "settings: capture.arrivals.process: expected 'poisson' or 'constant', found 'uniform'",
        ),
        (
            {"capture": {"arrivals": {"per_second": 1, "rate": 2}}},
            "settings: capture.arrivals.rate: unknown key; known keys: per_second, process, seed",
        ),
        (
            {"capture": {"arrivals": {"per_second": 1}, "mode": "paired"}},
            "settings: capture.arrivals: expected capture.mode stream or complete, found paired",
        ),
        ({"timeouts": {"total_s": 5}}, "settings: timeouts.total_s: expected at least first_byte_s and idle_s"),
        (
            {"captures": {"table": "a.b"}, "runs": {"table": "a.b"}},
            "settings: captures.table and runs.table: expected two different",
        ),
        (
            {"prompts": {"table": "data/captures"}},
            "settings: prompts.table: must differ from captures.table and runs.table",
        ),
    ],
)
def test_each_problem_names_the_path_of_its_key(tree: dict[str, object], expected: str) -> None:
    assert any(problem.startswith(expected) for problem in problems(tree)), problems(tree)


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"captur": 1, "capture": {"concurrency": 0}}, "nonsense", "capture.limit=-1")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", ", line 1, column 6: is not valid YAML: "),
        (b"- 1", ": expected a mapping of sections, found list"),
        (b"\xff\xfe", ": is not UTF-8 text"),
        (None, " does not exist; pass another file with --config"),
    ],
)
def test_an_invalid_file_is_reported_with_its_name_and_position(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "x.yml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}{expected}")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("# nothing\n")
    assert load_settings(tmp_path / "x.yml") == Settings()


def test_paths_become_absolute_and_names_do_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        {"captures": {"table": "x/y"}, "runs": {"table": "main.llm.runs"}, "prompts": {"table": "s3://b/p"}}
    )
    assert settings.captures.table == str(tmp_path / "x/y")
    assert settings.runs.table == "main.llm.runs"
    assert settings.prompts.table == "s3://b/p"


def test_a_section_without_keys_has_its_defaults() -> None:
    assert load_settings({"captures": {}}).captures.table.endswith("data/captures")


def test_prices_can_be_one_file_or_several() -> None:
    assert load_settings({}, ["prices=mine.yml"]).prices == "mine.yml"
    assert load_settings({}, ["prices=[mine.yml, conf/prices.yml]"]).prices == ["mine.yml", "conf/prices.yml"]
    assert load_settings({}, ["prices="]).prices is None


def test_capture_mode_gives_the_modes_of_a_run() -> None:
    assert [load_settings({"capture": {"mode": mode}}).capture.modes for mode in ("stream", "complete", "paired")] == [
        ("stream",), ("complete",), ("stream", "complete"),
    ]  # fmt: skip


def test_moderation_is_off_and_asks_the_endpoint_unless_there_are_patterns() -> None:
    assert Settings().moderation is None

    def asks(**given: object) -> str | None:
        moderation = load_settings({"moderation": given}).moderation
        assert moderation is not None
        return moderation.asks

    assert asks() == "omni-moderation-latest"
    assert asks(model="mine") == "mine"
    assert asks(patterns=["x"]) is None
    assert asks(patterns=["x"], model="mine") == "mine"


def test_moderation_can_be_set_and_unset() -> None:
    moderation = load_settings({}, ["moderation.every_chars=5", "moderation.patterns=[a, '(?i)b']"]).moderation
    assert moderation is not None
    assert (moderation.every_chars, moderation.stop, moderation.patterns) == (5, False, ["a", "(?i)b"])
    assert load_settings({"moderation": {"stop": True}}, ["moderation="]).moderation is None


RE2 = "expected a regular expression of RE2, which has no lookaround and no backreferences"
NOT_EMPTY = "expected a regular expression that does not match an empty text"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"patterns": ["ok", "("]}, f"moderation.patterns.1: {RE2} (missing ): (), found '('"),
        ({"patterns": ["(?=x)y"]}, f"moderation.patterns.0: {RE2} (invalid perl operator: (?=), found '(?=x)y'"),
        ({"patterns": ["x*"]}, f"moderation.patterns.0: {NOT_EMPTY}, found 'x*'"),
        ({"patterns": "x"}, "moderation.patterns: expected a list, found 'x'"),
        ({"patterns": [1]}, "moderation.patterns.0: expected a string, found 1; write it in quotes"),
        ({"every_chars": 0}, "moderation.every_chars: expected a number greater than or equal to 1, found 0"),
        ({"every_chars": -5}, "moderation.every_chars: expected a number greater than or equal to 1, found -5"),
        ({"stop": "maybe"}, "moderation.stop: expected a boolean, found 'maybe'"),
        ({"model": ""}, "moderation.model: expected text with at least 1 character, found ''"),
        ({"each_chars": 5}, "moderation.each_chars: unknown key; did you mean every_chars?"),
    ],
)  # fmt: skip
def test_a_moderation_that_cannot_be_made_is_one_clear_problem(given: dict[str, object], expected: str) -> None:
    assert problems({"moderation": given}) == (f"settings: {expected}",)
