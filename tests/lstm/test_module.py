"""lstm.LSTM is torch.nn.LSTM to its users, and its calls run on the kernels where it says so."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm import LSTM
from lstm.plan import capability, interpreted, plan
from lstm.reference import relative_error
from tests.accuracy import CEILING, EXACT_CEILING


def pair(*args, device="cpu", **kwargs):
    """lstm.LSTM and nn.LSTM of the same arguments and seed."""
    torch.manual_seed(1)
    ours = LSTM(*args, device=device, **kwargs)
    torch.manual_seed(1)
    return ours, nn.LSTM(*args, device=device, **kwargs)


def make_input(*size, device="cpu", dtype=torch.float32):
    return torch.randn(*size).to(device, dtype)


def flat(returned):
    output, (h_n, c_n) = returned
    return output, h_n, c_n


def run(module, input, hx=None):
    """What a call returns, then the gradients of its input and of all parameters."""
    input = input.detach().requires_grad_()
    returned = flat(module(input, hx))
    loss = sum((x * torch.linspace(-1, 1, x.numel()).to(x).view_as(x)).sum() for x in returned)
    return *returned, *torch.autograd.grad(loss, [input, *module.parameters()])


def assert_same(ours, theirs, ceiling=CEILING[torch.float32]):
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device), number
        assert relative_error(x, y) <= ceiling, number


def assert_equal(ours, theirs):
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(x, y), number


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


def error(call):
    """Type and message of the error that a call must raise."""
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError, IndexError)) as caught:
        call()
    return caught.type, str(caught.value)


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


# Calls on the kernels


CALLS = {
    "one_layer": ((4, 3, 5), {}, None),
    "two_layers": ((4, 3, 5), dict(num_layers=2), None),
    "no_bias": ((4, 3, 5), dict(bias=False), None),
    "batch_first": ((3, 4, 5), dict(batch_first=True), None),
    "unbatched": ((4, 5), {}, None),
    "unbatched_batch_first": ((4, 5), dict(batch_first=True), None),
    "hx": ((4, 3, 5), dict(num_layers=2), (2, 3, 20)),
    "hx_batch_first": ((3, 4, 5), dict(num_layers=2, batch_first=True), (2, 3, 20)),
    "hx_unbatched": ((4, 5), dict(num_layers=2), (2, 20)),
    "bidirectional": ((4, 3, 5), dict(bidirectional=True), None),
    "bidirectional_layers": ((4, 3, 5), dict(bidirectional=True, num_layers=2), (4, 3, 20)),
    "bidirectional_no_bias": ((4, 3, 5), dict(bidirectional=True, bias=False), None),
    "bidirectional_batch_first": ((3, 4, 5), dict(bidirectional=True, batch_first=True), None),
    "bidirectional_unbatched": ((4, 5), dict(bidirectional=True), (2, 20)),
    "one_step": ((1, 3, 5), {}, (1, 3, 20)),
    "one_sequence": ((4, 1, 5), {}, (1, 1, 20)),
}


@pytest.mark.parametrize(("size", "options", "hx_size"), CALLS.values(), ids=CALLS)
def test_one_launch_a_layer_and_pass_equals_nn_lstm(size, options, hx_size, device, launches):
    ours, theirs = pair(5, 20, device=device, **options)
    x = make_input(*size, device=device)
    hx = None
    if hx_size is not None:
        hx = make_input(*hx_size, device=device), make_input(*hx_size, device=device)
    assert ours.explain(x, hx).path == "fused"
    assert_same(run(ours, x, hx), run(theirs, x, hx))
    layers = options.get("num_layers", 1)
    assert launches == {"forward": layers, "backward": layers}


PACKED = {
    "sorted": ([4, 2, 2], dict(num_layers=2), None),
    "unsorted": ([2, 4, 1, 3], dict(), None),
    "unsorted_hx": ([2, 4, 1, 3], dict(num_layers=2), (2, 4, 20)),
    "both_directions": ([2, 4, 1, 3], dict(bidirectional=True, num_layers=2), (4, 4, 20)),
    "batch_first": ([2, 4, 1], dict(batch_first=True), (1, 3, 20)),
    "one_sequence": ([5], dict(), None),
    "single_steps": ([1, 1], dict(bidirectional=True), None),
}


@pytest.mark.parametrize(("lengths", "options", "hx_size"), PACKED.values(), ids=PACKED)
def test_packed_sequences_equal_nn_lstm(lengths, options, hx_size, device, launches):
    ours, theirs = pair(5, 20, device=device, **options)
    sequences = [make_input(length, 5, device=device) for length in lengths]
    x = pack_sequence(sequences, enforce_sorted=False)
    hx = None
    if hx_size is not None:
        hx = make_input(*hx_size, device=device), make_input(*hx_size, device=device)
    assert ours.explain(x, hx).path == "fused"

    def results(module):
        data = x.data.clone().requires_grad_()
        states = hx and tuple(state.clone().requires_grad_() for state in hx)
        output, (h_n, c_n) = module(x._replace(data=data), states)
        assert torch.equal(output.batch_sizes, x.batch_sizes)
        assert output.sorted_indices is x.sorted_indices
        assert output.unsorted_indices is x.unsorted_indices
        leaves = [data, *(states or ()), *module.parameters()]
        # A weight of its own for each sequence, or an exchange of two would not show.
        weights = torch.arange(1.0, 1 + h_n.numel(), device=device).view(h_n.shape)
        loss = output.data.square().sum() + ((h_n + c_n) * weights).sum() / h_n.numel()
        return [output.data, h_n, c_n, *torch.autograd.grad(loss, leaves)]

    assert_same(results(ours), results(theirs))
    layers = options.get("num_layers", 1)
    assert launches == {"forward": layers, "backward": layers}


def test_packed_states_follow_their_sequences(device):
    """Each sequence alone gives its part of the batch."""
    ours, _ = pair(5, 20, device=device, bidirectional=True)
    sequences = [make_input(length, 5, device=device) for length in (2, 4, 1)]
    _, (h_n, c_n) = ours(pack_sequence(sequences, enforce_sorted=False))
    for number, sequence in enumerate(sequences):
        _, (h, c) = ours(sequence)
        assert_same([h_n[:, number], c_n[:, number]], [h, c])


def test_dropout_between_packed_layers_draws_as_nn_lstm_does_on_a_cpu(device):
    if device.type == "cuda":
        pytest.skip("cuDNN draws its own numbers")
    ours, theirs = pair(5, 20, 2, dropout=0.5)
    x = pack_sequence([make_input(4, 5), make_input(2, 5)])
    torch.manual_seed(3)
    output, _ = ours(x)
    torch.manual_seed(3)
    expected, _ = theirs(x)
    assert_same([output.data], [expected.data])


def test_gradient_penalty_of_packed_sequences(device):
    ours, theirs = pair(5, 20, 2, device=device, bidirectional=True)
    x = pack_sequence([make_input(4, 5, device=device), make_input(2, 5, device=device)])

    def penalty(module):
        data = x.data.double().requires_grad_() if module is theirs else x.data.requires_grad_()
        output, _ = module(x._replace(data=data))
        (grad,) = torch.autograd.grad(output.data.square().sum(), data, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), list(module.parameters()))

    theirs.double()
    with torch.backends.cudnn.flags(enabled=False):
        expected = penalty(theirs)
    assert_same(penalty(ours), [grad.float() for grad in expected])


# PackedSequence checks nothing of what it is made of.
@pytest.mark.parametrize("batch_sizes", [[1, 2, 3], [3, 3, 0], [2, 2, 3], [2, 2]])
def test_a_packed_sequence_that_nothing_packs_never_reaches_the_kernels(batch_sizes, device):
    ours, _ = pair(5, 20, device=device)
    x = PackedSequence(make_input(6, 5, device=device), torch.tensor(batch_sizes))
    assert ours.explain(x).path == "torch"


def test_gradients_of_hx(device):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)

    def gradients(module):
        torch.manual_seed(2)
        hx = [make_input(2, 3, 20, device=device).requires_grad_() for _ in range(2)]
        _, (h_n, c_n) = module(x, tuple(hx))
        return torch.autograd.grad((h_n * c_n).sum(), hx)

    assert_same(gradients(ours), gradients(theirs))


def test_results_of_one_call_feed_the_next(device):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)

    def gradients(module):
        _, hx = module(x[:2])
        output, _ = module(x[2:], hx)
        return torch.autograd.grad(output.sum(), list(module.parameters()))

    assert_same(gradients(ours), gradients(theirs))


STRIDED = {
    "transposed": lambda x: x.transpose(0, 1),
    "every_second": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand(4, 4, 10),
    "column_major": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strided_input(strided, device, launches):
    x = strided(make_input(4, 4, 10, device=device))
    ours, theirs = pair(x.shape[-1], 20, device=device)
    assert not x.is_contiguous()
    assert_same(flat(ours(x)), flat(theirs(x)))
    assert_same(run(ours, x), run(theirs, x))
    assert launches == {"forward": 2, "backward": 1}


def test_strided_hx(device, launches):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    h_0 = make_input(3, 2, 20, device=device).transpose(0, 1)
    c_0 = make_input(2, 20, 3, device=device).transpose(1, 2)
    contiguous = h_0.contiguous(), c_0.contiguous()
    assert_same(run(ours, x, (h_0, c_0)), run(theirs, x, contiguous))
    assert launches == {"forward": 2, "backward": 2}


def test_hx_as_a_list(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x, h_0 = make_input(4, 3, 5, device=device), make_input(1, 3, 20, device=device)
    assert_same(run(ours, x, [h_0, h_0]), run(theirs, x, (h_0, h_0)))
    assert launches == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("place", ["output", "h_n", "c_n"])
def test_results_without_gradient_change_in_place(place, device):
    ours, _ = pair(5, 20, device=device)
    with torch.no_grad():
        output, (h_n, c_n) = ours(make_input(4, 3, 5, device=device))
    others = {"output": output, "h_n": h_n, "c_n": c_n}
    changed = others.pop(place)
    before = [x.clone() for x in others.values()]
    changed.fill_(7)
    assert_equal(others.values(), before)


# Carrying a state to the next piece of a long sequence by detach_ is a habit of many programs.
@pytest.mark.parametrize("change", [torch.Tensor.detach_, lambda x: x.mul_(2)])
@pytest.mark.parametrize("place", [0, 1])
def test_states_change_in_place(place, change, device):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)

    def gradients(module):
        output, states = module(x)
        change(states[place])
        loss = output.sum() + states[0].sum() + states[1].sum()
        return torch.autograd.grad(loss, list(module.parameters()))

    assert_same(gradients(ours), gradients(theirs))


def test_output_changed_before_backward_raises_as_in_nn_lstm(device):
    for module in pair(5, 20, device=device):
        output, _ = module(make_input(4, 3, 5, device=device))
        output.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_backward_in_eval_mode(device, launches):
    ours, _ = pair(5, 20, 2, device=device, dropout=0.5)
    x = make_input(4, 3, 5, device=device)
    # nn.LSTM in train mode: cuDNN has no backward in eval mode.
    _, theirs = pair(5, 20, 2, device=device)
    assert_same(run(ours.eval(), x), run(theirs, x))
    assert launches == {"forward": 2, "backward": 2}


def test_frozen_module_needs_no_backward(device, launches):
    ours, _ = pair(5, 20, 2, device=device)
    output, _ = ours.requires_grad_(False)(make_input(4, 3, 5, device=device))
    assert not output.requires_grad
    assert launches == {"forward": 2, "backward": 0}


def test_backward_stops_at_the_lowest_layer_that_needs_it(device, launches):
    ours, _ = pair(5, 20, 3, device=device)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(name.endswith("l2"))
    output, _ = ours(make_input(4, 3, 5, device=device))
    output.sum().backward()
    assert launches == {"forward": 3, "backward": 1}


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True)])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropout_draws_as_nn_lstm_does_on_a_cpu(p, options, device):
    if device.type == "cuda":
        pytest.skip("cuDNN draws its dropout masks itself")
    ours, theirs = pair(5, 20, 3, dropout=p, **options)
    x = make_input(4, 3, 5)
    torch.manual_seed(2)
    actual, after = run(ours, x), torch.rand(1)
    torch.manual_seed(2)
    expected = run(theirs, x)
    assert_same(actual, expected)
    assert torch.equal(after, torch.rand(1))


def test_dropout_drops_between_layers_only(device):
    torch.manual_seed(1)
    ours = LSTM(5, 20, 2, dropout=1.0, bias=False, device=device)
    _, (h_n, c_n) = ours(make_input(4, 3, 5, device=device))
    assert h_n[0].all() and c_n[0].all()
    assert not h_n[1].any() and not c_n[1].any()


def test_weights_changed_in_place_count_at_once(device):
    ours, theirs = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)
    run(ours, x)
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight_hh_l0.mul_(-2)
    assert_same(run(ours, x), run(theirs, x))


def test_replaced_parameter(device):
    ours, theirs = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)
    for module in (ours, theirs):
        module.weight_ih_l0 = nn.Parameter(torch.ones(80, 5, device=device) / 10)
    assert_same(run(ours, x), run(theirs, x))


def test_parametrized_weights(device, launches):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    for module in (ours, theirs):
        parametrizations.weight_norm(module, "weight_hh_l0")
        module.parametrizations.weight_hh_l0.original0.data.mul_(2)
    assert_same(run(ours, x), run(theirs, x))
    assert launches == {"forward": 2, "backward": 2}


def test_functional_call(device, launches):
    ours, _ = pair(5, 20, 2, device=device)
    torch.manual_seed(2)
    other = LSTM(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    weights = {name: 2 * weight for name, weight in ours.named_parameters()}
    output, _ = torch.func.functional_call(other, weights, (x,))
    gradients = torch.autograd.grad(output.sum(), list(ours.parameters()))
    assert launches == {"forward": 2, "backward": 2}
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(2)
    expected, _ = ours(x)
    assert torch.equal(output, expected)
    doubled = torch.autograd.grad(expected.sum(), list(ours.parameters()))
    assert_equal(gradients, [2 * gradient for gradient in doubled])


def test_tied_weights_of_two_layers_add_their_gradients(device):
    ours, theirs = pair(20, 20, 2, device=device)
    for module in (ours, theirs):
        module.weight_hh_l1 = module.weight_hh_l0
    x = make_input(4, 3, 20, device=device)
    assert_same(run(ours, x), run(theirs, x))


def test_gradient_penalty(device):
    # nn.LSTM on a CPU: cuDNN has no second derivative.
    ours, theirs = pair(5, 20, 2)

    def gradients(module, device):
        torch.manual_seed(2)
        x = make_input(4, 3, 5, device=device).requires_grad_()
        hx = tuple(make_input(2, 3, 20, device=device).requires_grad_() for _ in range(2))
        output, _ = module.to(device)(x, hx)
        first = torch.autograd.grad(output.square().sum(), [x, *hx], create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(penalty, [x, *hx, *module.parameters()])
        return [gradient.cpu() for gradient in (*first, *second)]

    assert_same(gradients(ours, device), gradients(theirs, "cpu"), 2 * CEILING[torch.float32])


def test_gradient_of_a_linear_loss_can_be_differentiated(device):
    ours, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    assert gradient.requires_grad
    frozen, _ = pair(5, 20, device=device)
    frozen.requires_grad_(False)
    (expected,) = torch.autograd.grad(frozen(x)[0].sum(), x)
    assert_same([gradient], [expected])


def test_torch_func_runs_nn_lstm(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)

    def gradient(module):
        return torch.func.grad(lambda x: module(x)[0].sum())(x)

    assert torch.equal(gradient(ours), gradient(theirs))
    assert launches == {"forward": 0, "backward": 0}


# Autocast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hx_size", [None, (2, 3, 20)])
def test_autocast_is_a_cast_of_all_that_goes_in(dtype, hx_size, device, launches):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    hx = None if hx_size is None else (make_input(*hx_size, device=device),) * 2
    with torch.autocast(device.type, dtype):
        assert ours.explain(x, hx).path == "fused"
        actual = flat(ours(x, hx))
    gradients = torch.autograd.grad(actual[0].float().sum(), list(ours.parameters()))
    assert launches == {"forward": 2, "backward": 2}
    assert all(gradient.dtype == torch.float32 for gradient in gradients)

    cast = copy.deepcopy(ours).to(dtype)
    expected = flat(cast(x.to(dtype), None if hx is None else tuple(y.to(dtype) for y in hx)))
    assert_equal(actual, expected)
    expected = torch.autograd.grad(expected[0].float().sum(), list(cast.parameters()))
    assert_equal(gradients, [gradient.float() for gradient in expected])


def test_autocast_leaves_float64_alone(device, launches):
    ours, theirs = pair(5, 20, device=device, dtype=torch.float64)
    x = make_input(4, 3, 5, device=device, dtype=torch.float64)
    with torch.autocast(device.type, torch.bfloat16):
        assert ours.explain(x).path == "torch"
        assert_equal(flat(ours(x)), flat(theirs(x)))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_autocast_does_not_take_input_that_nn_lstm_rejects(dtype, device):
    x = make_input(4, 3, 5, device=device, dtype=dtype)
    for module in pair(5, 20, device=device):
        with torch.autocast(device.type, torch.bfloat16), pytest.raises(RuntimeError):
            module(x)


# Calls that nn.LSTM rejects


def hx_of(*sizes, dtype=torch.float32):
    return tuple(torch.zeros(*size, dtype=dtype) for size in sizes)


BAD_CALLS = {
    "no_input": lambda m: m(),
    "unknown_argument": lambda m: m(torch.zeros(4, 3, 5), lengths=4),
    "input_none": lambda m: m(None),
    "input_list": lambda m: m([1.0, 2.0]),
    "input_1d": lambda m: m(torch.zeros(5)),
    "input_4d": lambda m: m(torch.zeros(1, 4, 3, 5)),
    "input_size": lambda m: m(torch.zeros(4, 3, 6)),
    "input_size_unbatched": lambda m: m(torch.zeros(4, 6)),
    "input_float64": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.float64)),
    "input_float16": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.float16)),
    "input_int": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.int64)),
    "no_steps": lambda m: m(torch.zeros(0, 3, 5)),
    "no_steps_unbatched": lambda m: m(torch.zeros(0, 5)),
    "h_0_layers": lambda m: m(torch.zeros(4, 3, 5), hx_of((2, 3, 20), (1, 3, 20))),
    "h_0_batch": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 1, 20), (1, 3, 20))),
    "c_0_batch": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 4, 20))),
    "c_0_size": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 21))),
    "hx_2d": lambda m: m(torch.zeros(4, 3, 5), hx_of((3, 20), (3, 20))),
    "hx_3d_unbatched": lambda m: m(torch.zeros(4, 5), hx_of((1, 1, 20), (1, 1, 20))),
    "hx_float64": lambda m: m(
        torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 20), dtype=torch.float64)
    ),
    "hx_one_of_two": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20))),
    "hx_three": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 20), (1, 3, 20))),
    "hx_a_tensor": lambda m: m(torch.zeros(4, 3, 5), torch.zeros(1, 3, 20)),
    "hx_stacked": lambda m: m(torch.zeros(4, 3, 5), torch.zeros(2, 1, 3, 20)),
    "hx_of_none": lambda m: m(torch.zeros(4, 3, 5), (None, None)),
    "hx_a_number": lambda m: m(torch.zeros(4, 3, 5), 1),
    "other_device": lambda m: m(torch.zeros(4, 3, 5, device="meta")),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_raise_as_in_nn_lstm(call, launches):
    ours, theirs = pair(5, 20)
    assert error(lambda: call(ours)) == error(lambda: call(theirs))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True)])
def test_bad_batch_first_calls_raise_as_in_nn_lstm(options):
    ours, theirs = pair(5, 20, **options)
    x, hx = torch.zeros(4, 3, 5), hx_of((1, 2, 20), (1, 2, 20))
    assert error(lambda: ours(x, hx)) == error(lambda: theirs(x, hx))


# Calls that run PyTorch's LSTM


# With projections oneDNN has no LSTM, of which nn.LSTM warns once in a process.
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(proj_size=7), "proj_size"),
        (dict(hidden_size=129), "hidden_size above 128"),
        (dict(dtype=torch.float64), "torch.float64"),
    ],
    ids=["proj_size", "hidden_size", "float64"],
)
def test_module_not_on_the_kernels_equals_nn_lstm_bitwise(options, reason, device, launches):
    ours, theirs = pair(**(dict(input_size=5, hidden_size=20, num_layers=2) | options))
    x = make_input(4, 3, 5, device=device, dtype=options.get("dtype", torch.float32))
    ours, theirs = ours.to(device), theirs.to(device)
    assert ours.explain(x).path == "torch"
    assert reason in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


def test_ieee_float32_is_exact_on_the_kernels(device, launches, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    ours, theirs = pair(5, 64, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    assert "two torch.float16" in str(ours.explain(x))
    for actual, expected in zip(run(ours, x), run(theirs, x), strict=True):
        assert relative_error(actual, expected) < EXACT_CEILING
    assert launches == {"forward": 2, "backward": 2}


def test_ieee_float32_of_more_units_equals_nn_lstm_bitwise(device, launches, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    ours, theirs = pair(5, 65, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    assert "TF32 switched off" in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}
    assert ours.explain(x.half()).path == "torch"  # its dtype is not the weights'
    assert ours.half().explain(x.half()).path == "fused"


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True)])
def test_empty_batch_equals_nn_lstm(options, device, launches):
    ours, theirs = pair(5, 20, 2, device=device, **options)
    x = make_input(*((0, 4, 5) if options else (4, 0, 5)), device=device)
    assert "empty" in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


def test_meta_tensors_have_nn_lstms_shapes():
    ours, theirs = pair(5, 20, 2, device="meta")
    x = torch.zeros(4, 3, 5, device="meta")
    assert ours.explain(x).path == "torch"
    assert [y.shape for y in flat(ours(x))] == [y.shape for y in flat(theirs(x))]


# explain


def test_explain_says_what_a_call_then_does(device, launches):
    ours, _ = pair(5, 20, 2, device=device, batch_first=True)
    x = make_input(3, 4, 5, device=device)
    before = ours.explain(x)
    assert launches == {"forward": 0, "backward": 0}
    ours(x)
    assert launches == {"forward": 2, "backward": 0}
    assert ours.explain(x) == before
    where = capability(device), interpreted()
    assert before == plan(20, 3, torch.float32, *where)
    assert before != plan(20, 3, torch.bfloat16, *where)


def test_explain_takes_the_batch_from_where_it_is(device):
    x = torch.zeros(3000, 1, 5, device=device)
    steps_first, _ = pair(5, 20, device=device)
    batch_first, _ = pair(5, 20, device=device, batch_first=True)
    unbatched = steps_first.explain(x[:, 0])
    assert steps_first.explain(x).programs == unbatched.programs == 1
    assert batch_first.explain(x).programs > 1


def test_explain_of_a_call_that_will_fail(device):
    ours, _ = pair(5, 20, device=device)
    plan = ours.explain(make_input(4, 3, 6, device=device))
    assert plan.path == "torch"
    assert "do not fit together" in str(plan)


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_cuda_graph_replays_a_step(device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    gradient = make_input(4, 3, 20, device=device)

    def step():
        output, _ = ours(x)
        return output, *torch.autograd.grad(output, list(ours.parameters()), gradient)

    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(make_input(4, 3, 5, device=device))
    graph.replay()
    assert_equal(captured, step())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter compiles nothing")
def test_other_lengths_and_batches_compile_nothing(device, monkeypatch):
    import triton

    ours, _ = pair(5, 20, 2, device=device)
    run(ours, make_input(4, 3, 5, device=device))
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_cache_hook", lambda **kwargs: compiled.append(kwargs["repr"])
    )
    for T, B in ((1, 1), (16, 16), (5, 17)):
        run(ours, make_input(T, B, 5, device=device))
    assert not compiled


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


@pytest.mark.parametrize("shape", [(4, 6), (24, 5)])
def test_a_replaced_weight_of_another_shape_never_reaches_the_kernels(shape, device):
    module = LSTM(5, 6, device=device)
    module.weight_hh_l0 = torch.nn.Parameter(torch.ones(shape, device=device))
    assert module.explain(torch.randn(3, 2, 5, device=device)).path == "torch"
