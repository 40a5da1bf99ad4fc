"""lstm.LSTM is torch.nn.LSTM to its users: construction, state, what it says of itself."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lstm import LSTM
from lstm.plan import capability, interpreted, multiprocessors, plan
from tests.accuracy import CEILING
from tests.lstm.pairs import assert_equal, assert_same, error, make_input, pair, run

# Construction


OPTIONS = {
    "defaults": dict(),
    "layers": dict(num_layers=3, dropout=0.5),
    "no_bias": dict(bias=False),
    "batch_first": dict(batch_first=True),
    "bidirectional": dict(bidirectional=True),
    "proj_size": dict(proj_size=3, num_layers=2),
    "float64": dict(dtype=torch.float64),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_same_seed_same_module(options):
    ours, theirs = pair(5, 6, **options)
    assert repr(ours) == repr(theirs)
    for name in nn.LSTM.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name
    theirs = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(theirs)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_arguments_by_position():
    arguments = (5, 6, 2, False, True, 0.5, True, 3, "cpu", torch.float64)
    ours, theirs = LSTM(*arguments), nn.LSTM(*arguments)
    assert repr(ours) == repr(theirs)
    assert ours.weight_ih_l0.dtype == torch.float64


def test_parameters_draw_the_same_random_numbers():
    torch.manual_seed(0)
    LSTM(5, 6, 2)
    ours = torch.rand(1)
    torch.manual_seed(0)
    nn.LSTM(5, 6, 2)
    assert torch.equal(ours, torch.rand(1))


BAD_ARGUMENTS = {
    "no_hidden_size": ((5,), {}),
    "input_size_zero": ((0, 6), {}),
    "hidden_size_zero": ((5, 0), {}),
    "hidden_size_float": ((5, 6.0), {}),
    "num_layers_zero": ((5, 6, 0), {}),
    "bias_int": ((5, 6), dict(bias=1)),
    "batch_first_int": ((5, 6), dict(batch_first=1)),
    "dropout_above_one": ((5, 6, 2), dict(dropout=1.5)),
    "dropout_bool": ((5, 6, 2), dict(dropout=True)),
    "proj_size_negative": ((5, 6), dict(proj_size=-1)),
    "proj_size_as_hidden_size": ((5, 6), dict(proj_size=6)),
    "unknown": ((5, 6), dict(nonlinearity="relu")),
}


@pytest.mark.parametrize(("args", "kwargs"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_raise_as_in_nn_lstm(args, kwargs):
    assert error(lambda: LSTM(*args, **kwargs)) == error(lambda: nn.LSTM(*args, **kwargs))


def test_dropout_after_the_only_layer_warns_as_in_nn_lstm():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        LSTM(5, 6, dropout=0.5)


# State


def test_state_dict_both_ways(device):
    ours, theirs = pair(5, 20, 2, device=device)
    other = nn.LSTM(5, 20, 2, device=device)
    other.load_state_dict(ours.state_dict())
    assert_equal(other.state_dict().values(), theirs.state_dict().values())
    fresh = LSTM(5, 20, 2, device=device)
    fresh.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = make_input(3, 2, 5, device=device)
    assert_equal(run(fresh, x), run(ours, x))


def test_state_dict_saves_as_weights_only(device):
    ours, _ = pair(5, 20, 2, device=device)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    fresh = LSTM(5, 20, 2, device=device)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = make_input(3, 2, 5, device=device)
    assert_equal(run(fresh, x), run(ours, x))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_equal_and_independent(copied, device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(3, 2, 5, device=device)
    before = run(ours, x)
    other = copied(ours)
    assert_equal(run(other, x), before)
    with torch.no_grad():
        other.weight_hh_l1.zero_()
    assert_equal(run(ours, x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversion_of_the_module(dtype, device, launches):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(3, 2, 5, device=device, dtype=dtype)
    converted = {torch.float16: ours.half, torch.bfloat16: ours.bfloat16}[dtype]()
    actual, expected = run(converted, x), run(theirs, x.float())
    assert all(tensor.dtype == dtype for tensor in actual)
    # nn.LSTM's weights are not rounded here.
    assert_same([tensor.float() for tensor in actual], expected, 3 * CEILING[dtype])
    assert launches == {"forward": 2, "backward": 2}


def test_there_and_back_between_dtypes(device):
    ours, theirs = pair(5, 20, device=device)
    x = make_input(3, 2, 5, device=device)
    assert_same(run(ours.double().float(), x), run(theirs, x))


# explain


def test_explain_says_what_a_call_then_does(device, launches):
    ours, _ = pair(5, 20, 2, device=device, batch_first=True)
    x = make_input(3, 4, 5, device=device)
    before = ours.explain(x)
    assert launches == {"forward": 0, "backward": 0}
    ours(x)
    assert launches == {"forward": 2, "backward": 0}
    assert ours.explain(x) == before
    where = dict(
        card=capability(device), interpret=interpreted(), multiprocessors=multiprocessors(device)
    )
    assert before == plan(20, 3, torch.float32, **where)
    assert before != plan(20, 3, torch.bfloat16, **where)


def test_explain_takes_the_batch_from_where_it_is(device):
    x = torch.zeros(3000, 1, 5, device=device)
    steps_first, _ = pair(5, 20, device=device)
    batch_first, _ = pair(5, 20, device=device, batch_first=True)
    unbatched = steps_first.explain(x[:, 0])
    assert steps_first.explain(x).programs == unbatched.programs == 1
    assert batch_first.explain(x).programs > 1


def test_a_path_can_be_forced(device, launches, force):
    ours, theirs = pair(5, 130, device=device)
    x = make_input(2, 3, 5, device=device)
    force("torch")
    assert "FUSED_LSTM_FORCE" in str(ours.explain(x))
    assert torch.equal(ours(x)[0], theirs(x)[0])
    assert launches == {"forward": 0, "backward": 0}
    force("stepwise")
    assert "a launch a step" in str(ours.explain(x))
    assert_same([ours(x)[0]], [theirs(x)[0]])
    assert launches == {"forward": 1, "backward": 0}


def test_explain_of_a_call_that_will_fail(device):
    ours, _ = pair(5, 20, device=device)
    plan = ours.explain(make_input(4, 3, 6, device=device))
    assert plan.path == "torch"
    assert "do not fit together" in str(plan)


# Without the interpreter


def test_import_and_cpu_calls_need_neither_triton_nor_a_gpu(run_without_interpreter):
    run_without_interpreter("""
