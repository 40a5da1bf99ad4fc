"""lstm_backward, the launcher: what it reads and writes, and no more."""

import pytest
import torch

from lstm.kernels.backward import lstm_backward
from lstm.kernels.config import tile
from lstm.kernels.forward import lstm_forward
from lstm.plan import interpreted
from tests.kernels.guarded import Guarded, far_pair, run_only_program
from tests.kernels.test_forward import SLICED_H, SLICED_TILE, sliced

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
B, H = 17, 20  # three programs, ragged; padded units
TILE = tile(H, B, 2, interpreted()) | {"BLOCK_B": 8}
SIZE = TILE["BLOCK_H"] * 8
RESULTS = ["grad_gates", "grad_h_0", "grad_c_0", "grad_bias"]


def arguments(guarded, T=3, D=1, offsets=None):
    """Of lstm_backward, all tensors given, as a dict in its order. offsets: of packed rows."""
    rows = (T, B) if offsets is None else (int(offsets[-1]),)
    weight_hh = guarded.full(torch.randn(D, 4 * H, H) / 4)
    weight_hh_t = guarded.empty(D, H, 4 * H)
    steps = guarded.empty(D, 3, 1 + 5 * T, SIZE)
    lstm_forward(
        guarded.full(torch.randn(D, *rows, 4, H)), guarded.full(torch.randn(D, 4, H)),
        guarded.full(torch.randn(D, 4, H)), weight_hh,
        guarded.empty(*rows, D, H), steps, weight_hh_t,
        guarded.full(torch.randn(D, B, H)) if offsets is None else None,
        guarded.full(torch.randn(D, B, H)), guarded.empty(D, B, H), guarded.empty(D, B, H),
        0, D, T, B, TILE, offsets,
    )  # fmt: skip
    assert torch.equal(weight_hh_t, weight_hh.mT)
    return {
        "steps": steps,
        "weight_hh_t": weight_hh_t,
        "grad_output": guarded.full(torch.randn(*rows, D, H)),
        "grad_h_n": guarded.full(torch.randn(D, B, H)),
        "grad_c_n": guarded.full(torch.randn(D, B, H)),
        "grad_gates": guarded.empty(D, *rows, 4, H),
        "grad_h_0": guarded.empty(D, B, H),
        "grad_c_0": guarded.empty(D, B, H),
        "grad_bias": guarded.empty(D, 3 * 4, 4, H, dtype=torch.float32),
        "layer": 0,
        "D": D,
        "T": T,
        "B": B,
    }


def fresh(guarded, given):
    return given | {
        name: guarded.empty(*given[name].shape, dtype=given[name].dtype) for name in RESULTS
    }


