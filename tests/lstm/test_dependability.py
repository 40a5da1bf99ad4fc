"""What a program relies on besides right numbers: threads, failures, saved tensors, memory freed,
and nothing that waits for the device.
"""

import ast
import gc
import inspect
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lstm import LSTM, LSTMCell
from lstm import plan as plans
from lstm.kernels import backward, forward, joint_backward, joint_forward, step
from tests.accuracy import CEILING, expects_overflow
from tests.lstm.pairs import assert_equal, assert_same, flat, make_input, pair, run

ROOT = Path(__file__).parents[2]
NO_GPU = not torch.cuda.is_available()
LAUNCHERS = {
    "forward": (forward, "lstm_forward"),
    "backward": (backward, "lstm_backward"),
    "joint_forward": (joint_forward, "lstm_joint_forward"),
    "joint_backward": (joint_backward, "lstm_joint_backward"),
    "step": (step, "lstm_step"),
    "step_backward": (step, "lstm_step_backward"),
}


def gradients(output, module):
    return torch.autograd.grad(output.float().square().sum(), list(module.parameters()))


# Threads, streams, devices


@pytest.fixture
def one_launch_at_a_time(monkeypatch):
    """Without a GPU: Triton's interpreter keeps the place of a program in one global object."""
    lock = Lock()

    def locked(launch):
        def call(*args):
            with lock:
                return launch(*args)

        return call

    if NO_GPU:
        for module, name in LAUNCHERS.values():
            monkeypatch.setattr(module, name, locked(getattr(module, name)))


@pytest.fixture
def matmul_as_rnn(monkeypatch):
    """Products in one precision for all: the switch is process-wide."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("one_launch_at_a_time", "matmul_as_rnn")
@pytest.mark.parametrize("shared", [True, False], ids=["one_module", "a_module_each"])
def test_threads_get_what_one_thread_gets_bitwise(shared, device):
    threads = 3
    modules = [LSTM(5, 20, 2, device=device) for _ in range(threads)]
    modules = threads * modules[:1] if shared else modules
    # Sizes that no other thread has, and one that all have.
    inputs = [[make_input(2 + n, 3, 5, device=device), make_input(4, 3, 5, device=device)]
              for n in range(threads)]  # fmt: skip
    expected = [[run(module, x) for x in xs] for module, xs in zip(modules, inputs, strict=True)]
    start = Barrier(threads)

    def work(module, xs):
        start.wait(timeout=60)
        return [run(module, x) for x in xs]

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(work, modules, inputs))
    for ours, theirs in zip(results, expected, strict=True):
        for actual, wanted in zip(ours, theirs, strict=True):
            assert_equal(actual, wanted)


@pytest.mark.skipif(NO_GPU, reason="a CPU has no streams")
@pytest.mark.parametrize("make", [LSTM, LSTMCell])
def test_kernels_run_on_the_current_stream(make, device):
    module = make(5, 20, device=device)
    x = make_input(4, 5, device=device)
    expected = module(3 * x)[0]
    # Detached: a graph kept from another stream would have backward warn of it.
    expected = [y.detach() for y in (expected, *gradients(expected, module))]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # What runs on another stream would read y long before it is written.
        y = torch.empty_like(x)
        torch.cuda._sleep(200_000_000)
        torch.mul(x, 3, out=y)
        output = module(y)[0]
        actual = output, *gradients(output, module)
        torch.cuda.current_stream().synchronize()
    assert_equal(actual, expected)


@pytest.mark.skipif(NO_GPU, reason="a CPU has no streams")
def test_calls_on_several_streams_do_not_disturb_each_other(device):
    # 200 units: slices, which exchange through memory of their own.
    modules = [LSTM(5, size, device=device) for size in (20, 128, 200, 200)]
    x = make_input(30, 16, 5, device=device)
    expected = [[y.detach() for y in run(module, x)] for module in modules]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in modules]
    results = []
    for module, stream in zip(modules, streams, strict=True):
        with torch.cuda.stream(stream):
            results.append(run(module, x))
    torch.cuda.synchronize()
    for actual, wanted in zip(results, expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("make", [LSTM, LSTMCell])
def test_a_device_that_is_not_the_current_one(make):
    module, x = make(5, 20), make_input(4, 5)
    results = []
    for device in ("cuda:0", "cuda:1"):
        output = module.to(device)(x.to(device))[0]
        assert output.device == torch.device(device)
        results.append([y.cpu() for y in (output, *gradients(output, module))])
        assert torch.cuda.current_device() == 0
    assert_same(*results)


# Failures


class FailsAt(TorchDispatchMode):
    """Raises in place of operator number `at`, and counts them."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise self.error
        return func(*args, **(kwargs or {}))


