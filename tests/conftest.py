"""What every test runs under: the interpreter where there is no GPU, NaN in unwritten memory."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

# torch.use_deterministic_algorithms asks for it on a GPU, before the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The tests are many and small: a process for each core, and a thread for each process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch

# tests/lstm/test_fuzz.py is skipped without it.
if find_spec("hypothesis"):
    from hypothesis import settings

    # No deadline: the first launch takes the interpreter a thousand times as long as the next.
    settings.register_profile(
        "brief", max_examples=16, derandomize=True, deadline=None, database=None
    )
    settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
    # Unless --hypothesis-profile names another.
    settings.load_profile("brief")

ROOT = Path(__file__).resolve().parents[1]


def pytest_ignore_collect(config):
    """A run of the benchmarks has none of the tests."""
    return True if config.getoption("benchmark_only", False) else None


def pytest_xdist_auto_num_workers(config):
    """Of `-n auto`, which pyproject.toml has. Benchmarks are alone; a GPU compiles for a few."""
    if config.getoption("benchmark_only", False) or config.getoption("usepdb", False):
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(cores, 14) if torch.cuda.is_available() else cores


def pytest_configure(config):
    if config.getoption("benchmark_only", False):
        return
    # Before anything imports triton, which reads it once.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        _round_to_bfloat16()
        _remember_dtypes()
    # It fills torch.empty with NaN, so that what a kernel leaves unwritten shows.
    torch.use_deterministic_algorithms(True)


def _round_to_bfloat16():
    """Has the interpreter round float32 to bfloat16 as a GPU does, to nearest.

    Triton 3.6 to 3.8 cut the other bits off, which doubles the errors of bfloat16.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounded(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            nearest = torch.tensor(src.data).bfloat16().float().numpy()
            src = TensorHandle(nearest, tl.float32)
        return cast(self, src, dst_type)

    InterpreterBuilder.cast_impl = rounded


def _remember_dtypes():
    """Has the interpreter keep which dtype of NumPy each of its own is.

    It asks for every tensor, and makes a table of all of them to look into: a fifteenth of its
    time.
    """
    from triton.runtime import interpreter

    look_up, known = interpreter._get_np_dtype, {}

    def remembered(dtype):
        name = dtype.scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = remembered


def pytest_collection_modifyitems(items):
    """On a GPU kernels wait for one another: should they ever do so in vain, the test ends."""
    if torch.cuda.is_available() and find_spec("pytest_timeout"):
        for item in items:
            if "device" in item.fixturenames:
                item.add_marker(pytest.mark.timeout(300, method="thread"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def force(monkeypatch):
    """Sets FUSED_LSTM_FORCE, which otherwise is read once."""
    from lstm import plan

    def forget():
        plan.forced.cache_clear()
        plan.device_refusal.cache_clear()
        plan.plan_on.cache_clear()

    def force(path):
        monkeypatch.setenv("FUSED_LSTM_FORCE", path)
        forget()

    yield force
    monkeypatch.delenv("FUSED_LSTM_FORCE", raising=False)
    forget()


@pytest.fixture(scope="session")
def interpreter():
    """What a test asks for that starts a process in Triton's interpreter, GPU or not."""
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.skip("Triton 3.6's interpreter needs numpy < 2.4")


@pytest.fixture
def run_without_interpreter():
    """Runs Python source in a fresh process that has neither a GPU nor Triton's interpreter."""

    def run(source):
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-c", source],
            cwd=ROOT,
            env=env | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def launches(monkeypatch):
    """Counts layers that the kernels run from here on: {"forward": n, "backward": n}.

    A step of an LSTMCell counts as what it is a step of.
    """
    from lstm.kernels import backward, forward, joint_backward, joint_forward, step

    counts = {"forward": 0, "backward": 0}

    def count(module, launcher, name):
        launch = getattr(module, launcher)

        def counted(*args):
            counts[name] += len(args[0]) if "joint" in launcher else 1
            return launch(*args)

        monkeypatch.setattr(module, launcher, counted)

    count(forward, "lstm_forward", "forward")
    count(backward, "lstm_backward", "backward")
    count(joint_forward, "lstm_joint_forward", "forward")
    count(joint_backward, "lstm_joint_backward", "backward")
    count(step, "lstm_step", "forward")
    count(step, "lstm_step_backward", "backward")
    return counts


@pytest.fixture
def by_twos(monkeypatch):
    """No more layers a launch than two, though there is room."""
    from lstm import plan as plans
    from lstm.kernels import config

    def forget():
        plans.plan.cache_clear()
        plans.plan_on.cache_clear()

    forget()
    monkeypatch.setattr(config, "MAX_LAYERS_AT_ONCE", 2)
    yield
    forget()