# One step and two: what is read ahead ends before it begins.
@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_stay_within_the_tensors(T, D, dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    lstm_backward(*arguments(guarded, T, D).values(), TILE)
    assert guarded.intact()


@pytest.mark.parametrize("offsets", [[0, 17], [0, 17, 26], [0, 17, 28, 31]], ids=str)
@pytest.mark.parametrize("D", [1, 2])
def test_packed_reads_and_writes_stay_within_the_rows(offsets, D, device, monkeypatch):
    guarded = Guarded(device, torch.bfloat16, monkeypatch)
    T, offsets = len(offsets) - 1, guarded.integers(offsets)
    lstm_backward(*arguments(guarded, T, D, offsets).values(), TILE, offsets)
    assert guarded.intact()


@pytest.mark.parametrize("offsets", [None, [0, 17, 28, 31]], ids=str)
@pytest.mark.parametrize(("T", "D"), [(1, 1), (3, 2)])
def test_resets_reads_and_writes_stay_within_the_tensors(T, D, offsets, device, monkeypatch):
    guarded = Guarded(device, torch.float32, monkeypatch)
    resets = guarded.flags(T * B if offsets is None else offsets[T])
    offsets = None if offsets is None else guarded.integers(offsets[: T + 1])
    lstm_backward(*arguments(guarded, T, D, offsets).values(), TILE, offsets, resets)
    assert guarded.intact()


@pytest.mark.parametrize("name", ["grad_output", "grad_h_n", "grad_c_n"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_upstream_gradient_is_zeros(name, dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    zeros = arguments(guarded)
    zeros[name].zero_()
    lstm_backward(*zeros.values(), TILE)
    none = fresh(guarded, zeros) | {name: None}
    lstm_backward(*none.values(), TILE)
    for result in RESULTS:
        assert torch.equal(none[result], zeros[result]), result
    assert guarded.intact()


def test_gradients_that_nobody_wants(device, monkeypatch):
    guarded = Guarded(device, torch.float32, monkeypatch)
    wanted = arguments(guarded)
    lstm_backward(*wanted.values(), TILE)
    for unwanted in (["grad_h_0"], ["grad_c_0"], ["grad_h_0", "grad_c_0", "grad_bias"]):
        others = fresh(guarded, wanted) | dict.fromkeys(unwanted)
        lstm_backward(*others.values(), TILE)
        for result in set(RESULTS) - set(unwanted):
            assert torch.equal(others[result], wanted[result]), (unwanted, result)


@pytest.mark.parametrize(("T", "D"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_sliced_reads_and_writes_stay_within_the_tensors(T, D, packed, device, monkeypatch):
    guarded = Guarded(device, torch.float16, monkeypatch)
    offsets = [0, 17, 28, 31][: T + 1]
    rows = (offsets[-1],) if packed else (T, B)
    offsets = guarded.integers(offsets) if packed else None
    given, meeting = sliced(guarded, T, D, rows[0] if packed else None)
    lstm_forward(*given.values(), SLICED_TILE, offsets, None, meeting)
    S, size = given["steps"].shape[2], given["steps"].shape[-1]
    owners = SLICED_TILE["BLOCK_K"] // SLICED_TILE["BLOCK_H"]
    lstm_backward(
        given["steps"], guarded.full(given["weight_hh"].flatten(1, 2).mT),
        guarded.full(torch.randn(*rows, D, SLICED_H)), guarded.full(torch.randn(D, B, SLICED_H)),
        guarded.full(torch.randn(D, B, SLICED_H)), guarded.empty(D, *rows, 4, SLICED_H), None,
        guarded.empty(D, B, SLICED_H), None, 0, D, T, B, SLICED_TILE, offsets,
        guarded.flags(rows[0] if packed else T * B),
        meeting._replace(
            exchange=guarded.full(torch.zeros(2, D, 3, owners, S, size), torch.float32),
            states=guarded.empty(2, D, 3, S, size, dtype=torch.float32),
        ),
    )  # fmt: skip
    assert guarded.intact()


def test_offsets_beyond_32_bits(monkeypatch):
    """The last tile of a batch of 2^26 + 8: all its rows lie beyond 2^31 numbers.

    It is run alone, and no more of the memory exists.
    """
    if not interpreted():
        pytest.skip("only the interpreter can run one program of a grid alone")
    H, few, many = 32, 8, 2**26 + 8
    sizes = {
        "steps": (1, 1, 11, H * 8),
        "weight_hh_t": (1, H, 4 * H),
        "grad_output": (2, few, 1, H),
        "grad_h_n": (1, few, H),
        "grad_c_n": (1, few, H),
        "grad_gates": (1, 2, few, 4, H),
        "grad_h_0": (1, few, H),
        "grad_c_0": (1, few, H),
        "grad_bias": (1, 4, 4, H),
    }
    batches = dict.fromkeys(sizes, (1, 1)) | {
        "steps": (1, 8), "weight_hh_t": None, "grad_gates": (2, 1), "grad_bias": (1, 2)
    }  # fmt: skip
    near, far, last = far_pair(sizes, batches, few, many)
    lstm_backward(*near.values(), 0, 1, 2, few, tile(H, few, 2, True))
    run_only_program(monkeypatch, many // 8 - 1)
    lstm_backward(*far.values(), 0, 1, 2, many, tile(H, few, 2, True))
    for name, x in last.items():
        assert torch.equal(x, near[name]), name
