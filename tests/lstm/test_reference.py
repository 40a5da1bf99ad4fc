"""The truth is nn.LSTM: lstm.reference against it in float64, and its own gradients."""

import pytest
import torch
from torch import nn

from lstm.reference import lstm, relative_error
from tests.accuracy import make_case, to_tf32

CASES = {
    "one_step": ((1, 3, 5, 6), {}),
    "one_sequence": ((4, 1, 5, 6), {}),
    "one_unit": ((4, 3, 1, 1), {}),
    "layers": ((4, 3, 5, 6), dict(num_layers=3)),
    "no_bias": ((4, 3, 5, 6), dict(bias=False)),
    "no_hx": ((4, 3, 5, 6), dict(hx=False, num_layers=2)),
    "projected": ((4, 3, 5, 6), dict(num_layers=2, P=3)),
    "projected_no_bias": ((4, 3, 5, 6), dict(bias=False, P=1)),
    "row_mnist": ((28, 4, 28, 128), dict(num_layers=2)),
}


def leaves_of(case):
    given = [case.input, case.h_0, case.c_0, *(x for weights in case.layers for x in weights)]
    return [x.requires_grad_() for x in given if x is not None]


def flat(returned):
    output, (h_n, c_n) = returned
    return output, h_n, c_n


def results(returned, leaves, case):
    return *returned, *torch.autograd.grad(returned, leaves, list(case.upstream.values()))


def nn_lstm(case, dropout=0.0):
    size, weights = case.input.shape[2], [x for weights in case.layers for x in weights]
    rows, columns = weights[1].shape
    module = nn.LSTM(
        size,
        rows // 4,
        len(case.layers),
        len(case.layers[0]) > 3,
        dropout=dropout,
        proj_size=columns if len(case.layers[0]) % 2 else 0,
    ).double()
    names = [name for name, _ in module.named_parameters()]
    hx = None if case.h_0 is None else (case.h_0, case.c_0)
    parameters = dict(zip(names, weights, strict=True))
    torch.manual_seed(1)
    return flat(torch.func.functional_call(module, parameters, (case.input, hx)))


@pytest.mark.parametrize(("size", "options"), CASES.values(), ids=CASES)
def test_reference_is_nn_lstm_in_float64(size, options):
    case = make_case(*size, **options).double()
    leaves = leaves_of(case)
    actual = results(lstm(case.input, case.h_0, case.c_0, case.layers), leaves, case)
    expected = results(nn_lstm(case), leaves, case)
    for x, y in zip(actual, expected, strict=True):
        assert relative_error(x, y) < 1e-13


def test_masks_are_nn_lstms_dropout():
    case = make_case(4, 3, 5, 6, num_layers=3).double()
    leaves = leaves_of(case)
    torch.manual_seed(1)
    ones = torch.ones(4, 3, 6, dtype=torch.float64)
    masks = [nn.functional.dropout(ones, 0.5) for _ in range(2)]
    actual = lstm(case.input, case.h_0, case.c_0, case.layers, masks)
    expected = nn_lstm(case, dropout=0.5)
    for x, y in zip(results(actual, leaves, case), results(expected, leaves, case), strict=True):
        assert relative_error(x, y) < 1e-13


def test_linear_takes_every_product_with_a_weight():
    case = make_case(4, 3, 5, 6, num_layers=2)
    seen = []

    def linear(x, weight):
        seen.append(weight)
        return nn.functional.linear(x, weight)

    lstm(case.input, case.h_0, case.c_0, case.layers, linear=linear)
    for weight_ih, weight_hh, *_ in case.layers:
        assert sum(x is weight_ih for x in seen) == 1
        assert sum(x is weight_hh for x in seen) == 4
    assert len(seen) == 10


def test_relative_error():
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(truth, truth) == 0
    assert relative_error(truth * 1.5, truth) == pytest.approx(0.5)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(truth, torch.zeros(2)) == float("inf")
    # Not below any bar, since no comparison with NaN is true
    assert not relative_error(torch.tensor([3.0, float("nan")]), truth) <= 1


def test_tf32_has_eleven_bits_to_nearest():
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12, 1e30, 0.0])
    expected = torch.tensor([1.0, 1 + 2**-10, 1.0, 1 + 2**-9, -1.0, 1e30, 0.0])
    rounded = to_tf32(x.double())
    assert torch.equal(rounded[[0, 1, 2, 3, 4, 6]], expected.double()[[0, 1, 2, 3, 4, 6]])
    assert rounded[5] == pytest.approx(1e30, rel=2**-11)
