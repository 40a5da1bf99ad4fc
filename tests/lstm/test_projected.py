"""Projected layers, against the truth of tests/accuracy.py."""

from dataclasses import replace

import pytest
import torch

from tests.accuracy import LENGTHS, assert_matches, exact, make_case, packed

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# A projected h may be above 1. One number, as many as a tile's weights are read at once, one less
# than there are units
@pytest.mark.parametrize("P", [1, 16, 36])
@pytest.mark.parametrize("dtype", DTYPES)
def test_projected(P, dtype, device):
    assert_matches(make_case(4, 5, 9, 37, dtype=dtype, device=device, P=P))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hx", [False, True])
def test_projected_in_layers_and_directions(hx, dtype, device):
    assert_matches(make_case(3, 5, 9, 128, dtype, device, num_layers=2, D=2, P=24, hx=hx))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("reach", ["output", "h_n", "c_n", "output c_n"])
def test_projected_with_gradients_from_a_part_of_the_results(reach, D, device):
    assert_matches(make_case(3, 5, 9, 20, device=device, D=D, P=8, reach=reach))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("hx", [False, True])
def test_projected_and_packed(lengths, hx, device):
    case = make_case(max(lengths), len(lengths), 9, 20, device=device, D=2, P=8, hx=hx)
    assert_matches(packed(case, lengths))


def test_projected_with_dropout_masks_and_no_bias(device):
    case = make_case(3, 5, 9, 20, device=device, num_layers=2, bias=False, P=8)
    mask = torch.rand(3, 5, 8, device=device).bernoulli_().div_(0.5)
    assert_matches(replace(case, masks=[mask]))


def test_projected_and_exact(device):
    assert_matches(exact(3, 5, 9, 20, device=device, num_layers=2, D=2, P=8))


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_projected_h_of_any_size(size, device):
    case = make_case(3, 5, 9, 20, device=device, P=8)
    case.h_0.mul_(size)
    for weights in case.layers:
        weights[-1].mul_(size)
        weights[1].div_(size)
    assert_matches(case)


def test_projected_with_an_expanded_upstream_gradient(device):
    case = make_case(3, 5, 9, 20, device=device, D=2, P=8)
    case.upstream["output"] = torch.ones(1, 5, 16, device=device).expand(3, 5, 16)
    assert_matches(case)
