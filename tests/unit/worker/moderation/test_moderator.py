"""The checks of calls with a scripted endpoint: which calls are made, when, and the effect of failures."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deltatap import config
from deltatap.model import CONTENT, Call, CaptureError, Choice, Chunks, Job, Received, Request, Verdict, Wire
from deltatap.worker.moderation import moderator as moderating
from deltatap.worker.moderation.moderator import Moderator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deltatap.model import Mode

DOWN = CaptureError("server", None, "down", 500)
LIMITED = CaptureError("rate_limit", None, "slow down", 429, 0.01)
MISSING = CaptureError("not_found", None, "no such path", 404)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderating, "_AGAIN_S", 0.001)


def job(name: str = "r", mode: Mode = "stream") -> Job:
    return Job(Request(name, "", None, "", None, None), Wire("", "m", mode, 1), mode, 0, [], 0.0)


class Endpoint:
    """Flags texts with "bad". A script replaces the first results; `held` results wait for :attr:`go`."""

    def __init__(self, *script: Verdict | CaptureError | BaseException | str) -> None:
        self.script = list(script)
        self.texts: list[str] = []
        self.models: list[str] = []
        self.open = self.most_open = 0
        self.go = asyncio.Event()

    async def __call__(self, model: str, text: str) -> Verdict | CaptureError:
        self.texts.append(text)
        self.models.append(model)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0)
            result = self.script.pop(0) if self.script else None
            if result == "held":
                await self.go.wait()
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, Verdict | CaptureError):
                return result
            return Verdict("bad" in text, ("badness",) if "bad" in text else ())
        finally:
            self.open -= 1


class Stream:
    """A call whose chunks the test sends."""

    def __init__(self, moderator: Moderator, job: Job) -> None:
        self.moderator, self.job, self.chunks = moderator, job, Chunks()
        self.watch = moderator.watch(job)
        self.watch.begin(self.chunks, time.perf_counter())

    def send(self, *texts: str, choice: int = 0) -> None:
        for text in texts:
            at = len(self.chunks)
            self.chunks.append(float(10 * at), 0.0, text, CONTENT, choice, at, at)
            self.watch.arrived()

    def call(self) -> Call:
        self.watch.ended()
        text = "".join(t for t, choice in zip(self.chunks.text, self.chunks.choice, strict=True) if choice == 0)
        received = Received(self.chunks, (Choice(0, text),), output=True)
        status, error = ("interrupted", self.watch.cut) if self.watch.cut else ("completed", None)
        return Call(0, 0, 0, 1, 1, 99.0, None, received, status, error, 200)  # type: ignore[arg-type]

    async def end(self) -> list[dict[str, Any]]:
        found = await self.moderator.column(self.job, self.call())
        assert found is not None
        checks: list[dict[str, Any]] = json.loads(found)
        return checks


def moderate(
    test: Callable[[Moderator, Endpoint], Awaitable[None]],
    *script: Any,
    hold: Callable[[], float] = lambda: 0.0,
    failed: Callable[[CaptureError], None] = lambda _: None,
    **settings: Any,
) -> Endpoint:
    """Run a test with a moderator, whose texts are checked every 4 characters."""

    async def run() -> Endpoint:
        endpoint = Endpoint(*script)
        moderator = Moderator(config.Moderation(**{"every_chars": 4, **settings}), endpoint, hold=hold, failed=failed)
        try:
            await test(moderator, endpoint)
        finally:
            await moderator.close()
        return endpoint

    return asyncio.run(run())


def flags(checks: list[dict[str, Any]]) -> list[tuple[int, int | None, bool | None]]:
    return [(check["chars"], check["chunk"], check["flagged"]) for check in checks]


def test_the_text_so_far_is_checked_and_at_its_end() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("abcd", "e b", "ad", "!")
        checks = await stream.end()
        assert endpoint.texts == ["abcd", "abcde bad", "abcde bad!"]
        assert endpoint.models == ["omni-moderation-latest"] * 3
        assert flags(checks) == [(4, 0, False), (9, 2, True), (10, 3, True)]
        assert [check["ms"] for check in checks] == [0.0, 20.0, 30.0]
        assert checks[1]["categories"] == ["badness"]
        assert all(check["took_ms"] >= 0 and check["verdict_ms"] >= 0 and check["error"] is None for check in checks)

    moderate(test)


def test_the_column_says_how_much_had_arrived_at_the_verdict() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("bad!", "xx", "y")
        endpoint.go.set()
        first, _ = await stream.end()
        assert (first["chars"], first["seen"]) == (4, 7)

    moderate(test, "held")


def test_a_flagged_stream_is_cut_and_its_end_is_not_checked() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        cut = asyncio.Event()

        async def call() -> list[dict[str, Any]]:
            stream = Stream(moderator, job())
            stream.send("bad, ", "very")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cut.set()
            stream.send("!")
            error = stream.watch.cut
            assert error is not None
            assert (error.type, error.code) == ("content_policy", "moderation")
            assert error.message == "cut by moderation.stop: the first 5 characters are flagged (badness)"
            return await stream.end()

        checks = await asyncio.create_task(call())
        assert cut.is_set()
        assert flags(checks)[0] == (5, 0, True)
        assert max(check["chars"] for check in checks) <= 9

    moderate(test, stop=True)


def test_a_stream_that_has_ended_is_not_cut() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        async def call() -> list[dict[str, Any]]:
            stream = Stream(moderator, job())
            stream.send("bad")
            checks = await stream.end()
            assert stream.watch.cut is None
            return checks

        assert flags(await asyncio.create_task(call())) == [(3, 0, True)]

    moderate(test, stop=True)


def test_patterns_flag_without_a_call() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("a bo", "mbas", "tic bom", "b", " x")
        checks = await stream.end()
        assert endpoint.texts == []
        assert flags(checks) == [(4, 0, False), (8, 1, False), (15, 2, False), (18, 4, True)]
        assert checks[-1]["categories"] == [r"\bbomb\b"]

    moderate(test, patterns=[r"\bbomb\b", "never"])


def test_with_a_model_and_patterns_only_texts_without_a_match_are_sent() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("some", "bomb", "s")
        assert flags(await stream.end()) == [(4, 0, False), (8, 1, True), (9, 2, True)]
        assert endpoint.texts == ["some"]
        assert endpoint.models == ["mine"]

    moderate(test, patterns=["bomb"], model="mine")


def test_a_failed_check_is_marked_and_the_last_one_is_repeated() -> None:
    failures: list[CaptureError] = []

    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("abcd")
        await asyncio.sleep(0.001)
        assert not endpoint.script
        endpoint.script += [LIMITED, DOWN]
        stream.send("e")
        checks = await stream.end()
        assert [(check["flagged"], check["error"]) for check in checks] == [(None, "server"), (False, None)]
        assert endpoint.texts == ["abcd", "abcde", "abcde", "abcde"]
        assert failures == [DOWN, LIMITED, DOWN]

    moderate(test, DOWN, failed=failures.append)


def test_the_last_check_is_not_repeated_forever() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("ab")
        assert [check["error"] for check in await stream.end()] == ["server"]
        assert len(endpoint.texts) == 3

    moderate(test, DOWN, DOWN, DOWN, DOWN)


def test_an_exception_of_the_client_is_a_failed_check() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("ab")
        assert [check["error"] for check in await stream.end()] == ["internal"]

    moderate(test, KeyError("sk-secret"))


def test_an_endpoint_that_refuses_every_check_is_not_called_again() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        for name in "abcde":
            stream = Stream(moderator, job(name))
            stream.send("x")
            assert [check["error"] for check in await stream.end()] == ["not_found"]
        assert len(endpoint.texts) == 3

    moderate(test, *[MISSING] * 5)


def test_a_success_between_refusals_counts() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        errors = []
        for name in "abcdef":
            stream = Stream(moderator, job(name))
            stream.send("x")
            errors += [check["error"] for check in await stream.end()]
        assert errors == ["not_found", "not_found", None, "not_found", "not_found", None]

    moderate(test, MISSING, MISSING, Verdict(False), MISSING, MISSING)


def test_open_calls_are_bounded_and_the_newest_text_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a check waits for its call, a later one of the same text replaces it."""
    monkeypatch.setattr(moderating, "_MOST_OPEN", 3)

    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        streams = [Stream(moderator, job(f"r{n}")) for n in range(10)]
        for stream in streams:
            stream.send("abcd", "efgh")
        assert moderator.waiting == 9
        found = await asyncio.gather(*(stream.end() for stream in streams))
        assert [flags(checks) for checks in found] == [
            *[[(4, 0, False), (8, 1, False)]] * 2,
            *[[(8, 1, False)]] * 8,
        ]
        assert (endpoint.most_open, len(endpoint.texts)) == (3, 12)

    moderate(test)


