"""One job over every case of tests/answers, mixed among good prompts: no answer breaks the run or another row.

The second start gets good answers to everything. What it calls is what the first one left owed.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import yaml

from deltatap import cli
from tests import prompts
from tests.answers import CASES
from tests.answers.case import CAPTURE, DONE, GOOD, KEY, ROLE, STOP, TIMEOUTS, answer_of, chunked, delta, usage
from tests.notebook import with_secrets
from tests.raw_server import raw_server
from tests.runs import captured

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.raw_server import Answer, Asked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

POISON = {case.name: case for case in CASES if case.api == "chat" and case.mode == "stream" and not case.alone}
HEALTHY = [f"What is {n} plus {n}?" for n in range(200)]


def good_answer(prompt: str) -> Answer:
    words = [delta(content=f"{word} ") for word in prompt.split()]
    return chunked(ROLE, *words, STOP, usage(9, len(words)), DONE)


def test_every_case_among_good_prompts(
    spark: SparkSession, tables: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_secrets(monkeypatch, {"answers/key": KEY})
    rows = [(name, name, f"model-{at}") for at, name in enumerate(POISON)]
    rows += [(prompt, prompt, "good-model") for prompt in HEALTHY]
    random.Random(15).shuffle(rows)  # noqa: S311 - the same order every time
    prompts.write(spark, tables / "prompts", rows)
    poisoned = True

    def choose(asked: Asked) -> Answer:
        if asked.prompt in POISON:
            return answer_of(POISON[asked.prompt], asked.before) if poisoned else chunked(*GOOD)
        return good_answer(asked.prompt)

    with raw_server(choose) as server:
        tree = prompts.config(
            tables,
            server.base_url,
            endpoint={"api_key": {"secret": "answers/key"}},
            capture={**CAPTURE, "retry_for_s": 6, "fail_above_error_rate": 1.0, "concurrency": 64},
            timeouts={**TIMEOUTS, "idle_s": 2},
        )
        (tables / "c.yml").write_text(yaml.safe_dump(tree))

        code = cli.run(cli.capture, tables / "c.yml")
        output = "".join(capfd.readouterr())
        assert code == cli.OK, output
        found = captured(spark, tables)
        first = {row["request_id"]: row for row in found}
        assert len(first) == len(rows) == len(found)
        assert {name: (first[name]["status"], first[name]["text"]) for name in HEALTHY} == {
            name: ("completed", f"{name} ") for name in HEALTHY
        }
        assert {server.calls(name) for name in HEALTHY} == {1}
        wrong = {
            name: (first[name]["status"], first[name]["error"])
            for name, case in POISON.items()
            if case.status not in {None, first[name]["status"]}
        }
        assert not wrong, "\n".join(map(str, wrong.items()))
        assert KEY not in output
        assert KEY not in repr(first)

        poisoned, calls = False, Counter({name: server.calls(name) for name in [*POISON, *HEALTHY]})
        code = cli.run(cli.capture, tables / "c.yml")
        output = "".join(capfd.readouterr())
        assert code == cli.OK, output
        called = {name for name, before in calls.items() if server.calls(name) > before}
    expected = {name for name, case in POISON.items() if case.owed}
    known = {*HEALTHY, *(name for name, case in POISON.items() if case.owed in {True, False})}
    assert called & known == expected
