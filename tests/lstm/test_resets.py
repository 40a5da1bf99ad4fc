"""resets: state zeroed between two steps, in the kernels, as if the sequence were split there."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm import LSTM
from tests.accuracy import (
    CEILING,
    LENGTHS,
    assert_matches,
    exact,
    expects_overflow,
    make_case,
    ours,
    packed,
    reset,
)
from tests.kernels.meeting import side_by_side
from tests.lstm.pairs import assert_equal, assert_same, flat, make_input, pair
from tests.lstm.test_slices import needs_interpreter, results

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# The kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hx", [False, True])
def test_every_dtype(dtype, hx, device):
    assert_matches(reset(make_case(6, 17, 7, 20, dtype, device, hx=hx)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_slice(dtype, device):
    assert_matches(reset(make_case(5, 9, 7, 128, dtype, device)))


@pytest.mark.parametrize(("H", "P"), [(20, 0), (20, 6), (37, 0), (37, 6), (130, 6)])
def test_layers_and_directions(H, P, device):
    T = 6 if H < 128 else 3
    assert_matches(reset(make_case(T, 5, 7, H, device=device, num_layers=2, D=2, P=P)))


@pytest.mark.parametrize(
    ("H", "D", "lengths"),
    [
        *((20, D, lengths) for D in (1, 2) for lengths in LENGTHS.values()),
        (130, 2, LENGTHS["ties"]),
        (130, 2, LENGTHS["one"]),
    ],
)
def test_packed(H, D, lengths, device):
    T = max(2, lengths[0])
    assert_matches(packed(reset(make_case(T, len(lengths), 7, H, device=device, D=D)), lengths))


def test_float32_with_tf32_switched_off(device):
    assert_matches(reset(exact(6, 5, 7, 20, device=device, D=2)))


@pytest.mark.parametrize("reach", ["output", "h_n", "c_n"])
def test_gradients_from_a_part_of_the_results(reach, device):
    assert_matches(reset(make_case(6, 5, 7, 20, device=device, D=2, reach=reach)))


@needs_interpreter
@pytest.mark.parametrize("D", [1, 2])
def test_slices_that_meet_equal_a_launch_for_each_step_bitwise(D, monkeypatch):
    case = reset(make_case(4, 3, 5, 160, D=D))
    expected = results(case, 0)
    side_by_side(monkeypatch)
    assert_equal(results(case, 1), expected)


def test_no_flag_is_no_resets_bitwise(device):
    case = make_case(6, 5, 7, 20, device=device, num_layers=2, D=2)
    none = ours(case)
    case.resets = torch.zeros(6, 5, dtype=torch.bool, device=device)
    assert_equal(ours(case).values(), none.values())


@expects_overflow
@pytest.mark.parametrize("H", [20, 130])
def test_nothing_infinite_passes(H, device):
    case = make_case(4, 3, 7, H, device=device)
    case.resets = torch.zeros(4, 3, dtype=torch.bool, device=device)
    case.resets[2] = True
    expected = ours(case)["output"][2:]
    case.c_0[:] = float("inf")
    assert torch.equal(ours(case)["output"][2:], expected)


# The module


def halves(module, x, hx):
    """Output, h_n and c_n of two calls, the second of which begins with zeros: split at step 3."""
    first, (h_1, c_1) = module(x[:3], hx)
    second, (h_2, c_2) = module(x[3:])
    # The second direction takes the second part first, and ends with the first.
    D = 2 if module.bidirectional else 1
    h_n, c_n = h_2.clone(), c_2.clone()
    h_n[1::2], c_n[1::2] = (h_1[1::2], c_1[1::2]) if D == 2 else (h_n[1::2], c_n[1::2])
    return torch.cat((first, second)), h_n, c_n


def test_equal_to_splitting_the_sequence(device, launches):
    ours, theirs = pair(5, 20, device=device)
    x = make_input(7, 4, 5, device=device).requires_grad_()
    hx = tuple(make_input(1, 4, 20, device=device).requires_grad_() for _ in range(2))
    resets = torch.zeros(7, 4, dtype=torch.bool, device=device)
    resets[3] = True
    actual = flat(ours(x, hx, resets=resets))
    assert launches == {"forward": 1, "backward": 0}
    expected = halves(theirs, x, hx)
    assert_same(actual, expected)
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in returned), [x, *hx, *module.parameters()])
        for returned, module in ((actual, ours), (expected, theirs))
    ]
    assert_same(*grads)


def test_both_directions_stop_at_the_same_place(device):
    ours, theirs = pair(5, 20, bidirectional=True, device=device)
    x = make_input(7, 4, 5, device=device)
    resets = torch.zeros(7, 4, dtype=torch.bool, device=device)
    resets[3] = True
    with torch.no_grad():
        assert_same(flat(ours(x, None, resets)), halves(theirs, x, None))


def test_gradients_stop_there(device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(6, 2, 5, device=device).requires_grad_()
    resets = torch.zeros(6, 2, dtype=torch.bool, device=device)
    resets[4, 1] = True
    output, _ = ours(x, None, resets)
    (gradient,) = torch.autograd.grad(output[4:].sum(), x)
    assert not gradient[:4, 1].any()
    assert gradient[:4, 0].all() and gradient[4:].all()


def test_at_the_first_step_hx_is_dropped(device):
    ours, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    hx = tuple(make_input(2, 3, 20, device=device).requires_grad_() for _ in range(2))
    resets = torch.zeros(4, 3, dtype=torch.bool, device=device)
    resets[0, 1] = True
    output, _ = ours(x, hx, resets)
    zeros = tuple(state * torch.tensor([1.0, 0, 1], device=device)[:, None] for state in hx)
    assert torch.equal(output, ours(x, zeros)[0])
    for gradient in torch.autograd.grad(output.sum(), hx):
        assert not gradient[:, 1].any() and gradient[:, [0, 2]].all()


def test_batch_first_and_unbatched(device):
    steps_first, _ = pair(5, 20, device=device)
    batch_first, _ = pair(5, 20, batch_first=True, device=device)
    x = make_input(6, 3, 5, device=device)
    resets = torch.rand(6, 3, device=device) < 0.4
    expected, _ = steps_first(x, None, resets)
    actual, _ = batch_first(x.transpose(0, 1), None, resets.t())
    assert torch.equal(actual.transpose(0, 1), expected)
    alone, _ = steps_first(x[:, 1], None, resets[:, 1])
    assert_same([alone], [expected[:, 1]])


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_in_any_order(enforce_sorted, device):
    ours, _ = pair(5, 20, 2, bidirectional=True, device=device)
    x, lengths = make_input(6, 3, 5, device=device), [6, 4, 1] if enforce_sorted else [4, 1, 6]
    resets = torch.rand(6, 3, device=device) < 0.4
    pack = [pack_padded_sequence(y, lengths, enforce_sorted=enforce_sorted) for y in (x, resets)]
    output, (h_n, _) = ours(pack[0], None, pack[1])
    output, _ = nn.utils.rnn.pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        expected, (h, _) = ours(x[:length, b], None, resets[:length, b])
        assert_same([output[:length, b], h_n[:, b]], [expected, h])


def test_where_no_kernel_serves_the_equations_do(device, launches):
    ours, theirs = pair(5, 20, 2, dtype=torch.float64, device=device)
    x = make_input(7, 4, 5, device=device, dtype=torch.float64)
    resets = torch.zeros(7, 4, dtype=torch.bool, device=device)
    plan = ours.explain(x, None, resets)
    assert plan.path == "reference" and "float64" in str(plan) and "plain torch" in str(plan)
    assert ours.explain(x).path == "torch"
    resets[3] = True
    assert_same(flat(ours(x, None, resets)), halves(theirs, x, None), CEILING[torch.float32] / 1e9)
    assert launches == {"forward": 0, "backward": 0}


def test_without_kernels_and_triton(run_without_interpreter):
    run_without_interpreter("""