def switches():
    """All that a call could leave behind in the process."""
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.rnn.fp32_precision,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.cuda.current_device() if torch.cuda.is_available() else None,
    )


def step_of_training(module, x):
    """Results and gradients, which are accumulated as an optimizer has them."""
    module.zero_grad()
    output = module(x)[0]
    output.square().sum().backward()
    return output, *(parameter.grad for parameter in module.parameters())


MODULES = {
    "LSTM": lambda device: LSTM(5, 20, 2, device=device),
    "layers_at_once": lambda device: LSTM(5, 20, 3, device=device),
    "projected": lambda device: LSTM(5, 20, proj_size=7, bidirectional=True, device=device),
    "LSTMCell": lambda device: LSTMCell(5, 20, device=device),
}


def small_input(module, device):
    if isinstance(module, LSTMCell):
        return make_input(3, 5, device=device)
    # So many steps are taken in several layers at once.
    return make_input(8 if module.num_layers == 3 else 2, 3, 5, device=device)


def launch_nothing(monkeypatch):
    for module, name in LAUNCHERS.values():
        monkeypatch.setattr(module, name, lambda *args: None)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_whichever_operator_runs_out_of_memory_the_next_step_is_right(make, device, monkeypatch):
    module = make(device)
    x = small_input(module, device)
    expected, before = step_of_training(module, x), switches()
    module.zero_grad()

    def fail(at):
        with FailsAt(at, torch.OutOfMemoryError("CUDA out of memory")) as mode:
            module(x)[0].square().sum().backward()
        return mode.count

    with monkeypatch.context() as patch:
        launch_nothing(patch)
        count = fail(at=0)
        assert count > 20
        for at in range(1, count + 1):
            with pytest.raises(torch.OutOfMemoryError):
                fail(at)
            assert switches() == before, at
    assert_equal(step_of_training(module, x), expected)


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]


@pytest.mark.usefixtures("by_twos")
@pytest.mark.parametrize("error", ERRORS, ids=["out_of_memory", "interrupt"])
@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("place", ["forward", "backward", "joint_forward", "joint_backward"])
def test_a_launch_that_fails_leaves_all_usable(place, number, error, device, monkeypatch):
    ours, _ = pair(5, 20, 4, device=device)
    x = make_input(8 if place.startswith("joint") else 4, 3, 5, device=device)
    expected, before = step_of_training(ours, x), switches()
    ours.zero_grad()
    module, name = LAUNCHERS[place]
    launch, launched = getattr(module, name), []

    def failing(*args):
        launched.append(args)
        if len(launched) == number + 1:
            raise error
        return launch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises(type(error)):
            ours(x)[0].square().sum().backward()
    assert len(launched) == number + 1
    assert switches() == before
    # One node has all gradients: none is given while another is missing.
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert_equal(step_of_training(ours, x), expected)


