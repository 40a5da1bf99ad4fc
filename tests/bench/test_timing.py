"""Clocks: fair turns, enough rounds, and nothing unfinished."""

import time

import pytest
import torch

from bench import timing

CPU = torch.device("cpu")


def test_calls_take_turns_and_change_who_comes_first():
    order = []
    calls = {name: (lambda name=name: order.append(name), 1) for name in "ab"}
    samples = timing.alternate(calls, CPU, seconds=0, least=4)
    assert "".join(order) == "ab" + "abba" * 2
    assert [len(times) for times in samples.values()] == [4, 4]


def test_rounds_end_with_the_time_or_the_most_of_them():
    calls = {"a": (lambda: time.sleep(0.01), 1)}
    assert len(timing.alternate(calls, CPU, seconds=0.1, least=2)["a"]) <= 11
    assert len(timing.alternate(calls, CPU, seconds=10, most=3)["a"]) == 3


def test_a_time_is_of_one_call_in_milliseconds():
    calls = {"a": (lambda: time.sleep(0.02), 4)}
    assert all(5 <= t < 20 for t in timing.alternate(calls, CPU, seconds=0)["a"])


def test_nothing_to_time_is_no_error():
    assert timing.alternate({}, CPU, seconds=0) == {}


def test_a_cpu_has_no_peak():
    assert timing.peak_bytes(lambda: None, CPU) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_does_the_work_of_the_call_and_a_clock_waits_for_it():
    device = torch.device("cuda", 0)
    total = torch.zeros((), device=device)
    call, count = timing.on_clock(lambda: total.add_(1), "graph")
    begin = float(total)
    call()
    assert float(total) - begin == count == timing.REPLAYS
    spin = 100_000_000
    assert timing.timed(lambda: torch.cuda._sleep(spin), device) > 0.01
    assert timing.device_seconds(lambda: torch.cuda._sleep(spin), device) > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_is_what_a_call_takes_beyond_what_was_there():
    device = torch.device("cuda", 0)
    kept = torch.zeros(2**20, device=device)
    assert timing.peak_bytes(lambda: kept + kept, device) == 4 * 2**20
