"""Forward of two layers at once: the upper one some steps behind the lower (progress.py).

For each tile of sequences there are three programs. Two are those of forward.py, a layer each; the
third multiplies each h of the lower layer with W_ih of the upper, which it holds in registers as
they hold W_hh, and writes gates_ih of the upper.
"""

import triton
import triton.language as tl

from . import config
from .exchange import (
    exchange_units,
    largest_bytes,
    shared_memory,
    to_operand,
    units_bytes,
)
from .forward import TRANSPOSERS, layer_forward, load_matrix, transpose
from .launching import launch
from .layout import from_tile, inline, product, tile_indices, to_gates, to_tile
from .operand import to_range
from .progress import steps_of_layer, steps_of_product, tell, wait


@inline
def load_input(input_ptr, mask_ptr, offs, mask, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """A step's input of the upper layer: a tile."""
    x = to_tile(tl.load(input_ptr + offs, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
    if mask_ptr is not None:
        x *= to_tile(tl.load(mask_ptr + offs, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
    return x


@inline
def multiply_forward(
    w, inverse, input_ptr, mask_ptr, gates_ih_ptr, ready_ptr, done_ptr, tile, T, B,
    H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """gates_ih = W_ih input of a tile's sequences, step by step, as the input comes.

    Shapes: as the kernel has them, gates_ih of the upper layer, input the output of the lower; w,
    inverse: W_ih as `load_matrix` has it.
    """
    dtype: tl.constexpr = gates_ih_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    row = tile * BLOCK_B
    mask = (row + sequence < B) & (unit < H)
    step = B.to(tl.int64) * H
    offs = (row + sequence) * H + unit
    gates_ih_ptr += (row + sequence) * (4 * H) + unit
    BYTES: tl.constexpr = units_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + largest_bytes(BLOCK_H, BLOCK_B))
    x = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    there, period = 0, steps_of_layer(T)
    for t in range(T):
        if (t % steps_of_product() == 1) & (t > 1):
            # All threads had written those before the last one when they met in its exchange.
            tell(done_ptr, t - 1)
        if (t & (period - 1)) == 0:
            # As many as the layer tells of next, so that all of them can be read ahead
            there = wait(ready_ptr, there, tl.minimum(t + period, T))
            x = load_input(input_ptr, mask_ptr, offs, mask, BLOCK_H, BLOCK_B)
        scale = inverse
        if FLOAT32 and mask_ptr is not None:
            # Dropout makes numbers larger than 1, by as much as you like.
            x, inverse_x = to_range(x, buffers + BYTES)
            scale = inverse * inverse_x
        words = exchange_units(x.to(DOT), buffers, t)
        offs += step
        ahead = mask & (t + 1 < T) & (((t + 1) & (period - 1)) != 0)
        x = load_input(input_ptr, mask_ptr, offs, ahead, BLOCK_H, BLOCK_B)
        d_i, d_f, d_g, d_o = to_gates(product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT)), BLOCK_B)
        if FLOAT32:
            d_i, d_f, d_g, d_o = d_i * scale, d_f * scale, d_g * scale, d_o * scale
        tl.store(gates_ih_ptr, from_tile(d_i, dtype, mask), mask=mask)
        tl.store(gates_ih_ptr + H, from_tile(d_f, dtype, mask), mask=mask)
        tl.store(gates_ih_ptr + 2 * H, from_tile(d_g, dtype, mask), mask=mask)
        tl.store(gates_ih_ptr + 3 * H, from_tile(d_o, dtype, mask), mask=mask)
        gates_ih_ptr += 4 * step
    tl.debug_barrier()
    tell(done_ptr, T)


@triton.jit(
    do_not_specialize=["layer", "T", "B"],
    do_not_specialize_on_alignment=[
        "bias_ih_ptr",
        "bias_hh_ptr",
        "bias_ih_1_ptr",
        "bias_hh_1_ptr",
        "h_0_ptr",
        "c_0_ptr",
        "resets_ptr",
        "h_n_ptr",
        "c_n_ptr",
        "done_ptr",
    ],
)
def lstm_joint_forward_kernel(
    gates_ih_ptr, bias_ih_ptr, bias_hh_ptr, weight_hh_ptr, output_ptr, steps_ptr, weight_hh_t_ptr,
    mask_ptr, weight_ih_1_ptr,
    gates_ih_1_ptr, bias_ih_1_ptr, bias_hh_1_ptr, weight_hh_1_ptr, output_1_ptr, steps_1_ptr,
    weight_hh_1_t_ptr,
    h_0_ptr, c_0_ptr, resets_ptr, h_n_ptr, c_n_ptr, done_ptr,
    layer, T, B, H: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences, in two layers, `layer` and the next.

    Shapes: as lstm_forward_kernel has them for one direction, nothing packed, of the upper layer
        those with a 1, whose gates_ih are written here; weight_ih_1 (4, H, H), W_ih of the upper
        layer; weight_hh_1_t (2, H, 4, H), for W_ih of that layer, too; mask (T, B, H) what
        multiplies its input, None for ones; done (3, tiles), int32, first zeros: the steps that
        lower layer, product and upper layer have written.
    Numerics: as lstm_forward_kernel has them. The upper layer's product is as that of W_hh, so of
        float32 in float16's mantissa, which is TensorFloat-32's.
    """
    stage = tl.program_id(1)
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    upper = stage == 2
    weight_ptr = tl.where(upper, weight_hh_1_ptr, weight_hh_ptr)
    weight_ptr = tl.where(stage == 1, weight_ih_1_ptr, weight_ptr)
    if weight_hh_t_ptr is not None:
        tiles -= TRANSPOSERS
        if tile >= tiles:
            weight_t_ptr = tl.where(upper, weight_hh_1_t_ptr, weight_hh_t_ptr)
            weight_t_ptr = tl.where(stage == 1, weight_hh_1_t_ptr + 4 * H * H, weight_t_ptr)
            transpose(weight_ptr, weight_t_ptr, tile - tiles, H, BLOCK_H)
            return
    done_ptr += tile
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    half = None if FLOAT32 else tl.where(stage == 1, 1.0, 0.5)
    w, inverse = load_matrix(weight_ptr, half, DOT, H, BLOCK_H, BLOCK_B, VEC)
    if stage == 1:
        multiply_forward(
            w, inverse, output_ptr, mask_ptr, gates_ih_1_ptr, done_ptr, done_ptr + tiles,
            tile, T, B, H, BLOCK_H, BLOCK_B,
        )  # fmt: skip
        return
    if bias_ih_ptr is not None:
        bias_ih_ptr = tl.where(upper, bias_ih_1_ptr, bias_ih_ptr)
        bias_hh_ptr = tl.where(upper, bias_hh_1_ptr, bias_hh_ptr)
    if steps_ptr is not None:
        steps_ptr = tl.where(upper, steps_1_ptr, steps_ptr)
    layer_forward(
        w, inverse, tl.where(upper, gates_ih_1_ptr, gates_ih_ptr), bias_ih_ptr, bias_hh_ptr, None,
        h_0_ptr, c_0_ptr, None, resets_ptr, tl.where(upper, output_1_ptr, output_ptr), h_n_ptr,
        c_n_ptr, steps_ptr, done_ptr + tiles, tl.where(upper, 0, T), done_ptr + stage * tiles,
        tile, tiles, layer + upper.to(tl.int32), T, B, H, 1, BLOCK_H, BLOCK_B, VEC, False,
    )  # fmt: skip


def lstm_joint_forward(
    lower, upper, mask, weight_ih, h_0, c_0, h_n, c_n, done, layer, T, B, tile, resets=None
):
    """Launch lstm_joint_forward_kernel, whose docstring has the shapes.

    lower, upper: gates_ih, bias_ih, bias_hh, weight_hh, output, steps and weight_hh_t of a layer;
    weight_ih: of the upper; tile: config.tile(...).
    """
    H, tiles = c_n.shape[-1], -(-B // tile["BLOCK_B"])
    extra = 0 if lower[-1] is None else config.TRANSPOSERS
    launch(
        lstm_joint_forward_kernel, (tiles + extra, 3, 1),
        *lower, mask, weight_ih, *upper, h_0, c_0, resets, h_n, c_n, done,
        layer, T, B, H, **config.joint_tile(tile), launch_cooperative_grid=True,
    )  # fmt: skip
