"""`pytest --benchmark-only`: every implementation side by side in one group per case and clock.

Times are pytest-benchmark's, of finished work, after warm-up. Each benchmark of lstm.LSTM also
measures its ratio to torch.nn.LSTM in alternating rounds, which the last lines of the run list: two
groups of rounds apart in time differ by more than the two modules do.
"""

import os
from statistics import median

import pytest
import torch

from bench import record, timing

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLS = ("lstm", "torch", "naive")
# On a CPU both run the same kernels, so that a ratio outside is a defect, or a busy machine.
PARITY = (0.97, 1.03)

RATIOS = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption(
        "--grid",
        action="store_true",
        help="benchmarks: all sizes instead of a short list; hours, so choose with -k",
    )


def pytest_ignore_collect(config):
    """A plain `pytest` runs the tests alone; a benchmark's file given by name runs."""
    return None if config.getoption("benchmark_only", False) else True


def pytest_configure(config):
    if not config.getoption("benchmark_only", False):
        return
    if os.environ.get("TRITON_INTERPRET"):
        raise pytest.UsageError("TRITON_INTERPRET is set: benchmarks time no interpreter. Unset it")
    config.stash[RATIOS] = {}
    if DEVICE.type == "cpu":
        # Steadier than two, and the claim is equal speed, whatever the number.
        torch.set_num_threads(1)


def pytest_generate_tests(metafunc):
    """A test with a case runs for the module's SHORT list, or its GRID, on each clock, by all."""
    if "case" in metafunc.fixturenames:
        grid = metafunc.config.getoption("grid")
        cases = metafunc.module.GRID if grid else metafunc.module.SHORT
        metafunc.parametrize("impl", IMPLS)
        metafunc.parametrize("clock", timing.CLOCKS)
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture
def measure(benchmark, request):
    """Times an implementation on a case, and adds to the benchmark what the time alone hides."""
    # Here, so that a run of the tests alone loads neither Triton nor the data.
    from bench.cases import subject, why_not

    def run(impl, case, clock):
        reason = why_not(case, impl, DEVICE, kernels=False)
        if clock == "graph" and DEVICE.type == "cpu":
            reason = "a CUDA graph needs a GPU"
        if reason:
            pytest.skip(reason)
        work = subject(impl, case, DEVICE)
        error = work.error()
        first_call_s = timing.timed(work, DEVICE)
        call, count = timing.on_clock(work, clock)
        benchmark.group = f"{case}, {clock}"
        benchmark.extra_info |= {
            "path": work.path,
            "error": error,
            "first_call_s": first_call_s,
            "peak_bytes": timing.peak_bytes(work, DEVICE),
            "calls_per_round": count,
        }
        seconds = timing.timed(call, DEVICE)
        # Half of --benchmark-max-time for each of what is timed.
        most_s = float(request.config.getoption("benchmark_max_time")) / 2
        rounds = min(100, max(5, int(most_s / seconds)))
        benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=2)
        median_s = benchmark.stats.stats.median / count
        benchmark.extra_info["us_per_step"] = 1e6 * median_s / case.T
        if impl == "lstm":
            ratio = time_over_torch(case, clock, most_s)
            benchmark.extra_info["time_over_torch"] = ratio
            request.config.stash.setdefault(RATIOS, {})[benchmark.group] = ratio

    return run


def time_over_torch(case, clock, seconds):
    """The ratio of the two modules' times, of alternating rounds, five times so many seconds."""
    from bench.cases import subject

    ratios = []
    # Anew each time: where a module's weights happen to lie makes up to 2 % of a small call.
    for _ in range(5):
        calls = {
            impl: timing.on_clock(subject(impl, case, DEVICE), clock) for impl in ("lstm", "torch")
        }
        samples = timing.alternate(calls, DEVICE, seconds=seconds, most=1000)
        ratios += [a / b for a, b in zip(samples["lstm"], samples["torch"], strict=True)]
    return median(ratios)


def finished(call):
    """`call` to the end of its work on the device."""

    def until_done():
        call()
        timing.now(DEVICE)

    return until_done


def pytest_benchmark_update_machine_info(machine_info):
    machine_info |= record.environment(DEVICE)


def pytest_terminal_summary(terminalreporter, config):
    """The ratio of each case; where both run the same kernels, it has to be one."""
    ratios = config.stash.get(RATIOS, {})
    if not ratios:
        return
    terminalreporter.section("time of lstm.LSTM over torch.nn.LSTM, median of alternating rounds")
    for group, ratio in ratios.items():
        within = PARITY[0] <= ratio <= PARITY[1]
        note = "" if DEVICE.type == "cuda" or within else f"   outside {PARITY[0]} to {PARITY[1]}"
        terminalreporter.write_line(f"{ratio:6.3f}  {group}{note}")
