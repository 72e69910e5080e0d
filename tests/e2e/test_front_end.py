"""A front end on the replay: the pace of chunks, the faults that a request asks for, and pages in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.browser import browse
from tests.recaptured import captured_rows, replaying, write_table
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser import Tab

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "front-end"
ROWS = {
    "plain": "gpt-4o-mini",
    "cut": "gpt-4o-mini!cut@4",
}
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Rows]]:
    """The URL of a replay, and the rows by request_id. All are captured from chat completions."""
    folder = tmp_path_factory.mktemp("replay")
    asked = [{"request_id": name, "prompt": f"Say {name}.", "model": model} for name, model in ROWS.items()]
    with start_simulator("--ttft-ms", "60", "--itl-ms", "10", "--tokens", "20") as simulator:
        rows = captured_rows(folder / "chat", simulator.base_url, "chat", asked, ["stream"] * len(asked))
    with replaying(write_table(folder, rows)) as url:
        yield url, {row["request_id"]: row for row in rows}


def test_the_chunks_arrive_at_the_captured_pace(replayed: tuple[str, Rows], record_property: Any) -> None:
    url, rows = replayed
    row = rows["plain"]
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    client.models.list()  # opens the connection
    errors = []
    for _ in range(3):
        started, arrivals = time.perf_counter(), list[float]()
        body = {**json.loads(row["request"]), "stream": True}
        for chunk in client.chat.completions.create(**body):
            now = 1000 * (time.perf_counter() - started)
            arrivals += [now for choice in chunk.choices if choice.delta.content]
        due = [chunk["ms"] for chunk in row["chunks"] if chunk["kind"] == "content"]
        gaps = [(b - a) - (d - c) for a, b, c, d in zip(arrivals, arrivals[1:], due, due[1:], strict=False)]
        errors += [abs(gap) for gap in gaps]
    p50 = sorted(errors)[len(errors) // 2]
    record_property("pace_error_ms_p50", p50)
    assert p50 < 20  # other tests may keep this machine busy


def test_faults_reach_a_client(replayed: tuple[str, Rows]) -> None:
    url, rows = replayed
    plain = rows["plain"]
    texts = [chunk["text"] for chunk in plain["chunks"] if chunk["kind"] == "content"]
    body = {**json.loads(plain["request"]), "stream": True}

    def streamed(**options: str) -> tuple[str, Any, bool]:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.5)
        text, usage = "", None
        try:
            for chunk in client.chat.completions.create(**body, extra_query=options):
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                usage = chunk.usage or usage
        except openai.APIError:
            return text, usage, True
        return text, usage, False

    assert streamed(cut="3", speed="0") == ("".join(texts[:3]), None, True)
    assert streamed(stall="3", speed="0") == ("".join(texts[:3]), None, True), "the client's timeout ends it"
    assert streamed(drop_usage="1", speed="0") == (plain["text"], None, False)
    for options in ({"merge": "5"}, {"split": "7"}, {"bytes_per_s": "1000000"}, {"from_ms": "50"}):
        text, usage, wrong = streamed(**options, speed="10")
        assert (text, usage is not None, wrong) == (plain["text"], True, False)
    assert streamed(loop="2", speed="0")[0] == 2 * plain["text"]


@pytest.mark.chromium
def test_a_page_of_another_origin_reads_streams(replayed: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = replayed
    page = (EXAMPLE / "index.html").read_bytes()
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_bytes(page)
    command = [shutil.which("python3") or "python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]

    async def visit(tab: Tab) -> list[list[Any]]:
        found = []
        for id_ in ("plain", "cut"):
            stream = f"{url}/chat/completions?request_id={id_}".replace("?", "%3F")
            ended = (
                "['fetch-state','events-state'].every((id) => document.getElementById(id).textContent !== 'waiting')"
            )
            await tab.open(f"{origin}/?stream={stream}", ended)
            values = [
                f"document.getElementById('{id_}').textContent"
                for id_ in ("fetch", "fetch-state", "events", "events-state")
            ]
            found.append([await tab.value(value) for value in values])
        return found

    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        origin = f"http://127.0.0.1:{process.stdout.readline().split(' port ')[1].split()[0]}"
        try:
            plain, cut = browse(tmp_path / "profile", visit)
        finally:
            process.terminate()
    assert plain == [rows["plain"]["text"], "ended", rows["plain"]["text"], "ended"]
    assert (cut[0], cut[2], cut[3]) == (rows["cut"]["text"], rows["cut"]["text"], "broke off")
    assert cut[1].startswith("broke off")


@pytest.mark.chromium
def test_the_page_shows_streams_beside_whole_answers(replayed: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = replayed

    async def visit(tab: Tab) -> list[Any]:
        link = "/#run_id=run-1&request_id=plain&run_id=run-1&request_id=cut"
        await tab.open(url.removesuffix("/v1") + link, "document.getElementById('state').textContent === 'ended'")
        values = ("[...document.querySelectorAll('.streamed')].map((each) => each.textContent.trim())",
                  "[...document.querySelectorAll('.whole')].map((each) => each.textContent.trim())")  # fmt: skip
        return [await tab.value(value) for value in values]

    streamed, whole = browse(tmp_path, visit)
    assert sorted(streamed) == sorted(rows[id_]["text"].strip() for id_ in ("plain", "cut"))
    assert sorted(whole) == sorted([rows["plain"]["text"].strip(), ""])


@pytest.mark.node
def test_the_example_passes_its_own_tests() -> None:
    done = subprocess.run(["node", "--test"], cwd=EXAMPLE, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
