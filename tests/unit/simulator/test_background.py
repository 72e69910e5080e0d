"""Responses in the background, with the openai client over real sockets: stored, resumed, cancelled, expired."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from openai import APIConnectionError, BadRequestError, NotFoundError, OpenAI
from openai.types.responses import ResponseTextDeltaEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.simulation import Simulation

PACE = {"tokens": 40}


@pytest.fixture
def client(simulator: Simulation) -> Iterator[OpenAI]:
    with OpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as opened:
        yield opened


def begin(client: OpenAI, model: str = "gpt-4o-mini", **more: Any) -> Any:
    return client.responses.create(model=model, input="Tell me.", background=True, **more)


def until_cut(events: Any) -> list[Any]:
    found = []
    with events, suppress(httpx2.RemoteProtocolError, APIConnectionError):
        for event in events:
            found.append(event)  # noqa: PERF402 - it breaks off
    return found


def deltas(events: Iterable[Any]) -> str:
    return "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))


def test_a_broken_stream_resumes_after_any_event(client: OpenAI) -> None:
    whole = list(begin(client, stream=True))
    assert [event.type for event in whole[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    id_ = whole[0].response.id
    for after in (0, 5, len(whole) - 2):
        rest = list(client.responses.retrieve(id_, stream=True, starting_after=after))
        assert rest == whole[after + 1 :]
    assert list(client.responses.retrieve(id_, stream=True)) == whole
    answer = client.responses.retrieve(id_)
    assert (answer.status, answer.output_text) == ("completed", deltas(whole))


def test_a_cut_connection_does_not_stop_the_generation(simulator: Simulation, client: OpenAI) -> None:
    simulator.restore(tokens=40, ttft_ms=5, itl_ms=2, speed=1)
    events = until_cut(begin(client, "gpt-4o-mini!cut@6:1", stream=True))
    assert len(events) == 6
    rest: list[Any] = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=5))
    assert [event.sequence_number for event in rest] == list(range(6, 6 + len(rest)))
    assert rest[-1].response.output_text == deltas(events) + deltas(rest)


def test_posts_and_gets_are_counted_by_request_whose_key_is_that_of_the_plain_request(
    simulator: Simulation, client: OpenAI
) -> None:
    client.responses.create(model="gpt-4o-mini", input="Tell me.")
    id_ = begin(client, store=True).id
    client.responses.retrieve(id_)
    (counts,) = simulator.counts()["by_key"].values()
    assert (counts["calls"], counts["gets"]) == (2, 1)
    calls = simulator.calls()
    assert [call["method"] for call in calls] == ["POST", "POST", "GET"]
    assert [call["response_id"] for call in calls] == [None, id_, id_]


def test_a_response_that_is_not_streamed_is_queued_first_and_can_be_cancelled(
    simulator: Simulation, client: OpenAI
) -> None:
    simulator.restore(tokens=400, ttft_ms=60_000, speed=1)
    queued = begin(client)
    assert queued.status in ("queued", "in_progress")
    assert client.responses.retrieve(queued.id).status == "in_progress"
    assert client.responses.cancel(queued.id).status == "cancelled"
    assert client.responses.cancel(queued.id).status == "cancelled"
    events: list[Any] = list(client.responses.retrieve(queued.id, stream=True))
    assert events[-1].type == "response.cancelled"


def test_a_stored_response_expires(simulator: Simulation, client: OpenAI) -> None:
    id_ = begin(client).id
    simulator.change(stream_s=0.0)
    with pytest.raises(BadRequestError, match="can no longer be streamed"):
        client.responses.retrieve(id_, stream=True)
    assert client.responses.retrieve(id_).id == id_
    simulator.change(keep_s=0.0)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(id_)
    with pytest.raises(NotFoundError):
        client.responses.cancel("resp_unknown")


def test_background_needs_store(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="store=true"):
        begin(client, store=False)


def test_a_response_that_fails_ends_its_stream_for_every_reader(client: OpenAI) -> None:
    events = list(begin(client, "gpt-4o-mini!error_event@3", stream=True))
    assert events[-1].type == "response.failed"
    answer = client.responses.retrieve(events[0].response.id)
    assert (answer.status, answer.error.code if answer.error else None) == ("failed", "server_error")


def test_faults_count_reads_of_the_same_request(simulator: Simulation, client: OpenAI) -> None:
    model = "gpt-4o-mini!cut@4:1!cut_first:1!404:1"
    until_cut(begin(client, model, stream=True))
    (id_,) = {call["response_id"] for call in simulator.calls()}
    with pytest.raises(APIConnectionError):
        client.responses.retrieve(id_)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(id_)
    assert client.responses.retrieve(id_).status == "completed"