import sys
import torch
assert "triton" not in sys.modules, "torch itself imports triton, so this test proves nothing"
import lstm
assert "triton" not in sys.modules
module = lstm.LSTM(5, 20, 2, dropout=0.5)
x = torch.randn(4, 3, 5)
output, _ = module(x)
output.sum().backward()
assert "interpreter is off" in str(module.explain(x))
assert "triton" not in sys.modules
assert not torch.cuda.is_initialized()
""")


def test_cpu_calls_equal_nn_lstm_bitwise(run_without_interpreter):
    run_without_interpreter("""
import torch
from tests.lstm.test_module import assert_equal, pair, run
for options in ({}, {"num_layers": 2}, {"batch_first": True}, {"bidirectional": True}):
    for dtype in (torch.float32, torch.float64):
        ours, theirs = pair(5, 20, dtype=dtype, **options)
        x = torch.randn(4, 3, 5, dtype=dtype)
        assert ours.explain(x).path == "torch"
        assert_equal(run(ours, x), run(theirs, x))
""")


# The notebook


class Classifier(nn.Module):
    """The MNIST notebook's model."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm(28, 128, 2, batch_first=True)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        h_0 = torch.zeros(2, x.size(0), 128, device=x.device)
        c_0 = torch.zeros(2, x.size(0), 128, device=x.device)
        output, _ = self.lstm(x, (h_0, c_0))
        return self.fc(output[:, -1, :])


def losses(lstm, device):
    torch.manual_seed(0)
    model = Classifier(lstm).to(device)
    images, labels = torch.rand(8, 28, 28).to(device), torch.randint(10, (8,)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_the_notebooks_model_trains_as_with_nn_lstm(device, launches):
    actual, expected = losses(LSTM, device), losses(nn.LSTM, device)
    assert actual == pytest.approx(expected, abs=1e-3)
    assert actual[-1] < actual[0]
    assert launches == {"forward": 10, "backward": 10}