def test_backward_can_be_repeated_after_a_launch_that_failed(device, monkeypatch):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    expected = gradients(ours(x)[0], ours)
    loss = ours(x)[0].square().sum()

    def failing(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(backward, "lstm_backward", failing)
        with pytest.raises(torch.OutOfMemoryError):
            loss.backward(retain_graph=True)
    assert_equal(torch.autograd.grad(loss, list(ours.parameters())), expected)


# The first compile shares its cache with the process that is killed, the second one has its own.
COMPILE = """
import hashlib, sys, triton
from bench.static_report import Configuration, compile_configuration
for triton.knobs.cache.dir in sys.argv[1:]:
    print("begins", flush=True)
    compiled = compile_configuration(Configuration("forward", 16, "float32", 90))
    print(hashlib.sha256(compiled.asm["cubin"]).hexdigest())
"""


def compiling(*caches):
    """A process that compiles a kernel for a card that need not be there."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE, *map(str, caches)],
        cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def files(folder):
    # Path.rglob raises where a folder goes while it looks.
    return {Path(parent, name) for parent, _, names in os.walk(folder) for name in names}


def test_a_compile_that_is_killed_leaves_a_cache_that_works(tmp_path):
    cache, fresh = tmp_path / "killed", tmp_path / "fresh"
    with compiling(cache) as killed:
        while not files(cache) and killed.poll() is None:
            time.sleep(0.001)
        killed.kill()
        printed = killed.stdout.read()
    assert killed.returncode == -signal.SIGKILL
    assert printed == "begins\n"
    left = files(cache)
    with compiling(cache, fresh) as whole:
        printed = whole.stdout.read().split()
    assert whole.returncode == 0
    assert printed == 2 * ["begins", printed[1]]
    assert left < files(cache)
    assert {path.name for path in files(fresh)} <= {path.name for path in files(cache)}


# Untrusted files


UNSAFE = ("pickle.load", "pickle.loads", "pickle.Unpickler")
SOURCES = sorted(
    path for folder in ("lstm", "kernels", "bench") for path in (ROOT / folder).rglob("*.py")
)


def unsafe_loads(source):
    """Lines that unpickle whatever a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [node.lineno for name in names if name in (*UNSAFE, "torch.load")]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNSAFE or (name == "torch.load" and options.get("weights_only") != "True"):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_what_it_reads(path):
    assert not unsafe_loads(path.read_text())


def test_the_scan_finds_what_it_looks_for():
    assert unsafe_loads("import pickle\npickle.loads(x)\ntorch.load(f)") == [2, 3]
    assert unsafe_loads("from pickle import load\ntorch.load(f, weights_only=False)") == [1, 2]
    assert not unsafe_loads("torch.load(f, weights_only=True)\njson.load(f)")


# Mixed precision


@expects_overflow
def test_a_grad_scaler_skips_the_step_that_overflows_and_takes_the_next(device):
    ours, theirs = pair(5, 20, 2, device=device)
    theirs.double()
    x = make_input(4, 3, 5, device=device)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16)
    before = [parameter.detach().clone() for parameter in ours.parameters()]

    def step(factor):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            output, _ = ours(x)
            loss = output.float().square().mean() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    # Gradients of 1e6 * 2 ** 16 are above float16's 65,504.
    step(1e6)
    assert scaler.get_scale() == 2.0**15
    assert_equal(ours.parameters(), before)

    step(1)
    assert scaler.get_scale() == 2.0**15
    theirs(x.double())[0].square().mean().backward()
    for ours_now, was, parameter in zip(
        ours.parameters(), before, theirs.parameters(), strict=True
    ):
        taken = (was - ours_now) / 0.5
        assert_same([taken], [parameter.grad.float()], CEILING[torch.float16])


# Checkpointing and saved tensors


