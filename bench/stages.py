"""The stages of bench/gpu_suite.py: what each measures, and the record that it leaves."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import torch

from bench import cases, record, timing
from lstm.kernels import backward, config, forward, joint_backward, joint_forward
from lstm.plan import multiprocessors

ROOT = Path(__file__).parents[1]

CYCLE_LENGTHS = (1024, 3072)
SEEDS = (7, 8, 9)
# Processes that compile, a processor for each: each takes a part of the GPU's memory, too.
WORKERS = min(14, os.cpu_count())
REPEATS = 100


class Run:
    """What a stage needs to know, the records it adds to one file, and what failed in them."""

    def __init__(self, path, rehearse, end):
        self.path, self.rehearse, self.end = Path(path), rehearse, end
        self.device = torch.device("cpu") if rehearse else torch.device("cuda", 0)
        self.records = record.read(self.path) if self.path.exists() else []
        self.failures = []

    def left(self):
        """Seconds until this stage is stopped."""
        return self.end - time.time()

    def add(self, name, case, runs):
        """Append a record, and have it on the disk."""
        case = case | {"rehearsal": self.rehearse}
        self.keep(record.new_record(name, self.device, case, runs))

    def keep(self, made):
        """Append a record that is made already."""
        self.records.append(made)
        record.write(self.path, *self.records)
        # A peer that is not there, or out of memory, is no failure of ours.
        self.failures += [
            f"{run['impl']}: {run['failed']}"
            for run in made["runs"]
            if "failed" in run and run["impl"] in ("lstm", "triton")
        ]


def program(*command, env=None):
    """Run a program in the checkout, its output in the log. Returns: exit status, output."""
    print("$", *command, flush=True)
    lines = []
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        # At once, so that what runs out of time has said how far it came.
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return child.returncode, "".join(lines)


def tests(run):
    """Every test that runs kernels; the others say nothing about a GPU."""
    chosen = ["tests/lstm", "tests/kernels", "tests/bench/test_training.py"]
    for name in ("static", "ptx"):
        chosen += ["--ignore", f"tests/kernels/test_{name}.py"]
    if run.rehearse:
        chosen = ["tests/lstm/test_layer.py", "-k", "one_step or two_steps"]
    elif find_spec("xdist"):
        # Most of the time goes into compiling, a processor for each kernel. A line for each test
        # says where a hang began.
        chosen += ["-v", "-n", str(WORKERS), "--dist", "load", "--benchmark-disable"]
    status, output = program(sys.executable, "-m", "pytest", *chosen)
    counts = {
        kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", output)
    }
    made = {"impl": "lstm", **counts}
    if status:
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        made["failed"] = "; ".join(failed[:20]) or f"pytest ended with {status}"
    run.add("tests", {"chosen": chosen}, [made])


def compare(run, case, impls, clock, seconds):
    """One record: implementations on a case, in alternating rounds; a wrong one is not timed."""
    runs, calls = [], {}
    for impl in impls:
        made = {"impl": impl}
        runs.append(made)
        why = cases.why_not(case, impl, run.device)
        if why:
            made["failed"] = why
            continue
        try:
            work = cases.subject(impl, case, run.device)
            made["path"] = work.path
            made["first_call_s"] = round(timing.timed(work, run.device), 4)
            error = work.error()
            if not error < cases.WRONG:
                made["failed"] = f"wrong: error {error:.1e}"
                continue
            made["error"] = error
            made["peak_bytes"] = timing.peak_bytes(work, run.device)
            calls[impl] = timing.on_clock(work, clock)
        except Exception as error:
            # Of one implementation on one case: recorded, and the others go on.
            made["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
    samples = timing.alternate(calls, run.device, seconds, most=100)
    for made in runs:
        if made["impl"] in samples:
            made["time_ms"] = samples[made["impl"]]
    run.add("lstm", case.record() | {"clock": clock}, runs)
    results = {made["impl"]: made.get("failed") or median(made["time_ms"]) for made in runs}
    print(f"{case}, {clock}, ms: {results}", flush=True)


def short_list(run):
    """The cases of `lstm`."""
    if not run.rehearse:
        return cases.SHORT
    sizes = [(3, 5, 16), (3, 5, 32), (3, 9, 16), (3, 9, 32)]
    return [
        *cases.layers(cases.SEQUENCE, sizes, ["float32", "bfloat16"]),
        *cases.layers(["step"], [(1, 1, 16)], ["float32"]),
        *cases.layers(["forward+backward"], [(16, 5, 16)], ["float32"], num_layers=2),
    ]


def compile_ahead(run):
    """First calls of what other stages time, a processor for each: in the stages a kernel would be
    compiled after the other, and here all go into Triton's cache.
    """
    chosen = [*cycle_cases(run, 16), *short_list(run)][: 2 if run.rehearse else None]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if run.rehearse else WORKERS, mp_context=context) as pool:
        calls = [pool.submit(first_call, case, run.device) for case in chosen]
        for case, call in zip(chosen, calls, strict=True):
            made = {"impl": "lstm"}
            if error := call.exception():
                made["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                made["first_call_s"] = call.result()
            run.add("compile", case.record(), [made])


def first_call(case, device):
    """Seconds of a case's first call, after which whatever it compiles is compiled."""
    return timing.timed(cases.subject("lstm", case, device), device)


