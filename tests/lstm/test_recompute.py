"""recompute: the same results, and no gates kept between forward and backward."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from lstm import LSTM, convert
from lstm.kernels import forward
from tests.lstm.pairs import assert_equal, assert_same, flat, make_hx, make_input, no_onednn, pair

CALLS = {
    "one_layer": dict(),
    "two_layers": dict(num_layers=2),
    "batch_first": dict(batch_first=True),
    "bidirectional": dict(num_layers=2, bidirectional=True),
    "projected": dict(num_layers=2, proj_size=7),
}


def gradients(module, x, hx, resets=None):
    """Results, then gradients of everything."""
    leaves = [x.detach().requires_grad_(), *(s.detach().requires_grad_() for s in hx or ())]
    returned = flat(module(leaves[0], tuple(leaves[1:]) or None, resets))
    loss = sum(y.square().sum() for y in returned)
    return *returned, *torch.autograd.grad(loss, [*leaves, *module.parameters()])


# All steps in one part, parts of which the last is shorter, single steps
@pytest.mark.parametrize("steps", [100, 3, 1])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_results_are_the_same(options, hx, steps, device, launches):
    module, _ = pair(5, 20, device=device, **options)
    x = make_input(7, 7, 5, device=device)
    count = module.num_layers * (1 + module.bidirectional)
    hx = make_hx((count, 7, 20), options, device) if hx else None
    resets = torch.rand(7, 7, device=device) < 0.2
    expected = gradients(module, x, hx, resets)
    module.recompute = steps
    before = dict(launches)
    assert_same(gradients(module, x, hx, resets), expected)
    parts = -(-7 // steps) * count
    assert launches["forward"] - before["forward"] == 2 * parts
    assert launches["backward"] - before["backward"] == parts


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [1, 6, 3, 5]])
def test_packed(bidirectional, lengths, device):
    module, _ = pair(5, 20, 2, bidirectional=bidirectional, device=device)
    x, flags = make_input(6, 4, 5, device=device), torch.rand(6, 4, device=device) < 0.3
    hx = make_hx(((1 + bidirectional) * 2, 4, 20), {}, device)

    def run():
        leaves = [y.detach().requires_grad_() for y in (x, *hx)]
        fed, resets = (
            pack_padded_sequence(y, lengths, enforce_sorted=False) for y in (leaves[0], flags)
        )
        output, states = module(fed, tuple(leaves[1:]), resets)
        returned = output.data, *states
        loss = sum(y.square().sum() for y in returned)
        return *returned, *torch.autograd.grad(loss, [*leaves, *module.parameters()])

    expected = run()
    module.recompute = 2
    assert_same(run(), expected)


def test_dropout_masks_are_the_same_in_both_forwards(device):
    module, _ = pair(5, 20, 3, dropout=0.5, device=device)
    x = make_input(7, 3, 5, device=device)

    def run():
        torch.manual_seed(2)
        return gradients(module, x, None)

    expected = run()
    module.recompute = 3
    assert_same(run(), expected)


def kept(module, x):
    """Bytes of memory that a call leaves for backward, besides the input and the weights."""
    own = {y.untyped_storage().data_ptr() for y in (x, *module.parameters())}
    memory = {}

    def pack(y):
        storage = y.untyped_storage()
        if storage.data_ptr() not in own:
            memory[storage.data_ptr()] = storage.nbytes()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        output, _ = module(x)
    del output
    return sum(memory.values())


def test_no_gates_are_kept(device):
    T, B, H = 60, 8, 32
    module, _ = pair(5, H, 2, device=device)
    x = make_input(T, B, 5, device=device)
    numbers = 4 * T * B * H
    assert kept(module, x) > 2 * 6 * numbers
    module.recompute = 10
    # The states that six parts begin with, h and c of two layers
    assert kept(module, x) <= 6 * 2 * 2 * 4 * B * H


def test_backward_holds_the_gates_of_one_part_at_a_time(device, monkeypatch):
    module, _ = pair(5, 20, device=device)
    launch, steps = forward.lstm_forward, []

    def recorded(*args):
        saved, T = args[5], args[13]
        assert saved is not None
        steps.append(T)
        return launch(*args)

    monkeypatch.setattr(forward, "lstm_forward", recorded)
    module.recompute = 4
    output, _ = module(make_input(10, 3, 5, device=device))
    assert steps == [4, 4, 2]
    steps.clear()
    output.sum().backward()
    assert steps == [2, 4, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts memory of a GPU")
def test_peak_memory_of_a_long_sequence(device):
    def peak(recompute):
        module = LSTM(64, 128, recompute=recompute, device=device)
        x = torch.randn(4000, 16, 64, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(x)[0].sum().backward()
        return torch.cuda.max_memory_allocated() - before

    # output, its gradient and parts of them, where all of it are the gates too
    assert peak(200) < 0.4 * peak(0)


def test_where_nothing_is_differentiated_nothing_is_split(device, launches):
    module, _ = pair(5, 20, 2, device=device)
    x = make_input(7, 3, 5, device=device)
    with torch.no_grad():
        expected = flat(module(x))
        module.recompute = 2
        assert_equal(flat(module(x)), expected)
    assert launches == {"forward": 4, "backward": 0}


def test_second_derivatives(device):
    module, _ = pair(5, 20, device=device)
    x = make_input(5, 3, 5, device=device).requires_grad_()

    def second():
        (first,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *module.parameters()])

    expected = second()
    module.recompute = 2
    assert_same(second(), expected)


@no_onednn
def test_an_option_of_the_module(device):
    module = LSTM(5, 20, recompute=64, device=device)
    assert module.recompute == 64 and "recompute=64" in repr(module)
    assert copy.deepcopy(module).recompute == 64
    assert list(module.state_dict()) == list(LSTM(5, 20).state_dict())
    converted = torch.nn.LSTM(5, 20)
    convert(converted)
    assert converted.recompute == 0 and "recompute" not in repr(converted)
    with pytest.raises(ValueError, match="recompute"):
        LSTM(5, 20, recompute=-1)
    with pytest.raises(TypeError, match="recompute"):
        LSTM(5, 20, recompute=2.5)
