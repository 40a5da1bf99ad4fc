"""lstm_forward, the launcher: what it reads and writes, and no more."""

import pytest
import torch

from lstm.kernels.config import slices, tile
from lstm.kernels.forward import lstm_forward
from lstm.kernels.slices import Meeting
from lstm.plan import interpreted
from tests.kernels.guarded import Guarded, far_pair, run_only_program

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
B, H = 17, 20  # three programs, ragged; padded units
TILE = tile(H, B, 2, interpreted()) | {"BLOCK_B": 8}
SIZE = TILE["BLOCK_H"] * 8


def arguments(guarded, T=3, D=1, packed=None):
    """Of lstm_forward, all tensors given, as a dict in its order. packed: rows, instead of T B."""
    rows = (T, B) if packed is None else (packed,)
    return {
        "gates_ih": guarded.full(torch.randn(D, *rows, 4, H)),
        "bias_ih": guarded.full(torch.randn(D, 4, H)),
        "bias_hh": guarded.full(torch.randn(D, 4, H)),
        "weight_hh": guarded.full(torch.randn(D, 4, H, H) / 4),
        "output": guarded.empty(*rows, D, H),
        "steps": guarded.empty(D, 3, 1 + 5 * T, SIZE),
        "weight_hh_t": guarded.empty(D, H, 4 * H),
        "h_0": guarded.full(torch.randn(D, B, H)) if packed is None else None,
        "c_0": guarded.full(torch.randn(D, B, H)),
        "h_n": guarded.empty(D, B, H),
        "c_n": guarded.empty(D, B, H),
        "layer": 0,
        "D": D,
        "T": T,
        "B": B,
    }


