"""The replay endpoint with OpenAI's Python and JavaScript clients, and its page in a real browser."""

from __future__ import annotations

import html
import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml
from rich.console import Console

from deltatap.delta import tables as delta_tables
from deltatap.driver.run import run
from deltatap.prices import Prices
from deltatap.settings_loading import load_settings
from tests import prompts
from tests.browser import opened
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import Row, SparkSession


pytestmark = pytest.mark.slow

NODE = Path(__file__).parents[1] / "node"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def replayed(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Row]]]:
    """The endpoint's URL, and the captures by request_id and mode."""
    folder = tmp_path_factory.mktemp("replay")
    rows = [
        ("plain", "Say it.", "gpt-4o-mini"),
        ("other", "Say something else.", "gpt-4o-mini"),
        ("calls", "Look it up.", "gpt-4o-mini", json.dumps({"tools": [TOOL]})),
        ("thinks", "Think.", "gpt-4o-mini!reasoning"),
        ("cut", "Break off.", "gpt-4o-mini!cut@8"),
        ("refused", "No.", "gpt-4o-mini!400"),
    ]
    prompts.write(spark, folder / "prompts", rows)
    config = folder / "config.yml"
    with start_simulator("--ttft-ms", "120", "--itl-ms", "15", "--tokens", "30") as simulator:
        capture = {"mode": "paired", "max_broken": 1, "max_attempts": 1}
        tree = prompts.config(folder, simulator.base_url, capture=capture)
        config.write_text(yaml.safe_dump(tree))
        settings = load_settings(tree)
        run(settings, spark, Prices(), Console(file=io.StringIO()))
    captured = spark.table(delta_tables.quoted(settings.captures.table)).collect()
    command = [sys.executable, "-m", "deltatap", "replay", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        start = "base_url of a client: "
        url = next(line for line in process.stdout if line.startswith(start)).removeprefix(start).strip()
        yield url, {f"{row['request_id']} {row['mode']}": row for row in captured}
        process.send_signal(signal.SIGTERM)


def request_body(row: Row, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(row["request"])
    return {**body, **changes}


def test_a_stream_is_replayed_at_its_pace(
    replayed: tuple[str, dict[str, Row]], record_property: pytest.FixtureRequest
) -> None:
    url, rows = replayed
    row = rows["plain stream"]
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    started, arrivals, text = time.perf_counter(), [], ""
    for chunk in client.chat.completions.create(**request_body(row)):
        if chunk.choices and chunk.choices[0].delta.content:
            arrivals.append(1000 * (time.perf_counter() - started))
            text += chunk.choices[0].delta.content
        if chunk.usage:
            assert chunk.usage.completion_tokens == row["usage_reported"]["output_tokens"]
    assert text == row["text"]
    recorded = [chunk["ms"] for chunk in row["chunks"] if chunk["kind"] == "content"]
    assert len(arrivals) == len(recorded)
    assert all(now >= at for now, at in zip(arrivals, recorded, strict=True)), "no chunk is early"
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/replay/stats") as response:  # noqa: S310 - loopback
        stats = json.load(response)
    assert stats["frames"] >= len(recorded)
    record_property("late_ms", stats["late_ms"])  # type: ignore[operator]


def test_a_whole_answer_is_replayed(replayed: tuple[str, dict[str, Row]]) -> None:
    url, rows = replayed
    row = rows["plain complete"]
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    started = time.perf_counter()
    answer = client.chat.completions.create(**request_body(row))
    assert 1000 * (time.perf_counter() - started) >= row["e2e_ms"]
    assert answer.choices[0].message.content == row["text"]
    assert answer.choices[0].finish_reason == row["finish_reason"]


def test_another_body_is_matched_by_its_last_prompt(replayed: tuple[str, dict[str, Row]]) -> None:
    url, rows = replayed
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    messages: Any = [{"role": "system", "content": "New."}, {"role": "user", "content": "Say something else."}]
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    assert answer.choices[0].message.content == rows["other complete"]["text"]
    with pytest.raises(openai.NotFoundError, match="no answer of the model whatever was captured for this prompt"):
        client.chat.completions.create(model="whatever", messages=messages)
    with pytest.raises(openai.NotFoundError, match="neither its request_hash nor its last prompt"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Never asked."}])


def test_tool_calls_and_reasoning_are_replayed(replayed: tuple[str, dict[str, Row]]) -> None:
    url, rows = replayed
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    row = rows["calls stream"]
    tool_calls = [
        call
        for chunk in client.chat.completions.create(**request_body(row))
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
    ]
    captured = json.loads(row["choices"][0]["tool_calls"])
    arguments = [
        "".join(call.function.arguments for call in tool_calls if call.index == at) for at in range(len(captured))
    ]
    assert arguments == [call["function"]["arguments"] for call in captured]
    assert len(tool_calls) == sum(chunk["kind"] == "tool_calls" for chunk in row["chunks"]), "each chunk has its piece"
    row = rows["thinks stream"]
    thought = "".join(
        getattr(choice.delta, "reasoning_content", None) or ""
        for chunk in client.chat.completions.create(**request_body(row))
        for choice in chunk.choices
    )
    assert thought == row["choices"][0]["reasoning"]


def test_a_broken_stream_breaks_again(replayed: tuple[str, dict[str, Row]]) -> None:
    url, rows = replayed
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    text = ""
    chunks = iter(client.chat.completions.create(**request_body(rows["cut stream"])))
    with pytest.raises(openai.APIConnectionError):  # noqa: PT012 - any chunk may raise it
        for chunk in chunks:
            text += chunk.choices[0].delta.content or ""
    assert text == rows["cut stream"]["text"]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**request_body(rows["refused stream"]))


@pytest.mark.node
def test_the_javascript_client_receives_the_stream(replayed: tuple[str, dict[str, Row]]) -> None:
    url, rows = replayed

    def streamed(row: Row) -> dict[str, Any]:
        command = ["node", str(NODE / "stream.mjs"), url, row["request"]]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        found: dict[str, Any] = json.loads(printed)
        return found

    row = rows["plain stream"]
    found = streamed(row)
    assert (found["text"], found["finish_reason"], found["error"]) == (row["text"], row["finish_reason"], None)
    assert found["usage"]["completion_tokens"] == row["usage_reported"]["output_tokens"]
    recorded = [chunk["ms"] for chunk in row["chunks"] if chunk["kind"] == "content"]
    assert len(found["ms"]) == len(recorded)
    assert all(now >= at for now, at in zip(found["ms"], recorded, strict=True)), "no chunk is early"
    broken = streamed(rows["cut stream"])
    assert broken["text"] == rows["cut stream"]["text"]
    assert broken["error"]


@pytest.mark.chromium
def test_the_page_shows_a_stream(replayed: tuple[str, dict[str, Row]], tmp_path: Path) -> None:
    url, rows = replayed
    ended = "document.getElementById('state').textContent === 'ended'"
    page, console = opened(url.removesuffix("/v1") + "/#request_id=plain", tmp_path, ended)
    assert console == []
    assert rows["plain stream"]["text"] in html.unescape(page)
