"""Outputs and every gradient of the kernels, against the truth of tests/accuracy.py."""

import pytest
import torch
from torch import nn

from lstm import layer
from lstm.reference import relative_error
from tests.accuracy import (
    CEILING,
    LENGTHS,
    assert_accurate,
    assert_accurate_outputs,
    assert_matches,
    call_of,
    exact,
    expects_overflow,
    flat,
    kinds,
    make_case,
    ours,
    packed,
    truth,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


# Row MNIST, the main job
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_mnist(dtype, device):
    assert_matches(make_case(28, 4, 28, 128, dtype, device))


# So many steps take the interpreter half a minute, whatever H is.
def test_pixel_mnist(device):
    assert_matches(make_case(784, 2, 1, 16, device=device))


# 1 to 16: the smallest tile; 20: padded, even; 37 and 127: weights a thread reads one by one
@pytest.mark.parametrize("H", [1, 16, 20, 37, 64, 100, 127, 128])
def test_every_kind_of_hidden_size(H, device):
    assert_matches(make_case(4, 5, 3, H, device=device))


# Where the number of weights a thread reads at once differs from float32's
@pytest.mark.parametrize("H", [16, 37, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_kind_of_hidden_size_in_half_precision(H, dtype, device):
    assert_matches(make_case(3, 5, 3, H, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step(dtype, device):
    assert_matches(make_case(1, 5, 3, 20, dtype, device))


def test_two_steps(device):
    assert_matches(make_case(2, 5, 3, 20, device=device))


def test_one_sequence(device):
    assert_matches(make_case(5, 1, 7, 20, device=device))


# The last program has one sequence.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("BLOCK_B", [4, 8, 16])
def test_ragged_tiles(BLOCK_B, dtype, device):
    assert_matches(make_case(5, 17, 7, 20, dtype, device), BLOCK_B=BLOCK_B)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ragged_tiles_of_two(dtype, device):
    assert_matches(make_case(5, 17, 7, 20, dtype, device), BLOCK_B=2)


@pytest.mark.parametrize("BLOCK_B", [4, 8])
def test_ragged_tiles_at_full_width(BLOCK_B, device):
    assert_matches(make_case(3, 9, 7, 128, device=device), BLOCK_B=BLOCK_B)


@pytest.mark.parametrize(("BLOCK_B", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_few_sequences_of_odd_units_packed(BLOCK_B, dtype, device):
    case = make_case(4, 17, 7, 37, dtype, device, D=2)
    assert_matches(packed(case, LENGTHS["ragged_tiles"]), BLOCK_B=BLOCK_B)


def test_few_sequences_of_exact_float32(device):
    assert_matches(exact(4, 9, 7, 37, device=device), BLOCK_B=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_layers(dtype, device):
    assert_matches(make_case(4, 5, 7, 20, dtype, device, num_layers=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_both_directions(num_layers, dtype, device):
    assert_matches(make_case(5, 17, 7, 20, dtype, device, num_layers, D=2), BLOCK_B=8)


@pytest.mark.parametrize("H", [37, 64, 128])
def test_both_directions_of_other_sizes(H, device):
    assert_matches(make_case(3, 5, 7, H, device=device, D=2))


@pytest.mark.parametrize("T", [1, 2])
def test_both_directions_of_few_steps(T, device):
    assert_matches(make_case(T, 5, 7, 20, device=device, D=2))


@pytest.mark.parametrize("reach", ["output", "h_n", "c_n"])
def test_both_directions_with_gradients_from_a_part_of_the_results(reach, device):
    assert_matches(make_case(4, 5, 7, 20, device=device, num_layers=2, hx=False, reach=reach, D=2))


def test_both_directions_with_dropout_masks_and_no_bias(device):
    case = make_case(4, 5, 7, 20, device=device, num_layers=3, bias=False, D=2)
    case.masks = [2.0 * torch.randint(2, (4, 5, 40), device=device) for _ in range(2)]
    assert_matches(case)


@pytest.mark.parametrize("H", [1, 16, 20, 37, 63, 64])
def test_exact_float32(H, device):
    assert_matches(exact(28, 5, 7, H, device=device))


@pytest.mark.parametrize("hx", [False, True])
def test_exact_float32_in_layers_and_directions(hx, device):
    assert_matches(exact(5, 17, 7, 20, device=device, num_layers=2, hx=hx, D=2), BLOCK_B=8)


def test_exact_float32_packed(device):
    assert_matches(packed(exact(4, 5, 7, 20, device=device, D=2), LENGTHS["ties"]))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_exact_float32_gradients_of_any_scale(scale, device):
    case = exact(5, 5, 7, 20, device=device)
    case.upstream = {name: scale * x for name, x in case.upstream.items()}
    assert_matches(case)


# 300 would make every gradient chaotic, in any float32 implementation.
@pytest.mark.parametrize("size", [1e-9, 3])
def test_exact_float32_weight_hh_of_any_size(size, device):
    case = exact(3, 5, 7, 20, device=device)
    case.layers = [(w_ih, size * w_hh, *rest) for w_ih, w_hh, *rest in case.layers]
    assert_matches(case)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("hx", [False, True])
def test_packed(lengths, D, hx, device):
    case = make_case(lengths[0], len(lengths), 7, 20, device=device, hx=hx, D=D)
    assert_matches(packed(case, lengths), BLOCK_B=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [37, 128])
def test_packed_in_every_dtype(dtype, H, device):
    case = make_case(4, 5, 7, H, dtype, device, num_layers=2, D=2)
    assert_matches(packed(case, LENGTHS["ties"]))


@pytest.mark.parametrize("reach", ["output", "h_n", "c_n"])
def test_packed_with_gradients_from_a_part_of_the_results(reach, device):
    case = make_case(4, 5, 7, 20, device=device, num_layers=2, reach=reach, D=2)
    assert_matches(packed(case, LENGTHS["ties"]))


def test_packed_with_dropout_masks_and_no_bias(device):
    case = packed(make_case(4, 5, 7, 20, device=device, num_layers=2, bias=False), LENGTHS["ties"])
    case.masks = [2.0 * torch.randint(2, (13, 20), device=device)]
    assert_matches(case)


@pytest.mark.parametrize("D", [1, 2])
def test_packed_with_huge_h_0(D, device):
    case = packed(make_case(4, 5, 7, 20, device=device, D=D), LENGTHS["ties"])
    case.h_0 = case.h_0 * 1e6
    assert_accurate_outputs(case)


def test_three_layers(device):
    assert_matches(make_case(3, 5, 7, 20, device=device, num_layers=3))


def test_no_bias(device):
    assert_matches(make_case(4, 5, 7, 20, device=device, bias=False, num_layers=2))


# Each alone, since None then stands for zeros in the kernel
@pytest.mark.parametrize("reach", ["output", "h_n", "c_n", "output c_n", "h_n c_n"])
def test_gradients_from_a_part_of_the_results(reach, device):
    assert_matches(make_case(4, 5, 7, 20, device=device, num_layers=2, reach=reach))


def test_dropout_masks(device):
    case = make_case(3, 5, 7, 20, device=device, num_layers=3)
    case.masks = [nn.functional.dropout(torch.ones(3, 5, 20, device=device), 0.5) for _ in range(2)]
    assert_matches(case)


def test_strided_input_and_states(device):
    case = make_case(4, 5, 7, 20, device=device, num_layers=2)
    contiguous = ours(case)
    case.input = case.input.transpose(0, 1).contiguous().transpose(0, 1)
    for name in ("output", "h_n", "c_n"):
        x = case.upstream[name]
        case.upstream[name] = x.transpose(0, 2).contiguous().transpose(0, 2)
    case.h_0 = case.h_0.transpose(0, 1).contiguous().transpose(0, 1)
    case.c_0 = case.c_0.transpose(1, 2).contiguous().transpose(1, 2)
    strided = ours(case)
    assert_accurate(strided, contiguous, [contiguous])


def test_expanded_upstream_gradient(device):
    case = make_case(4, 5, 7, 20, device=device)
    case.upstream = {
        name: torch.ones((), device=device).expand_as(x) for name, x in case.upstream.items()
    }
    assert_matches(case)


LEAVES = [
    "input", "h_0", "c_0",
    "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0",
    "weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1",
]  # fmt: skip


def gradients(case, wanted):
    """Gradients of the leaves wanted, and None for all others, as a dict."""
    leaves = [case.input, case.h_0, case.c_0, *(x for weights in case.layers for x in weights)]
    leaves = [
        x.detach().requires_grad_(name in wanted) for name, x in zip(LEAVES, leaves, strict=True)
    ]
    output, h_n, c_n = layer.lstm(call_of(case), *leaves[:3], leaves[3:])
    torch.autograd.backward([output, h_n, c_n], list(case.upstream.values()))
    return {name: x.grad for name, x in zip(LEAVES, leaves, strict=True)}


@pytest.mark.parametrize("wanted", LEAVES)
def test_the_only_gradient_wanted_is_the_only_one_computed(wanted, device):
    case = make_case(2, 5, 7, 20, device=device, num_layers=2)
    some, every = gradients(case, [wanted]), gradients(case, LEAVES)
    assert [name for name, grad in some.items() if grad is not None] == [wanted]
    assert torch.equal(some[wanted], every[wanted])


def test_frozen_first_layer(device):
    case = make_case(2, 5, 7, 20, device=device, num_layers=2)
    wanted = LEAVES[7:]
    some, every = gradients(case, wanted), gradients(case, LEAVES)
    assert [name for name, grad in some.items() if grad is not None] == wanted
    assert all(torch.equal(some[name], every[name]) for name in wanted)


def test_bias_gradients_share_no_memory(device):
    case = make_case(3, 5, 7, 20, device=device)
    grads = ours(case)
    before = grads["grad_bias_hh_l0"].clone()
    grads["grad_bias_ih_l0"].zero_()
    assert torch.equal(grads["grad_bias_hh_l0"], before)


# Of float16, which float32 is multiplied in, the smallest number is 6e-8.
@pytest.mark.parametrize("scale", [1e-6, 1e-30, 1e30])
def test_gradients_of_any_scale(scale, device):
    case = make_case(4, 9, 7, 20, device=device)
    case.upstream = {name: scale * x for name, x in case.upstream.items()}
    assert_matches(case)


def test_gradients_of_a_small_sequence_beside_large_ones(device):
    case = make_case(5, 9, 7, 20, device=device)
    scale = torch.logspace(-6, 6, 9, device=device)[:, None]
    plain = ours(case)
    case.upstream = {name: scale * x for name, x in case.upstream.items()}
    scaled, expected = ours(case), truth(case)
    for name in ("grad_input", "grad_h_0", "grad_c_0"):
        for b in range(9):
            unscaled = relative_error(plain[name][:, b] * scale[b], expected[name][:, b])
            error = relative_error(scaled[name][:, b], expected[name][:, b])
            assert error <= min(2 * unscaled, CEILING[torch.float32]), (name, b)


def test_gradients_that_vanish_along_the_sequence(device):
    # Forget gates near 0: each step back is about 1e-3 of the one before.
    case = make_case(9, 5, 7, 20, device=device, reach="h_n c_n")
    case.layers[0][2][20:40] -= 8
    grads, expected = ours(case)["grad_input"], truth(case)["grad_input"]
    for t in range(9):
        assert relative_error(grads[t], expected[t]) <= CEILING[torch.float32], t


# Saturated pre-activations of both signs, exact where both activations are
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturation(dtype, device):
    case = make_case(6, 5, 7, 20, dtype, device)
    for bias in case.layers[0][2:]:
        bias.copy_(50 * torch.randn(80).sign())
    actual, expected = ours(case), truth(case)
    for name, x in actual.items():
        assert x.isfinite().all(), name
    for name in ("output", "h_n", "c_n"):
        assert relative_error(actual[name], expected[name]) <= CEILING[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_input_saturates(dtype, device):
    case = make_case(4, 5, 7, 20, dtype, device)
    case.input *= 1e4
    actual, expected = ours(case), truth(case)
    for name, x in actual.items():
        assert x.isfinite().all(), name
    for name in ("output", "h_n", "c_n"):
        assert relative_error(actual[name], expected[name]) <= CEILING[dtype], name


# float32 is multiplied in float16, whose normal numbers go from 6e-5 to 65504. States that much
# smaller keep the gates from saturation, and so the comparison sharp.
@expects_overflow
@pytest.mark.parametrize("size", [1e-9, 1e-5, 300, 1e6, 1e30])
def test_weight_hh_of_any_size(size, device):
    case = make_case(1, 5, 7, 20, device=device)
    case.layers[0][1].mul_(size)
    case.h_0.div_(size)
    assert_matches(case)


# float32's sums are multiplied as its weights are, but not without limit.
@pytest.mark.parametrize("size", [0, 1e-30, 1e-15])
def test_weight_hh_next_to_nothing_at_every_step(size, device):
    case = make_case(5, 5, 7, 20, device=device)
    case.layers[0][1].mul_(size)
    case.input *= 10
    assert_matches(case)


@expects_overflow
def test_weight_hh_of_a_million_at_every_step(device):
    case = make_case(5, 5, 7, 20, device=device)
    case.layers[0][1].mul_(1e6)
    actual, expected = ours(case), truth(case)
    for name in ("output", "h_n", "c_n", "grad_input"):
        assert relative_error(actual[name], expected[name]) <= CEILING[torch.float32], name


def test_one_sequence_of_large_h_0(device):
    case = make_case(3, 5, 7, 20, device=device)
    case.h_0[:, 2] *= 1e6
    actual, expected = ours(case), truth(case)
    for name in ("output", "h_n", "c_n"):
        for b in range(5):
            error = relative_error(actual[name][:, b], expected[name][:, b])
            assert error <= CEILING[torch.float32], (name, b)


# 20 units leave padding in their tile, where 0 * inf must not become a NaN that spreads.
@expects_overflow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("place", ["input", "h_0", "c_0", "weight_ih", "weight_hh", "bias", "grad"])
def test_nan_and_inf_come_out_where_the_equations_have_them(place, value, dtype, device):
    case = make_case(3, 3, 5, 20, dtype, device)
    weight_ih, weight_hh, bias, _ = case.layers[0]
    tensor = {
        "input": case.input[1],
        "h_0": case.h_0[0],
        "c_0": case.c_0[0],
        "weight_ih": weight_ih,
        "weight_hh": weight_hh,
        "bias": bias[None],
        "grad": case.upstream["output"][1],
    }[place]
    tensor[-1, 2] = value
    actual, expected = ours(case), truth(case)
    for name in ("output", "h_n", "c_n"):
        assert torch.equal(kinds(actual[name]), kinds(expected[name])), name
        finite = [torch.where(x.isfinite(), x, 0) for x in (actual[name], expected[name])]
        assert relative_error(*finite) <= CEILING[dtype], name
    for name, x in expected.items():
        assert torch.equal(actual[name].isfinite(), x.isfinite()), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_are_equal(dtype, device):
    case = make_case(4, 9, 7, 37, dtype, device, num_layers=2)
    first, second = ours(case, BLOCK_B=8), ours(case, BLOCK_B=8)
    assert all(torch.equal(first[name], second[name]) for name in first)


@expects_overflow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_depend_on_its_neighbours(dtype, device):
    case = make_case(5, 9, 7, 20, dtype, device)
    alone = ours(case)
    others = torch.arange(9, device=device) != 4
    case.input[:, others] *= 100
    case.h_0[:, others] *= 1e4
    case.c_0[:, others] = INF
    for x in case.upstream.values():
        x[:, others] = NAN
    crowded = ours(case)
    for name in ("output", "h_n", "c_n", "grad_input", "grad_h_0", "grad_c_0"):
        assert torch.equal(alone[name][:, 4], crowded[name][:, 4]), name


def call(case):
    return layer.lstm(call_of(case), case.input, case.h_0, case.c_0, flat(case.layers), case.masks)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_where_gradients_are_off(mode, device, monkeypatch):
    from lstm.kernels import forward

    case = make_case(3, 5, 7, 20, device=device, num_layers=2)
    case.layers[0][0].requires_grad_()
    with_gradient = call(case)
    saved, launch = [], forward.lstm_forward

    def record(*args):
        saved.extend(args[5:7])
        return launch(*args)

    monkeypatch.setattr(forward, "lstm_forward", record)
    with mode():
        without = call(case)
    assert saved == [None] * 4
    for x, y in zip(with_gradient, without, strict=True):
        assert (x.requires_grad, y.requires_grad) == (True, False)
        assert torch.equal(x, y)


def test_nothing_is_saved_where_nothing_needs_a_gradient(device):
    case = make_case(3, 5, 7, 20, device=device)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda x: x):
        output, _, _ = call(case)
        assert not packed and not output.requires_grad
        case.input.requires_grad_()
        call(case)
    assert packed


def test_backward_twice_over_a_kept_graph_is_the_same(device):
    case = make_case(3, 5, 7, 20, device=device)
    case.input.requires_grad_()
    output, _, _ = call(case)
    (first,) = torch.autograd.grad(output.sum(), case.input, retain_graph=True)
    (second,) = torch.autograd.grad(output.sum(), case.input)
    assert torch.equal(first, second)