class Output(nn.Module):
    """What nn.Sequential can pass on."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, input):
        return self.lstm(input)[0]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpointing_gives_the_same_gradients_bitwise(reentrant, device, launches):
    # With dropout: the second forward has to draw the same masks.
    ours, _ = pair(5, 20, 2, dropout=0.5, bidirectional=True, device=device)
    x = make_input(4, 3, 5, device=device).requires_grad_()
    hx = tuple(make_input(4, 3, 20, device=device).requires_grad_() for _ in range(2))
    leaves = [x, *hx, *ours.parameters()]

    def call(x, h_0, c_0):
        return flat(ours(x, (h_0, c_0)))

    def results(call):
        torch.manual_seed(2)
        returned = call(x, *hx)
        # Not torch.autograd.grad, which a reentrant checkpoint refuses.
        for leaf in leaves:
            leaf.grad = None
        sum(y.square().sum() for y in returned).backward()
        return *returned, *(leaf.grad for leaf in leaves)

    expected = results(call)
    launches.update(forward=0, backward=0)
    # A reentrant one takes no tensors in tuples.
    actual = results(lambda *args: checkpoint(call, *args, use_reentrant=reentrant))
    assert_equal(actual, expected)
    assert launches == {"forward": 4, "backward": 2}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_a_checkpointed_sequence_of_layers_gives_the_same_gradients_bitwise(reentrant, device):
    layers = [Output(LSTM(20, 20, device=device)) for _ in range(4)]
    model = nn.Sequential(*layers)
    x = make_input(4, 3, 20, device=device).requires_grad_()
    results = []
    for call in (model, lambda x: checkpoint_sequential(model, 2, x, use_reentrant=reentrant)):
        model.zero_grad()
        x.grad = None
        output = call(x)
        output.square().sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in model.parameters())])
    assert_equal(*results)


def to_numpy(x):
    return x.detach().cpu().numpy(), x.device


def from_numpy(packed):
    array, device = packed
    return torch.from_numpy(array).to(device)


HOOKS = {
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "numpy": lambda: torch.autograd.graph.saved_tensors_hooks(to_numpy, from_numpy),
    "allow_mutation": torch.autograd.graph.allow_mutation_on_saved_tensors,
}


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_hooks_of_saved_tensors_give_the_same_gradients_bitwise(make, hooks, device):
    module = make(device)
    x = small_input(module, device)
    expected = step_of_training(module, x)
    with hooks():
        actual = step_of_training(module, x)
    assert_equal(actual, expected)


def test_results_may_change_where_mutation_of_saved_tensors_is_allowed(device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    expected = gradients(ours(x)[0], ours)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        output, _ = ours(x)
        loss = output.square().sum()
        with torch.no_grad():
            output.zero_()
            x.zero_()
        # The loss saved output too.
        actual = torch.autograd.grad(loss, list(ours.parameters()))
    assert_equal(actual, expected)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_hooks_see_all_that_a_node_keeps(make, device):
    module = make(device)
    seen = []

    def pack(x):
        seen.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        node = module(small_input(module, device))[0].grad_fn
    weights = {parameter.data_ptr() for parameter in module.parameters()}
    assert weights <= {x.data_ptr() for x in seen}
    kept = [x for x in tree_leaves(list(vars(node).values())) if isinstance(x, torch.Tensor)]
    # Of several layers at once the counters, zeros that the first backward uses up
    assert not [x for x in kept if x.dtype != torch.int32 or x.any()]


# Memory


@pytest.fixture
def saved(monkeypatch):
    """Memory of what the kernels would write for backward, or None, from here on. None is launched:
    Triton's interpreter keeps its arguments.
    """
    memory = []

    def record(tensors):
        memory.extend(x if x is None else StorageWeakRef(x.untyped_storage()) for x in tensors)

    def recorded(launch, *names):
        signature = inspect.signature(launch)

        def call(*args):
            given = signature.bind(*args).arguments
            record(given[name] for name in names)

        return call

    def lstm_joint_forward(layers, *others):
        for *_, steps, weight_hh_t in layers:
            record((steps, weight_hh_t))

    lstm_forward = recorded(forward.lstm_forward, "steps", "weight_hh_t")
    lstm_step = recorded(step.lstm_step, "gates")
    launch_nothing(monkeypatch)
    monkeypatch.setattr(forward, "lstm_forward", lstm_forward)
    monkeypatch.setattr(joint_forward, "lstm_joint_forward", lstm_joint_forward)
    monkeypatch.setattr(step, "lstm_step", lstm_step)
    return memory


@pytest.fixture
def no_collector():
    """What is freed is freed at once, not when the collector of cycles comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_what_backward_needs_is_freed_by_it(make, device, saved):
    module = make(device)
    output = module(small_input(module, device))[0]
    assert saved and not any(x.expired() for x in saved)
    output.sum().backward()
    assert output.grad_fn is not None
    assert all(x.expired() for x in saved)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_what_backward_needs_is_freed_with_the_results(make, device, saved):
    module = make(device)
    returned = module(small_input(module, device))
    assert saved and not any(x.expired() for x in saved)
    del returned
    assert all(x.expired() for x in saved)


