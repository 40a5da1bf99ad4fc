"""The way that most training takes, beside the way of all other calls."""

import pytest
import torch

from lstm import layer
from tests.accuracy import assert_matches, call_of, flat, make_case, ours

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# So few steps are taken a layer at a time, so many in two layers at once.
@pytest.mark.parametrize("T", [3, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_does_what_zeros_for_states_do(T, dtype, device):
    case = make_case(T, 5, 7, 20, dtype, device, hx=False, num_layers=2)
    assert_matches(case)
    without, h_n = ours(case), case.upstream["h_n"]
    case.h_0, case.c_0 = torch.zeros_like(h_n), torch.zeros_like(h_n)
    given = ours(case)
    assert all(torch.equal(without[name], given[name]) for name in without)


def way_of(case):
    """The name of the function that autograd has for a call."""
    case.input.requires_grad_()
    arguments = case.input, case.h_0, case.c_0, flat(case.layers), case.masks, case.resets
    output, _, _ = layer.lstm(call_of(case), *arguments)
    return output.grad_fn.name()


def test_what_takes_it(device):
    assert way_of(make_case(3, 2, 4, 8, device=device, hx=False)) == "PlainLSTMBackward"


OTHERS = {
    "state": {"hx": True}, "no_bias": {"bias": False}, "directions": {"D": 2}, "projected": {"P": 5}
}  # fmt: skip


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_what_does_not(options, device):
    assert (
        way_of(make_case(3, 2, 4, 8, device=device, **{"hx": False, **options})) == "_LSTMBackward"
    )