def test_calls_wait_for_limits_and_pauses() -> None:
    waits = [0.001, 0.001, 0.0]

    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("abcd")
        assert (moderator.waiting, endpoint.texts) == (1, [])
        assert flags(await stream.end()) == [(4, 0, False)]
        assert waits == []

    moderate(test, hold=lambda: waits.pop(0))


def test_a_result_that_does_not_come_in_time_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderating, "WAIT_S", 0.01)

    async def test(moderator: Moderator, _: Endpoint) -> None:
        stream = Stream(moderator, job())
        stream.send("abcd", "e")
        checks = await stream.end()
        assert [(check["chars"], check["error"]) for check in checks] == [(4, "timeout"), (5, None)]
        assert checks[0]["took_ms"] is None

    moderate(test, "held")


def test_after_a_stop_nothing_is_waited_for() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        first, second = Stream(moderator, job("a")), Stream(moderator, job("b"))
        first.send("abcd")
        second.send("efgh")
        waiting = asyncio.create_task(first.end())
        await asyncio.sleep(0.001)
        moderator.hurry()
        assert [check["error"] for check in await waiting] == ["timeout"]
        assert [check["error"] for check in await second.end()] == ["timeout"]

    moderate(test, "held", "held")


def test_only_the_last_call_of_a_request_counts() -> None:
    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        same = job()
        Stream(moderator, same).send("bad!")
        again = Stream(moderator, same)
        again.send("good")
        endpoint.go.set()
        assert flags(await again.end()) == [(4, 0, False)]

    moderate(test, "held")