@pytest.mark.usefixtures("no_collector")
def test_steps_of_training_leave_nothing_behind(device, monkeypatch):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    allocated = []

    def recorded(*args):
        tensors = [y for y in args if isinstance(y, torch.Tensor)]
        allocated.extend(StorageWeakRef(y.untyped_storage()) for y in tensors)

    monkeypatch.setattr(forward, "lstm_forward", recorded)
    monkeypatch.setattr(backward, "lstm_backward", recorded)
    for _ in range(3):
        step_of_training(ours, x)
    lasting = {parameter.untyped_storage()._cdata for parameter in ours.parameters()}
    assert len(allocated) > 20
    assert {y.cdata for y in allocated if not y.expired()} <= lasting


def frozen(module, x):
    module.requires_grad_(False)
    return module(x)


WITHOUT = {
    "no_grad": torch.no_grad()(lambda module, x: module(x)),
    "inference_mode": torch.inference_mode()(lambda module, x: module(x)),
    "frozen": frozen,
    "frozen_eval": lambda module, x: frozen(module.eval(), x),
}


@pytest.mark.parametrize("call", WITHOUT.values(), ids=WITHOUT)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_nothing_is_saved_without_gradients(make, call, device, saved):
    module = make(device)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda x: x):
        returned = call(module, small_input(module, device))
    assert saved and not any(saved)
    assert not packed
    assert not any(x.requires_grad for x in tree_leaves(returned))


# Inference mode


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_inference_mode_returns_inference_tensors_and_leaves_training_possible(make, device):
    module = make(device)
    x = small_input(module, device)
    expected = step_of_training(module, x)
    theirs = torch.nn.LSTMCell if isinstance(module, LSTMCell) else torch.nn.LSTM
    with torch.inference_mode():
        returned = module(x)
        peers = theirs(5, 20, device=device)(x)
    assert all(y.is_inference() for y in tree_leaves(returned))
    assert all(y.is_inference() for y in tree_leaves(peers))
    assert torch.equal(returned[0], expected[0])
    assert_equal(step_of_training(module, x), expected)


# The device's queue


