"""Clocks: every time here is of finished work, after warm-up, with the first call apart.

Two clocks tell apart what a user waits for and what the device does:

    python    one call as a user writes it, until the device is done
    graph     the same work as the replay of a CUDA graph, REPLAYS of them in a row
"""

import time

import torch

CLOCKS = ("python", "graph")
# So many replays hide the wait for the device at their end.
REPLAYS = 10


def now(device):
    """Seconds on a clock that first waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(call, device):
    """Seconds of one call, to the end of its work."""
    begin = now(device)
    call()
    return now(device) - begin


def device_seconds(call, device):
    """Seconds that the device works on one call, without what starting it takes on the host."""
    if device.type != "cuda":
        return timed(call, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def graphed(call):
    """`call` captured as a CUDA graph, warmed up before: a function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def on_clock(call, clock):
    """What to time on a clock, and how many calls it stands for."""
    if clock == "python":
        return call, 1
    replay = graphed(call)

    def replays():
        for _ in range(REPLAYS):
            replay()

    return replays, REPLAYS


def alternate(calls, device, seconds=1.0, least=5, most=200):
    """Times of several calls, taken in turn, so that clocks and temperature favour none.

    Args: calls: {name: (function, calls it stands for)}; seconds: to spend on all, after one round
        of warm-up; least, most: rounds.
    Returns: {name: [milliseconds of each round]}.
    """
    for call, _ in calls.values():
        timed(call, device)
    samples = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        # Backwards every other round: who comes first finds other caches than who comes last.
        for name in list(calls)[:: -1 if done % 2 else 1]:
            call, count = calls[name]
            samples[name].append(round(1e3 * timed(call, device) / count, 6))
    return samples


def peak_bytes(call, device):
    """Most memory that torch held during one call, beyond what it held before; None on a CPU."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