def test_a_dropped_request_is_not_checked_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderating, "_MOST_OPEN", 1)

    async def test(moderator: Moderator, endpoint: Endpoint) -> None:
        dropped, kept = Stream(moderator, job("a")), Stream(moderator, job("b"))
        dropped.send("abcd", "efgh", "ijkl")
        moderator.drop(dropped.job)
        kept.send("xyz")
        await kept.end()
        assert endpoint.texts == ["abcd", "xyz"]
        assert await moderator.column(dropped.job, dropped.call()) is None

    moderate(test)


def test_a_whole_answer_is_checked_at_its_end() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        stream = Stream(moderator, job(mode="complete"))
        received = Received(Chunks(), (Choice(0, "so bad"), Choice(1, "fine")), output=True)
        found = await moderator.column(stream.job, replace(stream.call(), received=received))
        checks = json.loads(found or "")
        assert [(check["choice"], check["chars"], check["chunk"], check["ms"], check["flagged"]) for check in checks] == [
            (0, 6, None, 99.0, True), (1, 4, None, 99.0, False),
        ]  # fmt: skip

    moderate(test)


def test_an_answer_without_text_has_no_checks() -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        assert await Stream(moderator, job()).end() == []

    moderate(test)


def test_trouble_while_a_text_is_read_leaves_the_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(moderator: Moderator, _: Endpoint) -> None:
        stream = Stream(moderator, job())

        def broken(_: Chunks) -> Any:
            raise IndexError

        monkeypatch.setattr(type(stream.watch.points), "take", lambda _, chunks: broken(chunks))
        stream.send("abcd", "efgh")
        assert await stream.end() == []

    moderate(test)
