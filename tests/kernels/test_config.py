"""Tiles fit their calls, the registers, and each other."""

import inspect
from itertools import product

import pytest

from lstm.kernels import config
from lstm.kernels.backward import lstm_backward_kernel
from lstm.kernels.exchange import own_units
from lstm.kernels.forward import lstm_forward_kernel
from lstm.kernels.sliced_backward import lstm_sliced_backward_kernel
from lstm.kernels.sliced_forward import lstm_sliced_forward_kernel
from lstm.kernels.step import lstm_step_kernel

SIZES = list(product(range(1, config.MAX_ONE_SLICE + 1), (2, 4)))  # hidden_size, itemsize
SLICED_SIZES = list(product(range(129, config.MAX_HIDDEN_SIZE + 1), (2, 4)))


@pytest.mark.parametrize(
    ("kernel", "hidden_size"),
    [
        (lstm_forward_kernel, 128), (lstm_backward_kernel, 128),
        (lstm_sliced_forward_kernel, 129), (lstm_sliced_backward_kernel, 129),
    ],
)  # fmt: skip
def test_a_tile_is_the_kernels_keyword_arguments(kernel, hidden_size):
    names = list(inspect.signature(kernel.fn).parameters)
    tile = config.tile(hidden_size, 100, 4)
    assert list(tile) == [*names[names.index("D") + 1 :], "num_warps", "num_stages", "maxnreg"]


def test_block_h_is_the_next_power_of_two_from_32_on():
    for hidden_size, itemsize in SIZES:
        tile = config.tile(hidden_size, 100, itemsize)
        block_h = tile["BLOCK_H"]
        assert block_h in (32, 64, 128)
        assert block_h == 32 or block_h // 2 < hidden_size
        assert hidden_size <= block_h


def test_vec_keeps_reads_aligned_within_a_row_and_sixteen_bytes():
    for hidden_size, itemsize in SIZES:
        tile = config.tile(hidden_size, 100, itemsize)
        assert hidden_size % tile["VEC"] == 0
        assert tile["VEC"] * itemsize <= 16
        # operand_indices: four lanes with eight neighbours each, or more
        assert tile["BLOCK_H"] % 32 == 0 and 8 % tile["VEC"] == 0
        for block_b in (2, 4):
            few = config.tile(hidden_size, 100, itemsize, block_b=block_b)
            assert own_units(few["BLOCK_H"], block_b) % few["VEC"] == 0
    assert config.tile(128, 100, 2)["VEC"] == 8
    assert config.tile(128, 100, 4)["VEC"] == 4


def test_sixteen_units_a_warp():
    for hidden_size, itemsize in SIZES:
        tile = config.tile(hidden_size, 100, itemsize)
        assert tile["num_warps"] * 16 == tile["BLOCK_H"]


def test_slices_cover_the_units_and_have_a_warp_for_at_most_128_columns():
    for hidden_size, itemsize in SLICED_SIZES:
        tile = config.tile(hidden_size, 100, itemsize)
        assert tile["BLOCK_K"] in (256, 512, 1024)
        assert tile["BLOCK_K"] // 2 < hidden_size <= tile["BLOCK_K"]
        assert tile["num_warps"] == tile["PARTS"] == max(4, tile["BLOCK_K"] // 128)
        assert tile["BLOCK_H"] == 16
        slices = config.slices(hidden_size, tile)
        assert (slices - 1) * 16 < hidden_size <= slices * 16
        # What a lane reads at once is within the four units, or eight columns, that it has.
        assert hidden_size % tile["VEC"] == 0 and tile["VEC"] <= 4


@pytest.mark.parametrize(("hidden_size", "programs"), [(256, 2 * 132), (512, 2 * 132), (1024, 132)])
def test_a_card_holds_as_many_programs_as_its_registers(hidden_size, programs):
    assert config.resident(132, config.tile(hidden_size, 1, 2)) == programs


@pytest.mark.parametrize(
    ("batch", "block_b"), [(1, 8), (8, 8), (9, 16), (100, 128), (1024, 1024), (1025, 1024)]
)
def test_the_interpreters_tile_takes_the_batch(batch, block_b):
    assert config.tile(128, batch, 2, interpreted=True)["BLOCK_B"] == block_b


def test_a_steps_tile_is_its_kernels_keyword_arguments():
    names = list(inspect.signature(lstm_step_kernel.fn).parameters)
    for interpreted in (False, True):
        tile = config.step_tile(100, 4, interpreted)
        assert list(tile) == [*names[names.index("BLOCK_B") :], "num_warps", "num_stages"]


@pytest.mark.parametrize("itemsize", [2, 4])
def test_more_sequences_of_a_step_share_a_reading_of_the_weights(itemsize):
    few, many = config.step_tile(64, itemsize), config.step_tile(65, itemsize)
    assert (few["BLOCK_B"], many["BLOCK_B"]) == (16, 64)
    assert few["BLOCK_K"] * itemsize == 64
    # The tensor core's least
    assert few["BLOCK_K"] >= 16


@pytest.mark.parametrize(
    ("itemsize", "precision", "size"), [(2, "ieee", 256), (4, "tf32", 256), (4, "ieee", 64)]
)
def test_a_step_of_few_sequences_reads_more_of_aligned_rows(itemsize, precision, size):
    few, many = (config.step_tile(B, itemsize, False, precision, aligned=True) for B in (64, 65))
    assert (few["BLOCK_K"] * itemsize, many["BLOCK_K"] * itemsize) == (size, 64)