def lstm(run):
    """The short list of the benchmarks, on both clocks."""
    clocks, seconds = (("python",), 0.02) if run.rehearse else (("graph", "python"), 0.4)
    for case in short_list(run):
        # A long loop in Python would take seconds a call.
        impls = ("lstm", "torch", "naive") if case.T <= 128 else ("lstm", "torch")
        for clock in clocks:
            compare(run, case, impls, clock, seconds)


def grid(run):
    """All sizes in training, device time, until time is up: T=128 and one layer first."""
    chosen, clock, seconds = cases.LAYER_GRID + cases.MODULE_GRID, "graph", 0.2
    chosen = sorted(
        (case for case in chosen if case.mode == "forward+backward"),
        key=lambda case: (case.T != 128, case.num_layers, case.dtype == "float16"),
    )
    if run.rehearse:
        chosen = cases.layers(["forward+backward"], [(2, 9, 16)], ["float16"])
        clock, seconds = "python", 0.02
    done = [made["case"] for made in run.records]
    for case in chosen:
        if run.left() < 15:
            print("time is up", flush=True)
            return
        if case.record() | {"clock": clock, "rehearsal": run.rehearse} not in done:
            compare(run, case, ("lstm", "torch"), clock, seconds)


def recorded(run, *command, compiles=False):
    """Add the record that a program of ours writes where --json says. compiles: whether its first
    call is to compile the kernels, which others may have before.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        env = {"TRITON_CACHE_DIR": str(Path(folder) / "triton")} if compiles else None
        status, output = program(sys.executable, *command, "--json", path, env=env)
        if not path.exists():
            raise RuntimeError(f"{command} ended with {status}: {output[-200:]}")
        (made,) = record.read(path)
    made["case"]["rehearsal"] = run.rehearse
    run.keep(made)


def mnist(run):
    """bench/train_mnist.py --compare, once a seed; the first one compiles the kernels."""
    options = []
    if run.rehearse:
        small = {
            "epochs": 1,
            "train-images": 300,
            "test-images": 100,
            "batch-size": 30,
            "hidden": 32,
        }
        options = [f"--{name}={value}" for name, value in small.items()]
    for seed in SEEDS[: 1 if run.rehearse else None]:
        command = "bench/train_mnist.py", "--compare", "--seed", seed, *options
        recorded(run, *command, compiles=seed == SEEDS[0])


def soak(run):
    """bench/soak.py, a tenth of its steps."""
    device = "cpu" if run.rehearse else "cuda"
    recorded(run, "-m", "bench.soak", "--steps", 8 if run.rehearse else 2_000, "--device", device)


def repeats(run):
    """Output and gradients of one call, over and over, must not differ in a bit."""
    size, times = ((2, 9, 3, 16), 3) if run.rehearse else ((128, 100, 64, 128), REPEATS)
    for dtype in cases.DTYPES:
        case = cases.Case("forward+backward", *size, 2, dtype)
        work = cases.subject("lstm", case, run.device)
        first = [x.clone() for x in work.results()]
        different = sum(not all(map(torch.equal, first, work.results())) for _ in range(times))
        made = {"impl": "lstm", "path": work.path, "repeats": times, "different": different}
        if different:
            made["failed"] = f"{different} of {times} repeats differ"
        run.add("repeats", case.record(), [made])


def cycles(run):
    """Cycles per time step of each kernel, from two lengths: launch and loading cancel out."""
    clock_hz = sm_clock(run.device)
    short, long = (16, 17) if run.rehearse else CYCLE_LENGTHS
    for case in cycle_cases(run, short):
        of_length = {}
        for T in (short, long):
            work = cases.subject("lstm", replace(case, T=T), run.device)
            of_length[T] = kernel_seconds(work, *((0, 1) if run.rehearse else (2, 20)))
        for kernel in of_length[long]:
            seconds = {T: of_length[T][kernel] for T in (short, long)}
            step_s = (median(seconds[long]) - median(seconds[short])) / (long - short)
            made = {
                "impl": "lstm",
                "path": work.path,
                "kernel": kernel,
                "us_per_step": 1e6 * step_s,
                "cycles_per_step": step_s * clock_hz if clock_hz else None,
                "clock_hz": clock_hz,
                "seconds": seconds,
            }
            run.add("cycles", case.record() | {"T": [short, long]}, [made])


def cycle_cases(run, T):
    """The cases of `cycles`, of T steps."""
    # Tiles of two sequences, of four and of eight, nearly as many as there is room for
    room = config.room(128, multiprocessors(run.device))
    sizes = [(128, b * room - 32, 1) for b in (2, 4, 8)] + [(64, 8, 1), (32, 8, 1)]
    # Two layers at once, three programs a tile, where room allows two sequences, four and eight
    sizes += [(128, b * (room // 3) - 32, 2) for b in (2, 4, 8)]
    # Four layers
    sizes.append((128, 8, 4))
    if run.rehearse:
        sizes = [(16, 8, 1), (16, 8, 2)]
    dtypes = cases.DTYPES[:1] if run.rehearse else cases.DTYPES
    return [
        cases.Case("forward+backward", T, B, H, H, num_layers, dtype)
        for (H, B, num_layers), dtype in product(sizes, dtypes)
    ]


def kernel_seconds(work, warm_up, calls):
    """{"forward": [seconds], "backward": [seconds]} of the two kernels alone, in repeated calls; of
    several layers at once "joint forward" and "joint backward".
    """
    places = {
        "forward": (forward, "lstm_forward"),
        "backward": (backward, "lstm_backward"),
        "joint forward": (joint_forward, "lstm_joint_forward"),
        "joint backward": (joint_backward, "lstm_joint_backward"),
    }
    launches = {kernel: getattr(*place) for kernel, place in places.items()}
    found = {kernel: [] for kernel in places}

    def timed(kernel):
        return lambda *args: found[kernel].append(
            timing.device_seconds(lambda: launches[kernel](*args), work.device)
        )

    try:
        for kernel, place in places.items():
            setattr(*place, timed(kernel))
        for _ in range(warm_up + calls):
            work()
    finally:
        for kernel, place in places.items():
            setattr(*place, launches[kernel])
    return {kernel: seconds[warm_up:] for kernel, seconds in found.items() if seconds}


def sm_clock(device):
    """Cycles per second of a multiprocessor under load, None on a CPU.

    torch has a kernel that spins for a number of cycles.
    """
    if device.type != "cuda":
        return None
    spins = 50_000_000
    times = [timing.device_seconds(lambda: torch.cuda._sleep(spins), device) for _ in range(5)]
    return spins / median(times)


def peers(run):
    """FlashRNN and TorchRL beside both, on sizes that all of them take."""
    versions = {}
    for name, peer in cases.PEERS.items():
        if not peer.missing():
            try:
                versions[name] = version(peer.package)
            except PackageNotFoundError:
                versions[name] = "unknown"
    run.add("peers", {"versions": versions}, [])
    for case in cases.layers(
        cases.SEQUENCE, [(128, 16, 128), (128, 64, 128), (128, 16, 256)], ["bfloat16", "float32"]
    ):
        if versions:
            compare(run, case, ("lstm", "torch", *versions), "python", 0.4)


SANITIZED = """
import torch
from bench.cases import Case, subject
sizes = (37, 1, "float32"), (64, 1, "bfloat16"), (128, 1, "float16"), (64, 2, "float32")
for H, L, dtype in sizes:
    work = subject("lstm", Case("forward+backward", 17, 9, 5, H, L, dtype), torch.device("cuda", 0))
    assert work.path == "fused", work.path
    work()
