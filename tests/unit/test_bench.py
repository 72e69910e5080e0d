"""The arithmetic of the benchmarks, against examples that were computed by hand."""

from __future__ import annotations

import dataclasses
import math
import socket
import time

import pytest

from bench.__main__ import streams_of
from bench.figure import Figure
from bench.page import with_table
from bench.peers import times, true_times
from bench.processes import spent
from bench.simulators import CHUNKS_S
from bench.truth import Measured, busy, errors, full
from bench.witness import Witness, witness


def test_errors_compare_measured_times_with_the_record() -> None:
    calls = {
        "a": {"started": 10.0, "chunks": [(10.1, "x"), (10.2, "y"), (10.3, "z")]},
        "b": {"started": 20.0, "chunks": [(20.5, "x"), (20.6, "y")]},
        "c": {"started": 30.0, "chunks": [(30.5, "x")]},
    }
    measured = [
        Measured("a", [101.0, 203.0, 303.0], 3.0, [0, 1, 2]),
        Measured("b", [505.0, 615.0], 11.0, [0, 1]),
        Measured("c", [], 0.0, []),
    ]
    found = errors(measured, calls)
    assert found["TTFT error p50"] == pytest.approx(3.0)  # of 1 and 5
    assert found["gap error p50"] == pytest.approx(2.0)  # of 2, 0 and 10
    assert found["extra or missing gaps"] == 1


def test_chunks_that_share_a_read_are_left_out() -> None:
    calls = {"a": {"started": 0.0, "chunks": [(0.1, "w"), (0.2, "x"), (0.3, "y"), (0.4, "z"), (0.5, "!")]}}
    found = errors([Measured("a", [100.0, 207.0, 390.0, 400.0, 501.0], 1.0, [0, 1, 2, 2, 3])], calls)
    assert found["chunks in shared reads"] == pytest.approx(40.0)
    assert found["gap error p99"] == pytest.approx(7.0)  # of the first gap only
    assert found["TTFT error p50"] == pytest.approx(0.0)
    found = errors([Measured("a", [200.0, 200.0, 300.0, 400.0, 507.0], 1.0, [0, 0, 1, 2, 3])], calls)
    assert math.isnan(found["TTFT error p50"])
    assert found["gap error p50"] == pytest.approx(3.5)  # of 0 and 7


def test_a_witness_returns_the_last_data_before_a_moment() -> None:
    seen = Witness()
    for port, at in ((7, 1.0), (7, 1.5), (8, 1.7), (7, 3.0)):
        seen.saw(port, at)
    assert [seen.arrived(7, by) for by in (0.9, 1.0, 2.9, 3.1)] == [None, 1.0, 1.5, 3.0]
    assert seen.arrived(9, 5.0) is None


def test_a_witness_sees_data_reach_a_socket_or_may_not_watch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, witness(server.getsockname()[1]) as seen:
        if seen is None:  # not Linux, or without CAP_NET_RAW
            with pytest.raises((AttributeError, PermissionError)):
                socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            return
        with socket.create_connection(server.getsockname()) as client, server.accept()[0] as served:
            before = time.monotonic()
            client.sendall(b"request")
            served.recv(100)
            served.sendall(b"answer")
            client.recv(100)
            port, until = client.getsockname()[1], time.monotonic() + 10
            while (at := seen.arrived(port, time.monotonic())) is None:
                assert time.monotonic() < until
                time.sleep(0.001)
    assert 0 <= at - before + 1e-4 < 0.1  # 1e-4 s: the offset between the clocks is as exact as this


def test_the_load_is_scaled_to_the_machine() -> None:
    # 100 chunks take 0.2 s and 99 gaps of 20 ms.
    assert pytest.approx(100 / 2.18) == CHUNKS_S
    assert streams_of(25.0, 0.4) == round(0.4 / 25e-6 / CHUNKS_S) == 349
    assert streams_of(100.0, 0.4) == 87
    assert (streams_of(1.0, 0.6), streams_of(1e6, 0.6)) == (512, 8)


