"""A step at a time with carried state: a launch for each layer and step, and the same results."""

import pytest
import torch

from tests.accuracy import CEILING
from tests.lstm.pairs import assert_equal, assert_same, flat, make_input, pair

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def stream(module, x, resets=None):
    """What `module(x)` returns, by a call for each step of x (T, B, I)."""
    outputs, states = [], None
    for t in range(len(x)):
        output, states = module(x[t : t + 1], states, None if resets is None else resets[t, None])
        outputs.append(output)
    return torch.cat(outputs), *states


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_the_whole_sequence(bias, dtype, device):
    module, _ = pair(5, 20, 2, bias=bias, device=device, dtype=dtype)
    x = make_input(5, 3, 5, device=device, dtype=dtype)
    with torch.no_grad():
        assert_same(stream(module, x), flat(module(x)), CEILING[dtype])


@pytest.mark.parametrize("layers", [1, 3])
def test_a_launch_for_each_layer_and_step(layers, device, launches):
    module, _ = pair(5, 20, layers, device=device)
    x = make_input(4, 3, 5, device=device)
    assert "one launch for a layer's step" not in str(module.explain(x[:1]))
    with torch.inference_mode():
        assert "one launch for a layer's step" in str(module.explain(x[:1]))
        stream(module, x)
    assert launches == {"forward": 4 * layers, "backward": 0}


def test_no_product_but_the_kernels(device, launches, monkeypatch):
    module, _ = pair(5, 20, 2, device=device)

    def forbidden(*_, **__):
        raise AssertionError("a product outside the kernels")

    for name in ("mm", "addmm", "matmul"):
        monkeypatch.setattr(torch, name, forbidden)
        monkeypatch.setattr(torch.Tensor, name, forbidden, raising=False)
    monkeypatch.setattr(torch.nn.functional, "linear", forbidden)
    with torch.no_grad():
        module(make_input(1, 3, 5, device=device))
    assert launches == {"forward": 2, "backward": 0}


def test_resets_and_dropped_states(device):
    module, _ = pair(5, 20, 2, device=device)
    x, resets = make_input(6, 3, 5, device=device), torch.rand(6, 3, device=device) < 0.4
    with torch.no_grad():
        assert_same(stream(module, x, resets), flat(module(x, None, resets)))


def test_batch_first_unbatched_and_a_batch_that_is_not_contiguous(device):
    module, _ = pair(5, 20, 2, device=device)
    batch_first, _ = pair(5, 20, 2, batch_first=True, device=device)
    x = make_input(1, 5, 3, device=device).transpose(1, 2)
    with torch.no_grad():
        expected = flat(module(x))
        output, states = batch_first(x.transpose(0, 1))
        assert_equal((output.transpose(0, 1), *states), expected)
        alone = flat(module(x[:, 1]))
        assert_same(alone, [y[:, 1] for y in expected])


def test_autocast(device):
    module, _ = pair(5, 20, device=device)
    x = make_input(1, 3, 5, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        output, _ = module(x)
    assert output.dtype == torch.bfloat16
    with torch.no_grad():
        assert_same([output.float()], [module(x)[0]], CEILING[torch.bfloat16])


def test_results_share_no_memory(device):
    module, _ = pair(5, 20, device=device)
    with torch.no_grad():
        results = flat(module(make_input(1, 3, 5, device=device)))
    assert len({y.untyped_storage().data_ptr() for y in results}) == 3


def test_a_step_that_is_differentiated_is_as_any_other(device, launches):
    module, theirs = pair(5, 20, device=device)
    x = make_input(1, 3, 5, device=device)
    module(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    assert launches == {"forward": 1, "backward": 1}
    assert_same([y.grad for y in module.parameters()], [y.grad for y in theirs.parameters()])


@pytest.mark.parametrize(
    "options", [dict(bidirectional=True), dict(proj_size=7), dict(hidden_size=1000)], ids=str
)
def test_what_no_such_launch_does(options, device):
    """Two directions, projections, more weights than it reads well."""
    module, _ = pair(30, **(dict(hidden_size=20) | options), device=device)
    x = make_input(1, 3, 30, device=device)
    with torch.no_grad():
        assert "one launch" not in str(module.explain(x))
