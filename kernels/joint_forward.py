"""Forward of several layers at once, each some steps behind the one below (progress.py).

For each tile of sequences there is a program for every layer, that of forward.py, and one between
any two. That one multiplies each h of the lower layer with W_ih of the upper, which it holds in
registers as the others hold W_hh, and writes gates_ih of the upper.
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
from .layout import from_tile, inline, product, step_rows, tile_indices, to_gates, to_tile
from .operand import to_range
from .progress import of_layer, steps_of_layer, tell_all, wait


@inline
def load_input(input_ptr, mask_ptr, offs, mask, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """A step's input of the upper layer: a tile."""
    x = to_tile(tl.load(input_ptr + offs, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
    if mask_ptr is not None:
        x *= to_tile(tl.load(mask_ptr + offs, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
    return x


@inline
def multiply_forward(
    w, inverse, input_ptr, mask_ptr, gates_ih_ptr, offsets_ptr, ready_ptr, done_ptr, tile, T, B,
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
    row = tile * BLOCK_B + sequence
    mask = (row < B) & (unit < H)
    offs, offs_z = row * H + unit, row * (4 * H) + unit
    # The first row of a step and of the next, and how many they have
    size = B.to(tl.int64)
    begin, begin_1, count, count_1 = 0 * size, size, B, B
    if offsets_ptr is not None:
        begin, count = step_rows(offsets_ptr, 0, T, 0)
        begin_1, count_1 = step_rows(offsets_ptr, 1, T, 0)
    BYTES: tl.constexpr = units_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + largest_bytes(BLOCK_H, BLOCK_B))
    x = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    there, period = 0, steps_of_layer(T)
    for t in range(T):
        if (t & (period - 1)) == 0:
            tell_all(done_ptr, t)
            # As many as the layer tells of next, so that all of them can be read ahead
            there = wait(ready_ptr, there, tl.minimum(t + period, T))
            x = load_input(
                input_ptr, mask_ptr, begin * H + offs, mask & (row < count), BLOCK_H, BLOCK_B
            )
        if offsets_ptr is None:
            begin_2, count_2 = begin_1 + size, count_1
        else:
            begin_2, count_2 = step_rows(offsets_ptr, t + 2, T, 0)
        scale = inverse
        if FLOAT32 and mask_ptr is not None:
            # Dropout makes numbers larger than 1, by as much as you like.
            x, inverse_x = to_range(x, buffers + BYTES)
            scale = inverse * inverse_x
        words = exchange_units(x.to(DOT), buffers, t)
        ahead = mask & (row < count_1) & (t + 1 < T) & (((t + 1) & (period - 1)) != 0)
        x = load_input(input_ptr, mask_ptr, begin_1 * H + offs, ahead, BLOCK_H, BLOCK_B)
        d_i, d_f, d_g, d_o = to_gates(product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT)), BLOCK_B)
        if FLOAT32:
            d_i, d_f, d_g, d_o = d_i * scale, d_f * scale, d_g * scale, d_o * scale
        z_ptr, alive = gates_ih_ptr + begin * (4 * H) + offs_z, mask & (row < count)
        tl.store(z_ptr, from_tile(d_i, dtype, mask), mask=alive)
        tl.store(z_ptr + H, from_tile(d_f, dtype, mask), mask=alive)
        tl.store(z_ptr + 2 * H, from_tile(d_g, dtype, mask), mask=alive)
        tl.store(z_ptr + 3 * H, from_tile(d_o, dtype, mask), mask=alive)
        begin, count, begin_1, count_1 = begin_1, count_1, begin_2, count_2
    tell_all(done_ptr, T)


@triton.jit(
    do_not_specialize=["layer", "T", "B"],
    do_not_specialize_on_alignment=[
        "bias_ih_ptrs",
        "bias_hh_ptrs",
        "h_0_ptr",
        "c_0_ptr",
        "resets_ptr",
        "h_n_ptr",
        "c_n_ptr",
        "done_ptr",
    ],
)
def lstm_joint_forward_kernel(
    gates_ih_ptrs, bias_ih_ptrs, bias_hh_ptrs, weight_hh_ptrs, output_ptrs, steps_ptrs,
    weight_hh_t_ptrs, weight_ih_ptrs, mask_ptrs,
    h_0_ptr, c_0_ptr, offsets_ptr, resets_ptr, h_n_ptr, c_n_ptr, done_ptr,
    layer, T, B, H: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences, in several layers from `layer` on.

    Shapes: as lstm_forward_kernel has them for one direction. What ends in ptrs is a tuple, one of
        each layer: the first layer's gates_ih is given, the others are written here. Of all but
        the first: weight_ih (4, H, H); mask (T, B, H), packed (rows, H), what multiplies the
        input, Nones for ones; and room in weight_hh_t, (2, H, 4, H), for W_ih transposed, too. done
        (stages, tiles), int32, first zeros: the steps that first layer, product, second layer,
        product and so on have written.
    Numerics: as lstm_forward_kernel has them. A product with W_ih is as that with W_hh, so of
        float32 in float16's mantissa, which is TensorFloat-32's.
    """
    stage = tl.program_id(1)
    # Which of the layers; of a product, the one it is for
    number = (stage + 1) // 2
    multiplies = stage % 2 == 1
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    weight_ptr = of_layer(weight_hh_ptrs, number)
    weight_ptr = tl.where(multiplies, of_layer(weight_ih_ptrs, number - 1), weight_ptr)
    if weight_hh_t_ptrs[0] is not None:
        tiles -= TRANSPOSERS
        if tile >= tiles:
            weight_t_ptr = of_layer(weight_hh_t_ptrs, number)
            weight_t_ptr += tl.where(multiplies, 4 * H * H, 0)
            transpose(weight_ptr, weight_t_ptr, tile - tiles, H, BLOCK_H)
            return
    # Of the first stage nobody reads it.
    ready_ptr = done_ptr + (stage - 1) * tiles + tile
    done_ptr += stage * tiles + tile
    gates_ih_ptr = of_layer(gates_ih_ptrs, number)
    dtype: tl.constexpr = gates_ih_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    half = None if FLOAT32 else tl.where(multiplies, 1.0, 0.5)
    w, inverse = load_matrix(weight_ptr, half, DOT, H, BLOCK_H, BLOCK_B, VEC)
    if multiplies:
        multiply_forward(
            w, inverse, of_layer(output_ptrs, number - 1), of_layer(mask_ptrs, number - 1),
            gates_ih_ptr, offsets_ptr, ready_ptr, done_ptr, tile, T, B, H, BLOCK_H, BLOCK_B,
        )  # fmt: skip
        return
    layer_forward(
        w, inverse, gates_ih_ptr, of_layer(bias_ih_ptrs, number), of_layer(bias_hh_ptrs, number),
        None, h_0_ptr, c_0_ptr, offsets_ptr, resets_ptr, of_layer(output_ptrs, number), h_n_ptr,
        c_n_ptr, of_layer(steps_ptrs, number),
        ready_ptr, tl.where(stage == 0, T, 0), done_ptr, stage + 1 < tl.num_programs(1),
        tile, tiles, layer + number, T, B, H, 1, BLOCK_H, BLOCK_B, VEC, False,
    )  # fmt: skip


def lstm_joint_forward(
    layers, weight_ih, masks, h_0, c_0, h_n, c_n, done, layer, T, B, tile, offsets=None, resets=None
):
    """Launch lstm_joint_forward_kernel, whose docstring has the shapes.

    layers: of each, from the lowest on, gates_ih, bias_ih, bias_hh, weight_hh, output, steps and
    weight_hh_t; weight_ih, masks: of each but the lowest, masks None for none; tile:
    config.tile(...).
    """
    H, tiles = c_n.shape[-1], -(-B // tile["BLOCK_B"])
    masks = masks or (len(layers) - 1) * (None,)
    extra = 0 if layers[0][-1] is None else config.TRANSPOSERS
    launch(
        lstm_joint_forward_kernel, (tiles + extra, config.stages(len(layers)), 1),
        *zip(*layers, strict=True), tuple(weight_ih), tuple(masks),
        h_0, c_0, offsets, resets, h_n, c_n, done,
        layer, T, B, H, **config.joint_tile(tile), launch_cooperative_grid=True,
    )  # fmt: skip