def waits(func, args, kwargs):
    """Whether the host waits for a result, or for its size, which depend on numbers."""
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
        # Numbers of rows are no matter, but of a mask it counts what is true.
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    if func.overloadpacket == torch.ops.aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class Operators(TorchDispatchMode):
    """Notes each operator, the devices of what it reads and writes, and whether it waits."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = tree_leaves((args, kwargs, result))
        devices = {x.device.type for x in tensors if isinstance(x, torch.Tensor)}
        self.calls.append((str(func), devices, waits(func, args, kwargs)))
        return result

    def waiting(self, device="meta"):
        """Operators that wait for numbers of a device."""
        return [name for name, devices, waiting in self.calls if waiting and device in devices]

    def crossing(self):
        """Operators from device to device."""
        return [name for name, devices, _ in self.calls if len(devices) > 1]


@pytest.fixture
def operators(monkeypatch):
    """All operators of calls with meta tensors, which have no numbers to wait for. The module plans
    as for a CPU, and no kernel is launched.
    """
    monkeypatch.setattr(plans, "device_refusal", lambda device: None)
    # They have no autocast, and asking for it raises.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    launch_nothing(monkeypatch)
    with Operators() as operators:
        yield operators


SIZES = {
    "one_layer": (20, {}),
    "all_options": (
        20,
        dict(num_layers=3, bidirectional=True, dropout=0.5, proj_size=7, batch_first=True),
    ),
    "no_bias": (20, dict(bias=False, num_layers=2)),
    "slices": (200, dict(num_layers=2)),
}


@pytest.mark.parametrize("given", [False, True], ids=["input_alone", "hx_and_resets"])
@pytest.mark.parametrize(("size", "options"), SIZES.values(), ids=SIZES)
@pytest.mark.skipif(not plans.interpreted(), reason="meta tensors have a plan in the interpreter")
def test_nothing_in_a_dense_step_waits_for_the_device(size, options, given, operators):
    ours = LSTM(5, size, device="meta", **options)
    rows = ours.num_layers * (1 + ours.bidirectional)
    x = torch.empty(3, 3, 5, device="meta").requires_grad_()
    hx = resets = None
    if given:
        sizes = (rows, 3, ours.proj_size or size), (rows, 3, size)
        hx = tuple(torch.empty(*s, device="meta").requires_grad_() for s in sizes)
        resets = torch.empty(3, 3, device="meta", dtype=torch.bool)
    operators.calls.clear()
    assert ours.explain(x, hx, resets).path == "fused"
    returned = flat(ours(x, hx, resets))
    sum(y.sum() for y in returned).backward()
    assert x.grad is not None and all(p.grad is not None for p in ours.parameters())
    assert len(operators.calls) > 20
    assert operators.waiting() == operators.crossing() == []


@pytest.mark.skipif(not plans.interpreted(), reason="meta tensors have a plan in the interpreter")
def test_nothing_in_a_step_of_a_stream_waits_for_the_device(operators):
    ours = LSTM(5, 20, 2, device="meta")
    x, hx = torch.empty(1, 3, 5, device="meta"), None
    operators.calls.clear()
    with torch.no_grad():
        for _ in range(2):
            assert ours.explain(x, hx).one_step
            _, hx = ours(x, hx)
    assert len(operators.calls) > 5
    assert operators.waiting() == operators.crossing() == []


@pytest.mark.skipif(not plans.interpreted(), reason="meta tensors have a plan in the interpreter")
def test_nothing_in_a_step_of_a_cell_waits_for_the_device(operators):
    cell = LSTMCell(5, 20, device="meta")
    x = torch.empty(3, 5, device="meta").requires_grad_()
    operators.calls.clear()
    hx = None
    for _ in range(2):
        assert cell.explain(x, hx).path == "fused"
        hx = cell(x, hx)
    sum(y.sum() for y in hx).backward()
    assert x.grad is not None and all(p.grad is not None for p in cell.parameters())
    assert len(operators.calls) > 20
    assert operators.waiting() == operators.crossing() == []


@pytest.mark.parametrize("with_resets", [False, True], ids=["input_alone", "resets"])
@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True, proj_size=7)])
@pytest.mark.skipif(not plans.interpreted(), reason="meta tensors have a plan in the interpreter")
def test_a_packed_step_reads_only_batch_sizes_which_are_on_the_cpu(options, with_resets, operators):
    ours = LSTM(5, 20, device="meta", **options)
    x = torch.empty(7, 5, device="meta").requires_grad_()
    packed, resets = PackedSequence(x, torch.tensor([3, 2, 1, 1])), None
    if with_resets:
        resets = packed._replace(data=torch.empty(7, device="meta", dtype=torch.bool))
    operators.calls.clear()
    assert ours.explain(packed, None, resets).path == "fused"
    output, states = ours(packed, None, resets)
    sum(y.sum() for y in (output.data, *states)).backward()
    assert x.grad is not None and all(p.grad is not None for p in ours.parameters())
    assert operators.waiting() == []
    assert operators.waiting("cpu")
    # Where the rows lie goes to the device once.
    assert operators.crossing() == ["aten._to_copy.default"]


def test_the_list_of_operators_shows_who_waits():
    x = torch.ones(3)
    with Operators() as operators:
        x.sum().item()
        torch.equal(x, x)
        x[x > 0]
        x.to("meta")
    assert operators.waiting("cpu") == [
        "aten._local_scalar_dense.default", "aten.equal.default", "aten.index.Tensor"
    ]  # fmt: skip
    assert operators.crossing() == ["aten._to_copy.default"]
