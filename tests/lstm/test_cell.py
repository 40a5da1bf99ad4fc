"""lstm.LSTMCell is torch.nn.LSTMCell to its users, and runs on its kernel where it says so."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lstm
from lstm.precision import matmul_in
from lstm.reference import relative_error
from tests import accuracy
from tests.accuracy import CEILING, EXACT_CEILING
from tests.lstm.pairs import assert_equal, error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def pair(*args, **kwargs):
    """lstm.LSTMCell and nn.LSTMCell of the same arguments and seed."""
    torch.manual_seed(1)
    ours = lstm.LSTMCell(*args, **kwargs)
    torch.manual_seed(1)
    return ours, nn.LSTMCell(*args, **kwargs)


def make(*size, **options):
    """Normal numbers that want a gradient."""
    return torch.randn(*size).to(**options).requires_grad_()


def run(cell, x, hx=None, reach=(0, 1)):
    """What a call returns, then the gradients of all that it is fed.

    reach: which of the results the loss has.
    """
    returned = cell(x, hx)
    loss = sum((returned[n] * (1 + n)).square().sum() for n in reach)
    return *returned, *torch.autograd.grad(loss, [x, *(hx or ()), *cell.parameters()])


def in_double(cell, x, hx=None, reach=(0, 1)):
    """The same of nn.LSTMCell in float64 on a CPU: the truth."""

    def double(y):
        return y.detach().double().cpu().requires_grad_()

    theirs = nn.LSTMCell(cell.input_size, cell.hidden_size, cell.bias)
    theirs.load_state_dict(cell.state_dict())
    return run(theirs.double(), double(x), hx and tuple(map(double, hx)), reach)


def assert_near(actual, truth, ceiling):
    for number, (x, y) in enumerate(zip(actual, truth, strict=True)):
        assert x.shape == y.shape, number
        assert relative_error(x.cpu(), y) <= ceiling, number


def assert_accurate(ours, theirs, *call):
    """By the tolerance policy, with nn.LSTMCell in the same dtype as the peer."""
    actual, standard, truth = run(ours, *call), run(theirs, *call), in_double(ours, *call)
    actual, standard, truth = (
        {number: x.cpu() for number, x in enumerate(results)}
        for results in (actual, standard, truth)
    )
    accuracy.assert_accurate(actual, truth, [standard], "ieee")


# Sizes: below, at and above a tile of units, of sequences and of what is summed at once
CALLS = {
    "row_mnist": (100, 28, 128, {}),
    "one_sequence": (1, 28, 128, {}),
    "one_unit": (100, 1, 1, {}),
    "a_tile": (16, 64, 16, {}),
    "odd": (17, 37, 37, {}),
    "many_sequences": (300, 5, 20, {}),
    "wide": (3, 300, 270, {}),
    "no_bias": (3, 5, 20, dict(bias=False)),
}


@pytest.mark.parametrize(("B", "I", "H", "options"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hx", [False, True])
def test_one_launch_a_pass_has_results_and_gradients_of_nn_lstmcell(
    B, I, H, options, hx, dtype, device, launches
):
    to = dict(device=device, dtype=dtype)
    ours, theirs = pair(I, H, **options, **to)
    x = make(B, I, **to)
    hx = (make(B, H, **to), make(B, H, **to)) if hx else None
    assert ours.explain(x, hx).path == "fused"
    assert_accurate(ours, theirs, x, hx)
    assert launches == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("hx", [False, True])
def test_unbatched(hx, device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = make(5, device=device)
    hx = (make(20, device=device), make(20, device=device)) if hx else None
    assert_accurate(ours, theirs, x, hx)
    assert launches == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("reach", [(0,), (1,)])
def test_gradients_from_one_of_the_results(reach, device):
    ours, theirs = pair(5, 20, device=device)
    x, hx = make(3, 5, device=device), (make(3, 20, device=device), make(3, 20, device=device))
    assert_accurate(ours, theirs, x, hx, reach)


def test_a_sparse_input_runs_nn_lstmcell(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = torch.eye(3, 5, device=device).to_sparse()
    assert ours.explain(x).path == "torch"
    assert_equal(ours(x), theirs(x))
    assert launches == {"forward": 0, "backward": 0}


def test_tf32_where_products_are_tf32(device, launches):
    ours, _ = pair(64, 64, device=device)
    x = make(3, 64, device=device)
    with matmul_in("tf32"):
        assert "products in tf32" in str(ours.explain(x))
        assert_near(run(ours, x), in_double(ours, x), CEILING[torch.float32])
    assert launches == {"forward": 1, "backward": 1}


def test_a_step_of_a_longer_sequence(device, launches):
    """Rows far apart, and a state that goes from step to step, with gradients through all."""
    ours, theirs = pair(5, 20, device=device)
    sequence = make(3, 4, 5, device=device)

    def steps(cell):
        hx = None
        for t in range(4):
            hx = cell(sequence[:, t], hx)
        return *hx, *torch.autograd.grad(hx[0].square().sum(), [sequence, *cell.parameters()])

    with torch.no_grad():
        transposed = ours(sequence[0, 0].expand(3, 5).t().contiguous().t())
        torch.testing.assert_close(transposed, ours(sequence[0, 0].expand(3, 5)))
    assert launches == {"forward": 2, "backward": 0}
    assert_near(steps(ours), [y.cpu() for y in steps(theirs)], 2 * EXACT_CEILING)
    assert launches == {"forward": 6, "backward": 4}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30, 1e-30])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
def test_extreme_values_come_out_as_nn_lstmcell_has_them(place, value, device):
    ours, theirs = pair(5, 20, device=device)
    fed = [torch.randn(3, 5), torch.randn(3, 20), torch.randn(3, 20)]
    fed[place][1, 2] = value
    x, *hx = (y.to(device) for y in fed)
    with torch.no_grad():
        actual, expected = ours(x, tuple(hx)), theirs(x, tuple(hx))
    for y, z in zip(actual, expected, strict=True):
        torch.testing.assert_close(y, z, equal_nan=True)


def test_gradient_penalty(device):
    ours, theirs = pair(5, 20)
    x, hx = make(3, 5), (make(3, 20), make(3, 20))

    def gradients(cell, device):
        fed = [y.detach().to(device).requires_grad_() for y in (x, *hx)]
        h_1, c_1 = cell.to(device)(fed[0], tuple(fed[1:]))
        first = torch.autograd.grad((h_1 * c_1).sum(), fed, create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        return [y.cpu() for y in torch.autograd.grad(penalty, [*fed, *cell.parameters()])]

    assert_near(gradients(ours, device), gradients(theirs, "cpu"), 2 * EXACT_CEILING)


def test_gradient_of_one_leaf(device):
    ours, theirs = pair(5, 20, device=device)
    x = make(3, 5, device=device).detach()
    for cell in (ours, theirs):
        cell.requires_grad_(False)
        cell.bias_hh.requires_grad_()
    grads = [torch.autograd.grad(cell(x)[0].sum(), cell.bias_hh)[0] for cell in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_nothing_is_saved_where_nothing_needs_a_gradient(device, monkeypatch):
    from lstm.kernels import step

    saved = []
    launch = step.lstm_step
    monkeypatch.setattr(step, "lstm_step", lambda *args: (saved.append(args[10]), launch(*args)))
    ours, _ = pair(5, 20, device=device)
    with torch.no_grad():
        ours(make(3, 5, device=device))
    ours.requires_grad_(False)(make(3, 5, device=device).detach())
    assert saved == [None, None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_a_cast_of_all_that_goes_in(dtype, device, launches):
    ours, _ = pair(5, 20, device=device)
    x, hx = make(3, 5, device=device), (make(3, 20, device=device), make(3, 20, device=device))
    with torch.autocast(device.type, dtype), torch.no_grad():
        actual = ours(x, hx)
    expected = copy.deepcopy(ours).to(dtype)(x.to(dtype), tuple(y.to(dtype) for y in hx))
    assert_equal(actual, expected)
    assert launches == {"forward": 2, "backward": 0}


def test_backward_inside_an_autocast_that_forward_had_not(device):
    ours, x = lstm.LSTMCell(5, 20, device=device), make(3, 5, device=device)
    leaves = [x, *ours.parameters()]
    expected = torch.autograd.grad(ours(x)[0].square().sum(), leaves)
    loss = ours(x)[0].square().sum()
    with torch.autocast(device.type, torch.bfloat16):
        assert_equal(torch.autograd.grad(loss, leaves), expected)


def test_a_batch_of_gradients_at_once(device):
    ours, x = lstm.LSTMCell(5, 20, device=device), make(3, 5, device=device)
    leaves, (h_1, _) = [x, *ours.parameters()], ours(x)
    given = torch.randn(2, *h_1.shape, device=device)
    each = [torch.autograd.grad(h_1, leaves, one, retain_graph=True) for one in given]
    batch = torch.autograd.grad(h_1, leaves, given, is_grads_batched=True)
    for ours, theirs in zip(batch, zip(*each, strict=True), strict=True):
        assert relative_error(ours, torch.stack(theirs)) <= CEILING[torch.float32]


# What nn.LSTMCell rejects, and how
BAD_CALLS = {
    "no_input": lambda m: m(),
    "input_none": lambda m: m(None),
    "input_0d": lambda m: m(torch.tensor(1.0)),
    "input_3d": lambda m: m(torch.zeros(1, 3, 5)),
    "input_size": lambda m: m(torch.zeros(3, 6)),
    "input_size_unbatched": lambda m: m(torch.zeros(6)),
    "input_float64": lambda m: m(torch.zeros(3, 5, dtype=torch.float64)),
    "input_int": lambda m: m(torch.zeros(3, 5, dtype=torch.int64)),
    "h_0_batch": lambda m: m(torch.zeros(3, 5), (torch.zeros(2, 20), torch.zeros(3, 20))),
    "h_0_size": lambda m: m(torch.zeros(3, 5), (torch.zeros(3, 21), torch.zeros(3, 20))),
    "c_0_size": lambda m: m(torch.zeros(3, 5), (torch.zeros(3, 20), torch.zeros(3, 21))),
    "hx_3d": lambda m: m(torch.zeros(3, 5), (torch.zeros(1, 3, 20), torch.zeros(1, 3, 20))),
    "hx_one_of_two": lambda m: m(torch.zeros(3, 5), (torch.zeros(3, 20),)),
    "hx_of_none": lambda m: m(torch.zeros(3, 5), (None, None)),
    "hx_a_number": lambda m: m(torch.zeros(3, 5), 1),
    "hx_float64": lambda m: m(torch.zeros(3, 5), (torch.zeros(3, 20).double(),) * 2),
    "other_device": lambda m: m(torch.zeros(3, 5, device="meta")),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_raise_as_in_nn_lstmcell(call, launches):
    ours, theirs = pair(5, 20)
    assert error(lambda: call(ours)) == error(lambda: call(theirs))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_states_of_one_unit_for_no_batch_is_refused(dtype, launches):
    # There nn.LSTMCell crashes.
    hx = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"hidden0 is a batch.*\(1, 1\)"):
        lstm.LSTMCell(5, 1, dtype=dtype)(torch.zeros(5, dtype=dtype), hx)
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("args", [(5,), (5, 20.0), (5, -1)], ids=str)
def test_bad_arguments_raise_as_in_nn_lstmcell(args):
    message = error(lambda: nn.LSTMCell(*args))
    assert error(lambda: lstm.LSTMCell(*args)) == message


@pytest.mark.parametrize(
    ("sizes", "dtype", "batch", "reason"),
    [
        ((600, 500), torch.float32, 3, "above 1024"),
        ((5, 20), torch.float64, 3, "torch.float64"),
        ((5, 20), torch.float32, 0, "the batch is empty"),
    ],
    ids=["size", "float64", "empty"],
)
def test_what_is_not_on_the_kernel_is_nn_lstmcell(sizes, dtype, batch, reason, device, launches):
    ours, theirs = pair(*sizes, device=device, dtype=dtype)
    x = make(batch, sizes[0], device=device, dtype=dtype)
    assert reason in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("shape", [(80, 6), (79, 5)])
def test_a_replaced_weight_of_another_shape_never_reaches_the_kernel(shape, device):
    ours, _ = pair(5, 20, device=device)
    ours.weight_ih = nn.Parameter(torch.zeros(shape, device=device))
    assert ours.explain(make(3, 5, device=device)).path == "torch"


def test_weights_that_are_no_plain_parameters(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = make(3, 5, device=device)
    for cell in (ours, theirs):
        parametrizations.weight_norm(cell, "weight_hh")
    hx = make(3, 20, device=device), make(3, 20, device=device)
    assert_near(run(ours, x, hx), [y.cpu() for y in run(theirs, x, hx)], 2 * EXACT_CEILING)
    with torch.no_grad():
        for cell in (ours, theirs):
            cell.bias_ih.add_(1)
    assert_near(run(ours, x, hx), [y.cpu() for y in run(theirs, x, hx)], 2 * EXACT_CEILING)
    assert launches == {"forward": 2, "backward": 2}


def test_state_repr_copies_and_pickle(device):
    ours, theirs = pair(5, 20, bias=False, device=device)
    assert isinstance(ours, nn.LSTMCell) and repr(ours) == repr(theirs)
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())
    theirs.load_state_dict(ours.state_dict())
    x = make(3, 5, device=device)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is lstm.LSTMCell
        assert_equal(other(x), ours(x))


def test_torch_func_runs_the_equations(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = make(3, 5, device=device).detach()
    assert ours.explain(x).path == "fused"
    grads = [torch.func.grad(lambda x, c=c: c(x)[0].sum())(x) for c in (ours, theirs)]
    torch.testing.assert_close(*grads)
    assert launches == {"forward": 0, "backward": 0}


def test_cpu_calls_are_nn_lstmcell_and_need_no_triton(run_without_interpreter):
    run_without_interpreter(
        "import sys, torch, lstm\n"
        "cell = lstm.LSTMCell(5, 20)\n"
        "x = torch.randn(3, 5)\n"
        "assert 'no NVIDIA GPU' in str(cell.explain(x))\n"
        "theirs = torch.nn.LSTMCell(5, 20)\n"
        "theirs.load_state_dict(cell.state_dict())\n"
        "assert all(map(torch.equal, cell(x), theirs(x)))\n"
        "assert 'triton' not in sys.modules\n"
    )
