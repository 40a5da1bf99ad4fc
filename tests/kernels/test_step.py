"""lstm_step and lstm_step_backward, the launchers: what they read and write, and no more."""

import pytest
import torch

from lstm.kernels.config import step_tile
from lstm.kernels.step import lstm_step, lstm_step_backward
from lstm.plan import interpreted
from tests.kernels.guarded import Guarded, far_pair, run_only_program

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
B, I, H = 17, 5, 20
# A GPU's tile: two programs of sequences and two of units, all ragged, sums in several parts
TILE = step_tile(B, 4) | {"BLOCK_K": 16}


def arguments(guarded, bias=True, hx=True, save=True):
    """Of lstm_step, as a dict in its order."""

    def given(wanted, *size):
        return guarded.full(torch.randn(size)) if wanted else None

    return {
        "input": given(True, B, I),
        "weight_ih": given(True, 4 * H, I),
        "weight_hh": given(True, 4 * H, H),
        "bias_ih": given(bias, 4 * H),
        "bias_hh": given(bias, 4 * H),
        "h_0": given(hx, B, H),
        "c_0": given(hx, B, H),
        "h_1": guarded.empty(B, H),
        "c_1": guarded.empty(B, H),
        "output": guarded.empty(B, H) if hx else None,
        "gates": guarded.empty(B, 4, H) if save else None,
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_stay_within_the_tensors(bias, hx, save, dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    given = arguments(guarded, bias, hx, save)
    lstm_step(*given.values(), TILE)
    assert guarded.intact()
    if given["output"] is not None:
        assert torch.equal(given["output"], given["h_1"])


@pytest.mark.parametrize("absent", [(), ("c_0",), ("grad_h_1", "grad_c_0"), ("grad_c_1",)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_stays_within_the_tensors(absent, dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    given = {"gates": guarded.full(torch.rand(B, 4, H))}
    for name in ("c_0", "c_1", "grad_h_1", "grad_c_1"):
        given[name] = None if name in absent else guarded.full(torch.randn(B, H))
    given["grad_gates"] = guarded.empty(B, 4, H)
    given["grad_c_0"] = None if "grad_c_0" in absent else guarded.empty(B, H)
    lstm_step_backward(*given.values(), TILE)
    assert guarded.intact()


def test_a_gpus_tiles_and_the_interpreters_give_the_same(device, monkeypatch):
    guarded = Guarded(device, torch.float32, monkeypatch)
    one, many = arguments(guarded), step_tile(1000, 4) | {"BLOCK_K": 16}
    lstm_step(*one.values(), TILE)
    for tile in (many, step_tile(B, 4, interpreted=interpreted())):
        other = one | {name: guarded.empty(*one[name].shape) for name in ("h_1", "c_1", "gates")}
        lstm_step(*other.values(), tile)
        for name in ("h_1", "c_1", "gates"):
            torch.testing.assert_close(other[name], one[name])


def test_rows_of_input_and_states_may_be_far_apart(device):
    fed = {name: torch.randn(B, 3, size) for name, size in {"x": I, "h_0": H, "c_0": H}.items()}
    weights = [torch.randn(4 * H, size) for size in (I, H)] + [torch.randn(4 * H)] * 2

    def step(x, h_0, c_0):
        given = [y.to(device) for y in (x, *weights, h_0, c_0)]
        results = [torch.empty(B, H, device=device) for _ in range(2)]
        lstm_step(*given, *results, None, None, TILE)
        return results

    apart = step(*(y[:, 1] for y in fed.values()))
    together = step(*(y[:, 1].contiguous() for y in fed.values()))
    for x, y in zip(apart, together, strict=True):
        assert torch.equal(x, y)


def test_offsets_beyond_32_bits(monkeypatch):
    """The last tile of a batch of 2^27 + 16: all its rows lie beyond 2^31 numbers.

    It is run alone, and no more of the memory exists.
    """
    if not interpreted():
        pytest.skip("only the interpreter can run one program of a grid alone")
    H, few, many = 16, 16, 2**27 + 16
    tile = step_tile(few, 2, interpreted=True) | {"BLOCK_H": 16}
    sizes = {
        "input": (few, H), "weight_ih": (4 * H, H), "weight_hh": (4 * H, H), "bias_ih": (4 * H,),
        "bias_hh": (4 * H,), "h_0": (few, H), "c_0": (few, H), "h_1": (few, H), "c_1": (few, H),
        "output": (few, H), "gates": (few, 4, H),
    }  # fmt: skip
    grads = {
        "gates": (few, 4, H), "c_0": (few, H), "c_1": (few, H), "grad_h_1": (few, H),
        "grad_c_1": (few, H), "grad_gates": (few, 4, H), "grad_c_0": (few, H),
    }  # fmt: skip
    for launch, given in ((lstm_step, sizes), (lstm_step_backward, grads)):
        batches = {name: (0, 1) if size[0] == few else None for name, size in given.items()}
        near, far, last = far_pair(given, batches, few, many)
        launch(*near.values(), tile)
        with pytest.MonkeyPatch.context() as patch:
            run_only_program(patch, many // few - 1)
            launch(*far.values(), tile)
        for name, x in last.items():
            assert torch.equal(x, near[name]), name
