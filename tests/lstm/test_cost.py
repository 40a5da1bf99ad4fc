"""What a training step costs around the kernels: launches on a GPU, Python on its host."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lstm
from lstm import LSTM
from lstm.kernels import backward, forward, joint_backward, joint_forward
from lstm.plan import MIN_JOINT_STEPS
from tests.lstm.pairs import make_input

# Operations that launch nothing: views, and memory that is not written.
FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty",
    "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Names of the operations that would be launched on a GPU, one kernel each."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        for module, name in (
            (forward, "lstm_forward"),
            (backward, "lstm_backward"),
            (joint_forward, "lstm_joint_forward"),
            (joint_backward, "lstm_joint_backward"),
        ):
            monkeypatch.setattr(module, name, lambda *_, name=name: self.names.append(name))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def undetermined():
    """Elsewhere in the tests unwritten memory is filled, an operation of its own."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


def training_step(module, x, grad):
    output, _ = module(x)
    return torch.autograd.grad(output, list(module.parameters()), grad)


# Forward: the product of the input and the kernel; backward: the kernel and both weight gradients,
# and from layer to layer the gradient of the input; of all layers one sum for the biases. Several
# layers at once are one kernel, with no product between them, and count from a tensor of zeros.
@pytest.mark.parametrize(
    ("layers", "T", "most"), [(1, 28, 6), (2, 28, 9), (3, 28, 11), (4, 28, 13), (2, 7, 12)]
)
def test_launches_of_a_training_step(layers, T, most, device, monkeypatch):
    module, x = LSTM(28, 128, layers, device=device), make_input(T, 100, 28, device=device)
    grad = torch.ones(T, 100, 128, device=device)
    training_step(module, x, grad)
    counted = Launches(monkeypatch)
    with counted:
        training_step(module, x, grad)
    at_once = layers > 1 and T >= MIN_JOINT_STEPS
    for name in ("forward", "backward"):
        assert counted.names.count(f"lstm_joint_{name}") == (1 if at_once else 0)
        assert counted.names.count(f"lstm_{name}") == (0 if at_once else layers)
    assert len(counted.names) <= most, counted.names


def test_batch_first_costs_a_copy_in_each_pass(device, monkeypatch):
    module = LSTM(28, 128, 2, batch_first=True, device=device)
    counted = Launches(monkeypatch)
    with counted:
        x = make_input(100, 28, 28, device=device)
        counted.names.clear()
        training_step(module, x, torch.ones(100, 28, 128, device=device))
    counted.names.remove("ones")
    assert len(counted.names) <= 11, counted.names


def lines_of(function):
    """Lines of the package that a call runs."""
    own, count = str(Path(lstm.__file__).parent), 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(own):
            return None
        count += event == "line"
        return trace

    # Of the main thread, where a CPU runs backward, too.
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return count


# Host time is what bounds a small LSTM. Clocks are for bench/host.py; lines can be counted.
@pytest.mark.parametrize(("layers", "T", "most"), [(1, 2, 150), (2, 2, 180), (2, 16, 195)])
def test_lines_of_a_training_step(layers, T, most, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU's backward runs in another thread, whose lines are not counted")
    module, x = LSTM(8, 8, layers), make_input(T, 1, 8)
    grad = torch.ones(T, 1, 8)
    Launches(monkeypatch)
    training_step(module, x, grad)
    assert lines_of(lambda: training_step(module, x, grad)) <= most