def test_the_share_of_busy_slots() -> None:
    assert busy([(0, 10), (0, 10), (10, 20), (10, 11)], 2) == 1.0
    # All slots are open from 1 on. The first slot is free from 5 to 9.
    assert busy([(0, 5), (1, 9), (9, 20)], 2) == pytest.approx((4 + 8) / 16)
    assert busy([(0, 1)], 1) == 1.0
    assert busy([(0, 2), (3, 4)], 2) == pytest.approx(2 / 6), (
        "if the slots are never all open, the span starts with the first start"
    )


def test_the_span_in_which_all_slots_are_open() -> None:
    assert full([(0, 5), (1, 9), (9, 20)], 2) == (1, 9)
    assert full([(0, 5), (5, 9), (6, 7)], 2) == (6, 6), "a slot that ends at 5 is free at 5"
    assert full([(0, 2), (3, 4)], 2) == (0, 3), "if the slots are never all open, the span starts with the first start"


def test_the_cpu_time_of_a_span_is_interpolated_by_process() -> None:
    samples: list[tuple[float, dict[str, float]]] = [
        (0.0, {"a": 1.0}),
        (2.0, {"a": 3.0, "b": 0.5}),
        (4.0, {"a": 3.0, "b": 1.5}),
        (6.0, {"a": 5.0}),
    ]
    assert spent(samples, 1.0, 5.0) == pytest.approx({"a": 2.0, "b": 1.25})
    # b starts after the sample at 0 and spends nothing after its last sample at 4. a starts before the first sample.
    assert spent(samples, 0.0, 10.0) == pytest.approx({"a": 4.0, "b": 1.5})
    assert spent(samples, -math.inf, math.inf) == pytest.approx({"a": 5.0, "b": 1.5})
    assert spent([(0.0, {}), (1.0, {"late": 2.0})], 0.0, 0.5) == pytest.approx({"late": 1.0})


def test_latencies_of_a_client_and_of_the_record() -> None:
    found = times([100.0, 300.0], [[100.0, 120.0, 150.0], [300.0, 310.0]])
    assert found.ttft_p50 == pytest.approx(200.0)
    assert found.gap_p50 == pytest.approx(20.0)  # of 20, 30 and 10
    assert found.gap_p99 == pytest.approx(29.8)
    calls = [{"started": 1.0, "chunks": [(1.2, "x"), (1.25, "y")]}, {"started": 2.0, "chunks": [(2.2, "x")]}]
    assert dataclasses.astuple(true_times(calls)) == pytest.approx((200.0, 200.0, 50.0, 50.0))


def test_a_figure_meets_its_goal() -> None:
    assert Figure("x", 1.0, "ms").met is None
    assert Figure("x", 2.0, "ms", most=2.0).met
    assert not Figure("x", 2.1, "ms", most=2.0).met
    assert Figure("x", 4.0, "ratio", least=4).met
    assert not Figure("x", 1.3, "ratio", most=1.2, least=0.8).met
    assert not Figure("x", 0.7, "ratio", most=1.2, least=0.8).met
    assert not Figure("x", math.nan, "ratio", most=1.2).met
    assert Figure("x", 1.0, "ratio", most=1.2, least=0.8).goal == "0.8 to 1.2"


def test_a_table_in_a_page_is_replaced() -> None:
    page = "# Page\n\n| other |\n|---|\n| x |\n\n| what | 1 |\n|---|---|\n| a | 1 |\n| b | 2 |\n\nText.\n"
    new = with_table(page, ["what", "1", "2"], [["a", "3", "4"]])
    assert new == "# Page\n\n| other |\n|---|\n| x |\n\n| what | 1 | 2 |\n|---|---|---|\n| a | 3 | 4 |\n\nText.\n"
    with pytest.raises(ValueError, match="no table whose first column is 'none'"):
        with_table(page, ["none"], [])
