"""Backward of several layers at once, each some steps behind the one above (progress.py).

For each tile of sequences there is a program for every layer, that of backward.py, and one between
any two. That one multiplies the gates' gradients of each step of the upper layer with W_ih^T of
that layer, which it holds in registers as the others hold W_hh^T, and writes the lower layer's
grad_output.
"""

import triton
import triton.language as tl

from . import config
from .backward import gates_product, layer_backward, load_matrices
from .exchange import (
    exchange_gates,
    gates_bytes,
    largest_bytes,
    largest_of_all,
    read_largest,
    shared_memory,
    write_largest,
)
from .launching import launch
from .layout import from_tile, inline, step_rows, tile_indices, to_tile
from .memory import load_gates
from .operand import largest_gate, power_of_two
from .progress import of_layer, steps_of_layer, tell_all, wait


@inline
def load_grad_gates(pointers, mask, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The gradients of a step's gates: tiles."""
    i, f, g, o = load_gates(pointers, mask, H)
    i, f = to_tile(i, BLOCK_H, BLOCK_B), to_tile(f, BLOCK_H, BLOCK_B)
    return i, f, to_tile(g, BLOCK_H, BLOCK_B), to_tile(o, BLOCK_H, BLOCK_B)


@inline
def multiply_backward(
    w, inverse, grad_gates_ptr, mask_ptr, grad_input_ptr, offsets_ptr, ready_ptr, done_ptr, tile,
    T, B, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """grad_input = W_ih^T grad_gates of a tile's sequences, from the last step on, as they come.

    Shapes: as the kernel has them, grad_gates of the upper layer, grad_input the lower's
    grad_output; w, inverse: W_ih^T as `load_matrices` has it.
    """
    dtype: tl.constexpr = grad_input_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    row = tile * BLOCK_B + sequence
    mask = (row < B) & (unit < H)
    offs, offs_z = row * H + unit, row * (4 * H) + unit
    # The first row of a step and of the next two, and how many they have
    size = B.to(tl.int64)
    begin, begin_1, begin_2 = (T - 1) * size, (T - 2) * size, (T - 3) * size
    count, count_1, count_2 = B, B, B
    if offsets_ptr is not None:
        begin, count = step_rows(offsets_ptr, 0, T, 1)
        begin_1, count_1 = step_rows(offsets_ptr, 1, T, 1)
        begin_2, count_2 = step_rows(offsets_ptr, 2, T, 1)
    BYTES: tl.constexpr = gates_bytes(BLOCK_H, BLOCK_B)
    TABLE: tl.constexpr = largest_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + 3 * TABLE)
    di = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    df, dg, do, di_1, df_1, dg_1, do_1 = di, di, di, di, di, di, di
    scale, inverse_s = (
        tl.full((1, BLOCK_B), 1.0, tl.float32),
        tl.full((1, BLOCK_B), 1.0, tl.float32),
    )
    there, period = 0, steps_of_layer(T)
    for s in range(T):
        if (s & (period - 1)) == 0:
            tell_all(done_ptr, s)
            # As many as the layer tells of next, so that all of them can be read ahead
            there = wait(ready_ptr, there, tl.minimum(s + period, T))
            z_ptr, z_1_ptr = grad_gates_ptr + begin * (4 * H), grad_gates_ptr + begin_1 * (4 * H)
            di, df, dg, do = load_grad_gates(
                z_ptr + offs_z, mask & (row < count), H, BLOCK_H, BLOCK_B
            )
            di_1, df_1, dg_1, do_1 = load_grad_gates(
                z_1_ptr + offs_z, mask & (row < count_1) & (s + 1 < T), H, BLOCK_H, BLOCK_B
            )
            if FLOAT32:
                # In a table of its own: of those below somebody may still read one.
                largest = largest_gate(di, df, dg, do)
                largest = largest_of_all(largest, buffers + BYTES + 2 * TABLE)
                scale, inverse_s = power_of_two(largest)
        if offsets_ptr is None:
            begin_3, count_3 = begin_2 - size, count_2
        else:
            begin_3, count_3 = step_rows(offsets_ptr, s + 3, T, 1)
        buffer, table = buffers + s % 2 * (BYTES // 2), buffers + BYTES + s % 2 * TABLE
        back = inverse
        if FLOAT32:
            di, df, dg, do = di * scale, df * scale, dg * scale, do * scale
            back = inverse * inverse_s
            # The scale of the next step is found here, so that it needs no barrier of its own.
            largest_1 = largest_gate(di_1, df_1, dg_1, do_1)
            write_largest(largest_1, table)
        words = exchange_gates(di.to(DOT), df.to(DOT), dg.to(DOT), do.to(DOT), buffer)
        if FLOAT32:
            scale, inverse_s = power_of_two(read_largest(largest_1, table))
        di, df, dg, do = di_1, df_1, dg_1, do_1
        ahead = mask & (row < count_2) & (s + 2 < T) & ((s & (period - 1)) < period - 2)
        z_2_ptr = grad_gates_ptr + begin_2 * (4 * H)
        di_1, df_1, dg_1, do_1 = load_grad_gates(z_2_ptr + offs_z, ahead, H, BLOCK_H, BLOCK_B)
        dx = gates_product(w, words, BLOCK_H, BLOCK_B, DOT)
        if FLOAT32:
            dx *= back
        here, alive = begin * H + offs, mask & (row < count)
        if mask_ptr is not None:
            dx *= to_tile(tl.load(mask_ptr + here, mask=alive, other=0.0), BLOCK_H, BLOCK_B)
        tl.store(grad_input_ptr + here, from_tile(dx, dtype, mask), mask=alive)
        begin, count, begin_1, count_1 = begin_1, count_1, begin_2, count_2
        begin_2, count_2 = begin_3, count_3
    tell_all(done_ptr, T)


@triton.jit(
    do_not_specialize=["layer", "T", "B"],
    do_not_specialize_on_alignment=[
        "grad_h_n_ptr",
        "grad_c_n_ptr",
        "resets_ptr",
        "grad_h_0_ptr",
        "grad_c_0_ptr",
        "done_ptr",
    ],
)
def lstm_joint_backward_kernel(
    steps_ptrs, weight_hh_t_ptrs, grad_output_ptrs, grad_gates_ptrs, mask_ptrs,
    grad_h_n_ptr, grad_c_n_ptr, offsets_ptr, resets_ptr, grad_h_0_ptr, grad_c_0_ptr, grad_bias_ptr,
    done_ptr, layer, T, B, H: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences in several layers from `layer` on, last
    step first.

    Shapes: as lstm_backward_kernel has them for one direction. What ends in ptrs is a tuple as
        lstm_joint_forward_kernel has it, from the lowest layer on: the last layer's grad_output is
        given, the others are written here; weight_hh_t, mask and done as there, done from the
        highest layer down.
    Numerics: as lstm_backward_kernel has them. A product with W_ih is as that with W_hh.
    """
    stage = tl.program_id(1)
    # Which of the layers; of a product, the one it is of
    number = (tl.num_programs(1) - stage) // 2
    multiplies = stage % 2 == 1
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    # Of the first stage nobody reads it.
    ready_ptr = done_ptr + (stage - 1) * tiles + tile
    done_ptr += stage * tiles + tile
    grad_gates_ptr = of_layer(grad_gates_ptrs, number)
    dtype: tl.constexpr = grad_gates_ptr.dtype.element_ty
    DOT: tl.constexpr = tl.float16 if dtype == tl.float32 else dtype
    weight_t_ptr = of_layer(weight_hh_t_ptrs, number) + tl.where(multiplies, 4 * H * H, 0)
    w, inverse, infinite = load_matrices(weight_t_ptr, DOT, H, BLOCK_H, BLOCK_B, VEC)
    if multiplies:
        multiply_backward(
            w, inverse, grad_gates_ptr, of_layer(mask_ptrs, number - 1),
            of_layer(grad_output_ptrs, number - 1), offsets_ptr, ready_ptr, done_ptr, tile,
            T, B, H, BLOCK_H, BLOCK_B,
        )  # fmt: skip
        return
    layer_backward(
        w, inverse, infinite, of_layer(steps_ptrs, number), None,
        of_layer(grad_output_ptrs, number), grad_h_n_ptr, grad_c_n_ptr, offsets_ptr, resets_ptr,
        grad_gates_ptr, grad_h_0_ptr, grad_c_0_ptr, grad_bias_ptr,
        ready_ptr, tl.where(stage == 0, T, 0), done_ptr, stage + 1 < tl.num_programs(1),
        tile, tiles, layer + number, T, B, H, 1, BLOCK_H, BLOCK_B, VEC, False,
    )  # fmt: skip


def lstm_joint_backward(
    steps, weight_hh_t, grad_output, grad_gates, masks, grad_h_n, grad_c_n, grad_h_0, grad_c_0,
    grad_bias, done, layer, T, B, tile, offsets=None, resets=None,
):  # fmt: skip
    """Launch lstm_joint_backward_kernel, whose docstring has the shapes.

    Of steps, weight_hh_t, grad_output and grad_gates one of each layer, from the lowest on; masks:
    of each but the lowest, or None for none; tile: as forward had it.
    """
    layers, H = len(steps), weight_hh_t[0].shape[-1] // 4
    masks = masks or (layers - 1) * (None,)
    launch(
        lstm_joint_backward_kernel, (-(-B // tile["BLOCK_B"]), config.stages(layers), 1),
        *map(tuple, (steps, weight_hh_t, grad_output, grad_gates, masks)),
        grad_h_n, grad_c_n, offsets, resets, grad_h_0, grad_c_0, grad_bias, done,
        layer, T, B, H, **config.joint_tile(tile), launch_cooperative_grid=True,
    )  # fmt: skip