# One step and two: what is read ahead ends before it begins.
@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_stay_within_the_tensors(T, D, dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    lstm_forward(*arguments(guarded, T, D).values(), TILE)
    assert guarded.intact()


# The steps of a packed batch: all tiles, some and one of them, of one step, of two, of three.
@pytest.mark.parametrize("offsets", [[0, 17], [0, 17, 26], [0, 17, 28, 31]], ids=str)
@pytest.mark.parametrize("D", [1, 2])
def test_packed_reads_and_writes_stay_within_the_rows(offsets, D, device, monkeypatch):
    guarded = Guarded(device, torch.bfloat16, monkeypatch)
    given = arguments(guarded, len(offsets) - 1, D, packed=offsets[-1])
    lstm_forward(*given.values(), TILE, guarded.integers(offsets))
    assert guarded.intact()


@pytest.mark.parametrize("offsets", [None, [0, 17, 28, 31]], ids=str)
@pytest.mark.parametrize(("T", "D"), [(1, 1), (3, 2)])
def test_resets_reads_and_writes_stay_within_the_tensors(T, D, offsets, device, monkeypatch):
    guarded = Guarded(device, torch.float32, monkeypatch)
    offsets = None if offsets is None else offsets[: T + 1]
    given = arguments(guarded, T, D, packed=offsets and offsets[-1])
    resets = guarded.flags(T * B if offsets is None else offsets[-1])
    offsets = None if offsets is None else guarded.integers(offsets)
    lstm_forward(*given.values(), TILE, offsets, resets)
    assert guarded.intact()


@pytest.mark.parametrize("dtype", DTYPES)
def test_last_states_are_the_last_step(dtype, device, monkeypatch):
    given = arguments(Guarded(device, dtype, monkeypatch))
    lstm_forward(*given.values(), TILE)
    assert torch.equal(given["h_n"][0], given["output"][-1, :, 0])
    # c_0 and c_T in private order: the same numbers and those of the padding
    assert torch.isin(given["c_0"], given["steps"][0, :, 0]).all()
    assert torch.isin(given["c_n"], given["steps"][0, :, -1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_state_is_zeros(dtype, device, monkeypatch):
    guarded = Guarded(device, dtype, monkeypatch)
    zeros = arguments(guarded)
    zeros["h_0"].zero_()
    zeros["c_0"].zero_()
    lstm_forward(*zeros.values(), TILE)
    for name in ("h_0", "c_0"):
        others = zeros | {name: None}
        others |= {name: guarded.empty(*zeros[name].shape) for name in ("output", "h_n", "c_n")}
        lstm_forward(*others.values(), TILE)
        for result in ("output", "h_n", "c_n"):
            assert torch.equal(others[result], zeros[result]), (name, result)


def test_saving_changes_no_result(device, monkeypatch):
    guarded = Guarded(device, torch.float32, monkeypatch)
    saved = arguments(guarded)
    lstm_forward(*saved.values(), TILE)
    others = saved | {"steps": None, "weight_hh_t": None}
    others |= {name: guarded.empty(*saved[name].shape) for name in ("output", "h_n", "c_n")}
    lstm_forward(*others.values(), TILE)
    for result in ("output", "h_n", "c_n"):
        assert torch.equal(others[result], saved[result]), result
    assert guarded.intact()


# Slices, the last of them with two units; three tiles, ragged; stepwise, as the interpreter does it
SLICED_H = 130
SLICED_TILE = tile(SLICED_H, B, 2, interpreted()) | {"BLOCK_B": 8}


def sliced(guarded, T=3, D=1, packed=None):
    """Of lstm_forward, of slices, and their meeting: as `arguments` has them."""
    H, S, size = SLICED_H, slices(SLICED_H, SLICED_TILE), SLICED_TILE["BLOCK_H"] * 8
    rows = (T, B) if packed is None else (packed,)
    given = {
        "gates_ih": guarded.full(torch.randn(D, *rows, 4, H)),
        "bias_ih": guarded.full(torch.randn(D, 4, H)),
        "bias_hh": guarded.full(torch.randn(D, 4, H)),
        "weight_hh": guarded.full(torch.randn(D, 4, H, H) / 8),
        "output": guarded.empty(*rows, D, H),
        "steps": guarded.empty(D, 3, S, 1 + 5 * T, size),
        "weight_hh_t": None,
        "h_0": None,
        "c_0": guarded.full(torch.randn(D, B, H)),
        "h_n": guarded.empty(D, B, H),
        "c_n": guarded.empty(D, B, H),
        "layer": 0,
        "D": D,
        "T": T,
        "B": B,
    }
    exchange = guarded.full(torch.zeros(2, D, 3, SLICED_TILE["BLOCK_K"] * 4), torch.float32)
    return given, Meeting(exchange, guarded.empty(2, D, 3, S, size, dtype=torch.float32), 0)


@pytest.mark.parametrize(("T", "D"), [(1, 1), (2, 2), (3, 1)])
def test_sliced_reads_and_writes_stay_within_the_tensors(T, D, device, monkeypatch):
    guarded = Guarded(device, torch.float16, monkeypatch)
    given, meeting = sliced(guarded, T, D)
    lstm_forward(*given.values(), SLICED_TILE, meeting=meeting)
    assert guarded.intact()


@pytest.mark.parametrize("offsets", [[0, 17], [0, 17, 26], [0, 17, 28, 31]], ids=str)
def test_sliced_packed_reads_and_writes_stay_within_the_rows(offsets, device, monkeypatch):
    guarded = Guarded(device, torch.float16, monkeypatch)
    given, meeting = sliced(guarded, len(offsets) - 1, 2, packed=offsets[-1])
    resets = guarded.flags(offsets[-1])
    lstm_forward(*given.values(), SLICED_TILE, guarded.integers(offsets), resets, meeting)
    assert guarded.intact()


def test_offsets_beyond_32_bits(monkeypatch):
    """The last tile of a batch of 2^26 + 8: all its rows lie beyond 2^31 numbers.

    It is run alone, and no more of the memory exists.
    """
    if not interpreted():
        pytest.skip("only the interpreter can run one program of a grid alone")
    H, few, many = 32, 8, 2**26 + 8
    sizes = {
        "gates_ih": (1, 2, few, 4, H),
        "bias_ih": (1, 4, H),
        "bias_hh": (1, 4, H),
        "weight_hh": (1, 4, H, H),
        "output": (2, few, 1, H),
        "steps": (1, 1, 11, H * 8),
        "h_0": (1, few, H),
        "c_0": (1, few, H),
        "h_n": (1, few, H),
        "c_n": (1, few, H),
    }
    batches = dict.fromkeys(sizes, (1, 1)) | {
        "gates_ih": (2, 1), "bias_ih": None, "bias_hh": None, "weight_hh": None,
        "steps": (1, 8),
    }  # fmt: skip
    near, far, last = far_pair(sizes, batches, few, many)

    def run(tensors, batch):
        before, after = list(tensors.values())[:6], list(tensors.values())[6:]
        lstm_forward(*before, None, *after, 0, 1, 2, batch, tile(H, few, 2, True))

    run(near, few)
    run_only_program(monkeypatch, many // 8 - 1)
    run(far, many)
    for name, x in last.items():
        assert torch.equal(x, near[name]), name
