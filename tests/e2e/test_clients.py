"""Each client reads replayed rows of each API: whole answers at their pace, broken streams, errors, and refusals."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import openai
import pytest

from deltatap.api.registry import NAMES, specification
from tests.browser import browse
from tests.recaptured import captured_rows, replaying, write_table
from tests.simulation import start_simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.browser import Tab

pytestmark = pytest.mark.slow

NODE = Path(__file__).parents[1] / "node" / "clients.mjs"
ROWS = {
    "plain": "gpt-4o-mini",
    "length": "gpt-4o-mini!length",
    "cut": "gpt-4o-mini!cut@4",
    "error": "gpt-4o-mini!error_event@4",
    "refused": "gpt-4o-mini!429=0.05",
}
RETRY_AFTER = "0.05"
# How each API names the end of `plain` and of `length`, and the clients that name it otherwise.
ENDS: dict[str, tuple[str | None, str | None]] = {
    "chat": ("stop", "length"),
    "completions": ("stop", "length"),
    "responses": ("completed", "max_output_tokens"),
    "messages": ("end_turn", "max_tokens"),
}
OWN_ENDS: dict[tuple[str, str], tuple[str | None, str | None]] = {
    **{("ai-sdk", api): ("stop", "length") for api in NAMES},
    ("langchain", "responses"): ("completed", None),  # it ignores `response.incomplete`
}
# These clients end a stream with `response.failed` as if nothing had happened.
IGNORE_FAILED = ("ai-sdk", "langchain")


@dataclass(frozen=True)
class Case:
    """A request of a client through an API, for a row that was captured from the same API or another one."""

    client: str
    api: str
    source: str
    name: str

    @property
    def request_id(self) -> str:
        return f"{self.source}-{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-deltatap-request-id": self.request_id}


@dataclass
class Found:
    """What a client received.

    Attributes:
        ms: the arrival of each piece of the text, from any start.
        finish: the reason for the end, in the client's words.
        error: status, type, code, message and retry_after, as far as the client shows them; None for no error.
    """

    text: str = ""
    ms: list[float] = field(default_factory=list)
    finish: str | None = None
    error: dict[str, Any] | None = None


Batches = list[list[Case]]
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Rows]]:
    """The URL of a replay, and the rows by request_id."""
    folder = tmp_path_factory.mktemp("replay")
    rows: list[dict[str, Any]] = []
    with start_simulator("--ttft-ms", "60", "--itl-ms", "10", "--tokens", "20") as simulator:
        for api in NAMES:
            asked = [
                {"request_id": f"{api}-{name}", "prompt": f"Say {name} to {api}.", "model": model}
                for name, model in ROWS.items()
            ]
            rows += captured_rows(folder / api, simulator.base_url, api, asked, ["stream"] * len(asked))
    with replaying(write_table(folder, rows)) as url:
        yield url, {row["request_id"]: row for row in rows}


# The clients


def at_once(ask: Callable[[Case], Found], batches: Batches) -> list[list[Found]]:
    with ThreadPoolExecutor(max(map(len, batches))) as pool:
        return [list(pool.map(ask, batch)) for batch in batches]


def python(url: str, batches: Batches, _folder: Path) -> list[list[Found]]:
    """OpenAI's Python client."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        return at_once(partial(_python, client), batches)


def _python(client: openai.OpenAI, case: Case) -> Found:
    found = Found()
    try:
        for text, finish, error in _streamed(client, case):
            if text:
                found.text += text
                found.ms.append(1000 * time.perf_counter())
            found.finish = finish or found.finish
            found.error = error or found.error
    except openai.APIError as error:
        found.error = {"type": error.type, "code": error.code, "message": error.message}
        if isinstance(error, openai.APIStatusError):
            found.error |= {"status": error.status_code, "retry_after": error.response.headers.get("retry-after")}
    return found


Part = tuple[str | None, str | None, dict[str, Any] | None]


