"""LSTM in what records a call, or imitates it without numbers. Nobody would see a launch there,
so nn.LSTM runs.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lstm import LSTM, LSTMCell
from tests.accuracy import CEILING
from tests.lstm.pairs import assert_equal, assert_same, flat, gradients, make_hx, make_input, pair

scripts = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.{name}` is deprecated:{kind}")
    for name in ("script", "trace", "trace_method")
    for kind in ("FutureWarning", "DeprecationWarning")
]
pytestmark = [*scripts, pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]


class Around(nn.Module):
    """An LSTM within another module: alone nn.LSTM cannot be called when it is scripted."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x, hx: tuple[torch.Tensor, torch.Tensor]):
        return self.lstm(x, hx)


def test_torchscript_compiles_nn_lstm(launches):
    module, theirs = pair(5, 20, 2, bidirectional=True)
    scripted = torch.jit.script(Around(module))
    x, hx = make_input(4, 3, 5), make_hx((4, 3, 20), {}, "cpu")
    assert_equal(gradients(scripted, x, hx), gradients(theirs, x, hx))
    assert launches == {"forward": 0, "backward": 0}
    # The module itself is what it was.
    assert type(module) is LSTM
    assert_same(gradients(module, x, hx), gradients(theirs, x, hx), CEILING[torch.float32])


def test_torchscript_compiles_nn_lstm_cell(launches):
    module, x, hx = LSTMCell(5, 20), make_input(3, 5), (make_input(3, 20), make_input(3, 20))
    assert_equal(torch.jit.script(module)(x, hx), nn.LSTMCell.forward(module, x, hx))
    assert launches["forward"] == 0


class Doubles(LSTM):
    def forward(self, input: torch.Tensor):
        return 2 * input


class DoublesCell(LSTMCell):
    def forward(self, input: torch.Tensor):
        return 2 * input


@pytest.mark.parametrize("kind", [Doubles, DoublesCell])
def test_torchscript_compiles_what_a_subclass_does(kind):
    x = make_input(3, 5)
    assert torch.equal(torch.jit.script(nn.Sequential(kind(5, 20)))(x), 2 * x)


def test_a_trace_is_of_nn_lstm(launches):
    module, theirs = pair(5, 20, 2)
    # Its check would run the module itself.
    traced = torch.jit.trace(module, make_input(4, 3, 5), check_trace=False)
    x = make_input(2, 5, 5)
    assert_equal(flat(traced(x)), flat(theirs(x)))
    assert launches == {"forward": 0, "backward": 0}


class Both(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.cell, self.lstm = LSTMCell(5, 20, device=device), LSTM(20, 8, device=device)

    def forward(self, x, h, c, resets):
        h, c = self.cell(x, (h, c))
        return self.lstm(h[None], None, resets)[0], c


def test_torch_fx_keeps_the_modules_whole(device, launches):
    model = Both(device)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "cell", "lstm",
    ]  # fmt: skip
    states = make_input(3, 20, device=device), make_input(3, 20, device=device)
    given = make_input(3, 5, device=device), *states, torch.ones(1, 3, device=device).bool()
    expected, launched = model(*given), launches["forward"]
    assert_equal(traced(*given), expected)
    assert launches["forward"] == 2 * launched > 0


@pytest.mark.parametrize("make", [LSTM, LSTMCell])
def test_fake_tensors_have_the_sizes(make, device, launches):
    with FakeTensorMode():
        module = make(5, 20, device=device)
        sizes = [x.shape for x in flat_of(module(torch.ones(4, 5, device=device)))]
    real = make(5, 20, device=device)
    assert sizes == [x.shape for x in flat_of(real(torch.ones(4, 5, device=device)))]
    assert launches["forward"] == 1


def flat_of(returned):
    return torch.utils._pytree.tree_leaves(returned)


@pytest.mark.parametrize("make", [LSTM, LSTMCell])
def test_make_fx_records_every_operation(make, device, launches):
    module, x = make(5, 20, device=device), make_input(4, 5, device=device)
    recorded = make_fx(lambda x: flat_of(module(x)))(x)
    assert launches["forward"] == 0
    assert_same(recorded(2 * x), flat_of(module(2 * x)), CEILING[torch.float32])
