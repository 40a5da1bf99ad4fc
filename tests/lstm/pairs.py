"""lstm.LSTM and nn.LSTM side by side: the same arguments, weights and calls."""

import pytest
import torch
from torch import nn

from lstm import LSTM
from lstm.reference import relative_error
from tests.accuracy import CEILING


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


def gradients(module, x, hx=None, *resets):
    """Results of a module, compiled or not, then gradients of everything."""
    leaves = [x.detach().requires_grad_(), *(s.detach().requires_grad_() for s in hx or ())]
    states = [tuple(leaves[1:])] if hx else [None for _ in resets]
    returned = flat(module(leaves[0], *states, *resets))
    loss = sum(y.square().sum() for y in returned)
    return *returned, *torch.autograd.grad(loss, [*leaves, *module.parameters()])


def assert_same(ours, theirs, ceiling=CEILING[torch.float32]):
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device), number
        assert relative_error(x, y) <= ceiling, number


def assert_equal(ours, theirs):
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(x, y), number


def error(call):
    """Type and message of the error that a call must raise."""
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError, IndexError)) as caught:
        call()
    return caught.type, str(caught.value)


def make_hx(size, options, device):
    """h_0 and c_0, c_0 of this size; None of None."""
    if size is None:
        return None
    h_size = options.get("proj_size") or size[-1]
    return make_input(*size[:-1], h_size, device=device), make_input(*size, device=device)


# With projections oneDNN has no LSTM, of which nn.LSTM warns once in a process.
no_onednn = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