import sys, torch, lstm
module = lstm.LSTM(5, 20)
x, resets = torch.randn(6, 2, 5), torch.zeros(6, 2, dtype=torch.bool)
resets[3] = True
output, _ = module(x, None, resets)
output.sum().backward()
assert torch.allclose(output[3:], torch.nn.LSTM.forward(module, x[3:])[0], atol=1e-6)
assert "triton" not in sys.modules
""")


def bad(resets, input=None):
    def call():
        LSTM(5, 20)(torch.zeros(4, 3, 5) if input is None else input, None, resets)

    return call


def test_resets_that_do_not_fit_are_refused(device, launches):
    rows = pack_padded_sequence(torch.zeros(4, 3, 5), [4, 3, 1])
    flags = PackedSequence(torch.zeros(8, dtype=torch.bool), torch.tensor([3, 2, 2, 1]))
    other = PackedSequence(torch.zeros(8, dtype=torch.bool), torch.tensor([3, 3, 1, 1]))
    for call, kind, message in (
        (bad(torch.zeros(4, 3)), TypeError, "bool tensor|torch.bool, got torch.float32"),
        (bad([[False] * 3] * 4), TypeError, "torch.bool, got list"),
        (bad(torch.zeros(3, 4, dtype=torch.bool)), ValueError, r"\(3, 4\), expected \(4, 3\)"),
        (bad(torch.zeros(4, dtype=torch.bool)), ValueError, r"expected \(4, 3\)"),
        (bad(flags), TypeError, "PackedSequence if input is one"),
        (bad(torch.zeros(8, dtype=torch.bool), rows), TypeError, "PackedSequence"),
        (bad(other, rows), ValueError, "batch_sizes differ"),
        (bad(torch.zeros(4, 3, dtype=torch.bool, device="meta")), RuntimeError, "is on meta"),
    ):
        with pytest.raises(kind, match=message):
            call()
    LSTM(5, 20, device=device)(rows.to(device), None, flags.to(device))
    assert launches == {"forward": 1, "backward": 0}


def test_a_call_that_fits_nothing_has_nn_lstms_error():
    resets = torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"input.size"):
        LSTM(5, 20)(torch.zeros(4, 3, 6), None, resets)