def _streamed(client: openai.OpenAI, case: Case) -> Iterator[Part]:
    """Text, reason for the end, and error of each event."""
    options: dict[str, Any] = {"model": "m", "stream": True, "extra_headers": case.headers}
    if case.api == "chat":
        for chunk in client.chat.completions.create(messages=[{"role": "user", "content": "x"}], **options):
            yield from ((choice.delta.content, choice.finish_reason, None) for choice in chunk.choices)
    elif case.api == "completions":
        for completion in client.completions.create(prompt="x", **options):
            yield from ((choice.text, choice.finish_reason, None) for choice in completion.choices)
    else:
        for event in client.responses.create(input="x", **options):
            yield _read("responses", event.to_dict())


def curl(url: str, batches: Batches, _folder: Path) -> list[list[Found]]:
    return at_once(partial(_curl, url), batches)


def _curl(url: str, case: Case) -> Found:
    command = ["curl", "-sNi", "-H", "content-type: application/json", "-d", '{"stream": true}',
               f"{url}{specification(case.api).path}?request_id={case.request_id}"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [(1000 * time.perf_counter(), line.rstrip("\n")) for line in process.stdout]
    end = next(at for at, (_, line) in enumerate(lines) if not line)
    head = {name.lower(): value for _, line in lines[1:end] for name, _, value in [line.partition(": ")]}
    status = int(lines[0][1].split()[1])
    return heard(case.api, status, head.get("retry-after"), lines[end + 1 :], broken=process.returncode != 0)


def heard(api: str, status: int, retry_after: str | None, lines: Sequence[tuple[float, str]], *, broken: bool) -> Found:
    """What arrived, from the lines of a body and their times."""
    found = Found(error={"status": None, "message": ""} if broken else None)
    if status != 200:
        error = json.loads("".join(line for _, line in lines))["error"]
        return Found(error={"status": status, "retry_after": retry_after, **error})
    for ms, line in lines:
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        text, finish, error = _read(api, event)
        if text:
            found.text += text
            found.ms.append(ms)
        found.finish = finish or found.finish
        found.error = error or found.error
    return found


def _read(api: str, event: dict[str, Any]) -> Part:
    """Text, reason for the end, and error of an event."""
    if event.get("error") or event.get("type") == "error":
        return None, None, event.get("error") or event
    if api == "messages":
        delta = event.get("delta") or {}
        return delta.get("text"), delta.get("stop_reason"), None
    if api == "responses":
        text = event["delta"] if event["type"] == "response.output_text.delta" else None
        response = event.get("response") or {}
        finish = (response.get("incomplete_details") or {}).get("reason") or response.get("status")
        return text, finish, response.get("error")
    if not event["choices"]:
        return None, None, None
    choice: dict[str, Any] = event["choices"][0]
    text = choice["text"] if api == "completions" else choice["delta"].get("content")
    return text, choice["finish_reason"], None


def node(url: str, batches: Batches, _folder: Path) -> list[list[Found]]:
    """The JavaScript clients, in one process."""
    asked = [
        [{"client": case.client, "api": case.api, "url": url, "headers": case.headers} for case in batch]
        for batch in batches
    ]
    done = subprocess.run(
        ["node", str(NODE)], input=json.dumps(asked), check=True, capture_output=True, text=True, timeout=120
    )
    return [[Found(**each) for each in batch] for batch in json.loads(done.stdout)]


PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script>
async function ask({ url, headers }) {
  const found = { status: 0, retryAfter: null, pieces: [], broken: false };
  try {
    const options = { method: "POST", headers: { "content-type": "application/json", ...headers } };
    const response = await fetch(url, { ...options, body: JSON.stringify({ stream: true }) });
    found.status = response.status;
    found.retryAfter = response.headers.get("retry-after");
    const reader = response.body.getReader(), decoder = new TextDecoder();
    for (let read; !(read = await reader.read()).done;) {
      found.pieces.push([performance.now(), decoder.decode(read.value, { stream: true })]);
    }
  } catch { found.broken = true; }
  return found;
}
async function run(batches) {
  const found = [];
  for (const batch of batches) found.push(await Promise.all(batch.map(ask)));
  window.found = JSON.stringify(found);
}
</script>"""


def chromium(url: str, batches: Batches, folder: Path) -> list[list[Found]]:
    """`fetch` on a page of another origin."""
    asked = [
        [{"url": f"{url}{specification(case.api).path}", "headers": case.headers} for case in batch]
        for batch in batches
    ]
    (folder / "page").mkdir()
    (folder / "page" / "index.html").write_text(PAGE)

    async def visit(tab: Tab) -> Any:
        await tab.open(origin, "window.run")
        await tab.value(f"void run({json.dumps(asked)})")
        await tab.wait("window.found")
        return json.loads(await tab.value("window.found"))

    with serving(folder / "page") as origin:
        answers = browse(folder / "profile", visit)
    return [
        [
            heard(case.api, each["status"], each["retryAfter"], lines_of(each["pieces"]), broken=each["broken"])
            for case, each in zip(batch, given, strict=True)
        ]
        for batch, given in zip(batches, answers, strict=True)
    ]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder. Returns the origin."""
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def lines_of(pieces: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Each line with the time of the piece that completed it."""
    made: list[tuple[float, str]] = []
    held = ""
    for ms, piece in pieces:
        *complete, held = (held + piece).split("\n")
        made += [(ms, line) for line in complete]
    return [*made, (0.0, held)] if held else made


# What they receive

OPENAI = ("chat", "completions", "responses")
PROGRAMS = [
    pytest.param(python, {"openai-python": OPENAI}, id="python"),
    pytest.param(curl, {"curl": NAMES}, id="curl"),
    pytest.param(
        node, {"openai": OPENAI, "ai-sdk": NAMES, "langchain": NAMES}, id="javascript", marks=pytest.mark.node
    ),
    pytest.param(chromium, {"fetch": NAMES}, id="chromium", marks=pytest.mark.chromium),
]


@pytest.mark.parametrize(("program", "clients"), PROGRAMS)
def test_a_client_reads_each_row_through_each_api(
    program: Callable[[str, Batches, Path], list[list[Found]]],
    clients: dict[str, Sequence[str]],
    replayed: tuple[str, Rows],
    tmp_path: Path,
    record_property: Any,
) -> None:
    url, rows = replayed
    asked = [(client, api) for client, apis in clients.items() for api in apis]
    cases = [Case(*pair, source, name) for pair in asked for source in NAMES for name in ROWS]
    paced = [Case(client, api, api, "plain") for client, api in asked]
    together, *alone = program(url, [cases, *([case] for case in paced)], tmp_path)
    for case, found in zip(cases, together, strict=True):
        check(case, found, rows[case.request_id])
    late = {
        f"{case.client} {case.api}": pace_error(found, rows[case.request_id])
        for case, [found] in zip(paced, alone, strict=True)
    }
    for pair, error in late.items():
        record_property(f"pace_error_ms_p50 {pair}", round(error, 2))
    assert max(late.values()) < 20, late  # other tests may keep this machine busy


def check(case: Case, found: Found, row: dict[str, Any]) -> None:
    """Compare what a client received with the row."""
    said = (case, found)
    if (case.client, case.name) == ("fetch", "cut"):
        assert row["text"].startswith(found.text), said  # a stream that breaks loses what the page has not read
    else:
        assert found.text == (row["text"] or ""), said
    if case.name in ("plain", "length"):
        assert found.error is None, said
        ends = OWN_ENDS.get((case.client, case.api), ENDS[case.api])
        assert found.finish == ends[case.name == "length"], said
    elif case.name == "error" and case.api == case.source == "responses" and case.client in IGNORE_FAILED:
        assert found.error is None, said
        assert found.finish in (None, "unknown"), said
    else:
        assert found.error is not None, said
    if case.name in ("error", "refused") and found.error is not None:
        assert row["error"]["message"] in found.error["message"], said
        assert row["error"]["code"] in (found.error.get("code"), found.error.get("type")), said
        assert found.error.get("type") != "failed", said
    if case.name == "refused":
        assert found.error is not None
        assert (found.error["status"], found.error["retry_after"]) == (429, RETRY_AFTER), said


def pace_error(found: Found, row: dict[str, Any]) -> float:
    """The median difference between the gaps of a client and the captured ones, in ms."""
    due = [chunk["ms"] for chunk in row["chunks"] if chunk["kind"] == "content"]
    assert len(found.ms) == len(due)
    gaps = zip(found.ms, found.ms[1:], due, due[1:], strict=False)
    return float(median(abs((b - a) - (d - c)) for a, b, c, d in gaps))
