"""Calls of lstm.LSTM that run on the kernels, beside nn.LSTM."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lstm import LSTM
from tests.lstm.pairs import (
    assert_equal,
    assert_same,
    flat,
    make_hx,
    make_input,
    no_onednn,
    pair,
    run,
)

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
    "projected": ((4, 3, 5), dict(proj_size=7), None),
    "projected_layers": (
        (4, 3, 5),
        dict(proj_size=7, num_layers=2, bidirectional=True),
        (4, 3, 20),
    ),
    "projected_batch_first": ((3, 4, 5), dict(proj_size=7, batch_first=True), (1, 3, 20)),
    "projected_unbatched": ((4, 5), dict(proj_size=19, bias=False), (1, 20)),
    "one_step": ((1, 3, 5), {}, (1, 3, 20)),
    "one_sequence": ((4, 1, 5), {}, (1, 1, 20)),
}


@no_onednn
@pytest.mark.parametrize(("size", "options", "hx_size"), CALLS.values(), ids=CALLS)
def test_one_launch_a_layer_and_pass_equals_nn_lstm(size, options, hx_size, device, launches):
    ours, theirs = pair(5, 20, device=device, **options)
    x = make_input(*size, device=device)
    hx = make_hx(hx_size, options, device)
    assert ours.explain(x, hx).path == "fused"
    assert_same(run(ours, x, hx), run(theirs, x, hx))
    layers = options.get("num_layers", 1)
    assert launches == {"forward": layers, "backward": layers}


def test_gradients_of_hx(device):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)

    def gradients(module):
        torch.manual_seed(2)
        hx = [make_input(2, 3, 20, device=device).requires_grad_() for _ in range(2)]
        _, (h_n, c_n) = module(x, tuple(hx))
        return torch.autograd.grad((h_n * c_n).sum(), hx)

    assert_same(gradients(ours), gradients(theirs))


# 1e-40 is below float32's normal numbers.
@pytest.mark.parametrize("size", [1e-40, 1e6])
@pytest.mark.parametrize("place", ["input", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0"])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_huge_and_subnormal_numbers_have_nn_lstms_results(place, size, device):
    ours, theirs = pair(5, 20, device=device)
    fed = {"input": make_input(4, 3, 5), "h_0": make_input(1, 3, 20), "c_0": make_input(1, 3, 20)}
    if place in fed:
        fed[place] *= size
    else:
        for module in (ours, theirs):
            getattr(module, place).data.mul_(size)
    x, *hx = (y.to(device) for y in fed.values())
    with torch.no_grad():
        for actual, expected in zip(flat(ours(x, hx)), flat(theirs(x, hx)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=5e-3, atol=5e-4)


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


@no_onednn
@pytest.mark.parametrize("options", [dict(), dict(batch_first=True), dict(proj_size=7)])
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


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda module: torch.nn.utils.weight_norm(module, "weight_hh_l0"),
        lambda module: parametrizations.orthogonal(module, "weight_hh_l1"),
        lambda module: prune.random_unstructured(module, "weight_ih_l0", 0.5),
        lambda module: module.share_memory(),
        lambda module: module.requires_grad_(False).requires_grad_(),
    ],
    ids=["weight_norm", "orthogonal", "pruning", "share_memory", "frozen_and_not"],
)
def test_weights_that_are_no_plain_parameters(change, device, launches):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    for module in (ours, theirs):
        torch.manual_seed(3)
        change(module)
    assert_same(run(ours, x), run(theirs, x))
    assert launches == {"forward": 2, "backward": 2}


def test_weights_that_are_not_contiguous(device, launches):
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    for name, weight in list(ours.named_parameters()):
        if weight.dim() == 2:
            setattr(ours, name, nn.Parameter(weight.detach().t().contiguous().t()))
    assert not ours.weight_hh_l0.is_contiguous()
    assert_same(run(ours, x), run(theirs, x))
    assert launches == {"forward": 2, "backward": 2}


def test_a_replica_of_data_parallel_passes_gradients_to_its_origin(device, launches):
    """What DataParallel makes of a module for each device: no parameters, weights of one node."""
    ours, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours.named_parameters():
        setattr(replica, name, parameter.clone())
    output, _ = replica(x)
    assert launches["forward"] == 2
    gradients = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
    expected, _ = theirs(x)
    expected = torch.autograd.grad(expected.square().sum(), list(theirs.parameters()))
    assert_same(gradients, expected)


def test_tied_weights_of_two_layers_add_their_gradients(device):
    ours, theirs = pair(20, 20, 2, device=device)
    for module in (ours, theirs):
        module.weight_hh_l1 = module.weight_hh_l0
    x = make_input(4, 3, 20, device=device)
    assert_same(run(ours, x), run(theirs, x))


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


# What backward may be called in
WAYS = {
    "plain": {}, "directions": {"bidirectional": True}, "projected": {"proj_size": 7},
    "parts": {"recompute": 2},
}  # fmt: skip


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_inside_an_autocast_that_forward_had_not(options, create_graph, device):
    ours, x = LSTM(5, 20, 2, device=device, **options), make_input(4, 3, 5, device=device)
    leaves = [x.requires_grad_(), *ours.parameters()]

    def gradients(dtype):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            with torch.autocast(device.type, enabled=False):
                loss = ours(x)[0].square().sum()
            return torch.autograd.grad(loss, leaves, create_graph=create_graph)

    assert_equal(gradients(torch.bfloat16), gradients(None))


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_batch_of_gradients_at_once(options, device):
    ours, x = LSTM(5, 20, 2, device=device, **options), make_input(4, 3, 5, device=device)
    leaves, (output, _) = [x.requires_grad_(), *ours.parameters()], ours(x)
    given = make_input(2, *output.shape, device=device)
    each = [torch.autograd.grad(output, leaves, one, retain_graph=True) for one in given]
    batch = torch.autograd.grad(output, leaves, given, is_grads_batched=True)
    assert_same(batch, [torch.stack(gradients) for gradients in zip(*each, strict=True)])


# On a GPU


# Few steps are taken a layer at a time, more in both layers at once.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("T", [4, 17])
def test_a_cuda_graph_replays_a_step(T, device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(T, 1, 5, device=device)
    gradient = make_input(T, 1, 20, device=device)

    def step():
        output, _ = ours(x)
        return output, *torch.autograd.grad(output, list(ours.parameters()), gradient)

    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(make_input(T, 1, 5, device=device))
    graph.replay()
    assert_equal(captured, step())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter takes an hour for it")
def test_more_steps_than_cudnn_takes(device, launches):
    """65,535 is the end of a CUDA grid's second axis."""
    ours, theirs = pair(1, 8, device=device)
    x = make_input(70_000, 2, 1, device=device)
    expected = run(theirs.cpu().double(), x.cpu().double())
    assert_same(run(ours, x), [y.float().to(device) for y in expected])
    assert launches == {"forward": 1, "backward": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter compiles nothing")
def test_other_lengths_and_batches_compile_nothing(device, monkeypatch):
    import triton

    ours, _ = pair(5, 20, 2, device=device)
    run(ours, make_input(4, 3, 5, device=device))
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_cache_hook", lambda **kwargs: compiled.append(kwargs["repr"])
    )
    # From 8 steps on two layers run at once, in kernels of their own.
    for T, B in ((1, 1), (7, 16), (5, 17)):
        run(ours, make_input(T, B, 5, device=device))
    assert not compiled