torch.cuda.synchronize()
"""


def sanitizer(run):
    """memcheck and racecheck of a few small steps; each tensor has an allocation of its own."""
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        made = {"impl": "lstm", "tool": check}
        if tool is None or run.rehearse:
            made["skipped"] = "a rehearsal" if tool else "compute-sanitizer is not on the PATH"
        else:
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            command = [
                tool,
                "--tool",
                check,
                "--error-exitcode",
                "9",
                sys.executable,
                "-c",
                SANITIZED,
            ]
            status, output = program(*command, env=env)
            made["summary"] = " ".join(re.findall(r"SUMMARY: (.*)", output))
            if status:
                made["failed"] = made["summary"] or f"ended with {status}"
        run.add("sanitizer", {}, [made])


@dataclass(frozen=True)
class Stage:
    """A part of the suite. share: of all minutes, the most it may take; file: of its records."""

    run: object
    what: str
    share: float
    file: str


# In order of worth.
STAGES = {
    "tests": Stage(tests, "CUDA equivalence tests", 0.35, "checks"),
    "compile": Stage(compile_ahead, "kernels of lstm and cycles compiled", 0.15, "checks"),
    "lstm": Stage(lstm, "layers and modules beside torch.nn.LSTM, the short list", 0.35, "lstm"),
    "mnist": Stage(mnist, "MNIST, both, three seeds", 0.25, "mnist"),
    "repeats": Stage(repeats, f"{REPEATS} repeats, bit for bit", 0.1, "checks"),
    "soak": Stage(soak, "2,000 training steps on ever new sizes", 0.15, "checks"),
    "cycles": Stage(cycles, "cycles per time step of the kernels", 0.15, "cycles"),
    "peers": Stage(peers, "other LSTMs, where importable", 0.15, "peers"),
    "sanitizer": Stage(sanitizer, "compute-sanitizer, where installed", 0.2, "checks"),
    "grid": Stage(grid, "all sizes beside torch.nn.LSTM, until time is up", 1.0, "lstm"),
}
