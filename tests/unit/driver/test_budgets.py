"""Budgets hold for any usage that the server reports: workers and driver in virtual time, and a server with known
usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import pytest

from deltatap.config import Bounds
from deltatap.driver.pacer import Pacer, Spent
from deltatap.messages import Heartbeat
from deltatap.model import Call, Choice, Chunks, Expected, Job, Received, Request, Usage
from deltatap.rates import Price
from deltatap.worker.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

PRICE = Price(model="m", input=1, output=10, date=date(2026, 1, 1), source="here")
INPUT, OUTPUT = 1000, 500
TRUE_USD = (INPUT * 1 + OUTPUT * 10) / 1e6
STREAMS = 4


def streamed(usage: Usage | None, *, chunks: int = OUTPUT, text: str = "abc ", final: bool = True) -> Received:
    got = Chunks()
    for at in range(chunks):
        got.append(at, 0.0, text, 1, 0, at, at)
    return Received(got, usage=usage, output=True, usage_final=final)


def whole(usage: Usage | None, **fields: str) -> Received:
    return Received(Chunks(), choices=(Choice(0, **{"text": "", **fields}),), usage=usage, output=True)


ANSWERS: dict[str, Callable[[], Received]] = {
    "honest": lambda: streamed(Usage(INPUT, OUTPUT)),
    "absent": lambda: streamed(None),
    "zero": lambda: streamed(Usage(0, 0)),
    "zero, and nothing known": lambda: streamed(Usage(0, 0, 0), final=False),
    "only the input": lambda: streamed(Usage(INPUT, None)),
    "stale: output came after it": lambda: streamed(Usage(INPUT, 1), final=False),
    "more cached than input": lambda: streamed(Usage(INPUT, OUTPUT, cached_input_tokens=10**9)),
    "absent, in one chunk": lambda: streamed(None, chunks=1, text="abc " * OUTPUT),
    "absent, whole": lambda: whole(None, text="abc " * OUTPUT),
    "absent, whole, only tool calls": lambda: whole(None, tool_calls="abc " * OUTPUT),
    "absent, whole, only reasoning": lambda: whole(Usage(INPUT, 0), reasoning="abc " * OUTPUT),
}


@dataclass
class Worker:
    """A worker with its open calls. `exact` is how the journal has counted the calls that ended."""

    name: str
    owed: int
    tally: Tally = field(default_factory=Tally)
    open: list[Job] = field(default_factory=list)
    ended: int = 0
    exact: tuple[int, float] = (0, 0.0)

    def job(self) -> Job:
        job = Job(Request("r", "", "m", None, None, None), None, "stream", 0, [], 0.0)
        job.expected = Expected(INPUT, None, 1, PRICE)
        return job

    def beat(self, number: int, bounds: Bounds, now: float) -> Heartbeat:  # noqa: ARG002 - as the engine has it
        wants = min(self.owed, STREAMS - len(self.open))
        made = self.ended + len(self.open)
        return Heartbeat(
            1, self.name, number, open=len(self.open), requests=made, wants=wants, input_tokens=0,
            output_tokens=self.exact[0], cost_usd=self.exact[1], **self.tally.status(self.job() if self.owed else None),
        )  # fmt: skip


def run(answer: Callable[[], Received], bounds: Bounds, *, journal: float = 0.0, before: Spent | None = None) -> int:
    """The number of calls that a run makes. `journal` is the share of the real usage that the journal knows."""
    now = 0.0
    workers = [Worker("00000-000001-a", 500), Worker("00001-000001-b", 500)]
    for worker in workers:
        worker.tally = Tally(clock=lambda: now)
    pacer = Pacer(bounds, before)
    for number in range(3000):
        now = number * 0.5
        permits = pacer.turn(now, [worker.beat(number, bounds, now) for worker in workers])
        if pacer.exhausted:
            break
        for worker in workers:
            for job in worker.open:
                worker.tally.ended(job, Call(0, 0, 0, 0, 0, 0, None, answer(), "completed", None, 200))
                worker.ended += 1
            worker.open = []
            worker.exact = (
                int(journal * worker.ended * (INPUT + OUTPUT)), journal * worker.ended * TRUE_USD
            )  # fmt: skip
            worker.tally.give(None if permits is None else permits[worker.name], None)
            while worker.owed and len(worker.open) < STREAMS and worker.tally.allows(job := worker.job()):
                worker.tally.started(job)
                worker.open.append(job)
                worker.owed -= 1
    assert pacer.exhausted, "the run ended without its budget"
    return sum(worker.ended + len(worker.open) for worker in workers)


IN_FLIGHT = 2 * STREAMS


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("budget", ["cost_usd", "tokens"])
def test_a_budget_is_exceeded_by_at_most_the_calls_in_flight(budget: str, answer: Callable[[], Received]) -> None:
    fits = 60
    most = fits * (TRUE_USD if budget == "cost_usd" else INPUT + OUTPUT)
    bounds = Bounds(None, None, None, int(most) if budget == "tokens" else None, most if budget == "cost_usd" else None)
    made = run(answer, bounds)
    assert made <= fits + IN_FLIGHT, "the true use"
    assert made >= fits / 2, "the budget is used"


def test_the_journal_corrects_estimates_that_are_too_low() -> None:
    """Each call costs ten times the estimate from its chunks; only tiktoken counts the real number."""
    answer = lambda: streamed(None, chunks=OUTPUT // 10, text="1")  # noqa: E731
    bounds = Bounds(None, None, None, None, 60 * TRUE_USD)
    assert run(answer, bounds) > 60 + IN_FLIGHT
    assert run(answer, bounds, journal=1.0) <= 60 + IN_FLIGHT


def test_earlier_starts_of_the_run_count() -> None:
    bounds = Bounds(None, None, None, None, 60 * TRUE_USD)
    made = run(ANSWERS["zero"], bounds, before=Spent(50, 50 * (INPUT + OUTPUT), 50 * TRUE_USD))
    assert made <= 10 + IN_FLIGHT
    assert run(ANSWERS["zero"], bounds, before=Spent(70, 0, 70 * TRUE_USD)) == 0, "used up"


def test_a_resumed_answer_is_charged_once() -> None:
    """The part that had arrived before the break is charged at once, and is not charged again with the whole."""
    worker, part, broken = Worker("00000-000001-a", 1), streamed(None, chunks=100), None
    job = worker.job()
    for received in (part, streamed(None, chunks=300), streamed(Usage(INPUT, OUTPUT))):
        worker.tally.started(job)
        call = Call(0, 0, 0, 0, 0, 0, None, received, "interrupted", None, 200)
        worker.tally.ended(job, call, broken)
        broken = call
    assert worker.tally.spent_tokens == INPUT + OUTPUT
    assert worker.tally.spent_usd == pytest.approx(TRUE_USD)
