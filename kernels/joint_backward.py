"""Backward of several layers at once, each some steps behind the one above (rings.py).

For each tile of sequences there is a program for every layer, that of backward.py, and one between
any two. That one multiplies the gates' gradients of each step of the upper layer with W_ih^T of
that layer, which it holds in registers as the others hold W_hh^T, and hands on what is the lower
layer's grad_output.
"""

import triton
import triton.language as tl

from . import config
from .backward import gates_product, layer_backward, load_matrices, write_grad_gates
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
from .layout import INTERPRETED, clear, inline, step_rows, tile_indices, to_tile
from .operand import largest_gate, power_of_two
from .rings import (
    ask,
    gates_of,
    hand,
    in_parts,
    of_layer,
    read,
    rings_shape,
    slot,
    slot_indices,
    stage_of,
    start,
    tag,
    tell,
    wait,
)


@inline
def multiply_backward(
    w, inverse, mask_ptr, grad_gates_ptr, offsets_ptr, stage, tile, T, B,
    dtype: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """grad_input = W_ih^T grad_gates of a tile's sequences, from the last step on, as they come.

    stage: as `rings.stage_of` has it: the gates' gradients come in slots of gates, and are written
    to grad_gates here, where there is more time for it; grad_input goes on in slots (BLOCK_B, H);
    the rest as the kernel has it; w, inverse: W_ih^T as `load_matrices` has it.
    """
    from_ptr, ring_ptr, taken_ptr, room_ptr, slots, _, _ = stage
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    SLOT: tl.constexpr = 4 * BLOCK_H * BLOCK_B
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    row = tile * BLOCK_B + sequence
    mask = (row < B) & (unit < H)
    offs, offs_m, offs_z = tl.arange(0, SLOT), row * H + unit, row * (4 * H) + unit
    offs_r, inside_r = slot_indices(BLOCK_H, BLOCK_B, H, PARTS=in_parts(dtype, H))
    BYTES: tl.constexpr = gates_bytes(BLOCK_H, BLOCK_B)
    TABLE: tl.constexpr = largest_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + 3 * TABLE)
    # float32's scale is found a step ahead, so that it needs no barrier of its own.
    NEXT: tl.constexpr = 1 if FLOAT32 else 0
    room = start(stage)
    z = read(from_ptr + offs, None, None)
    if FLOAT32:
        z, room = wait(z, from_ptr + offs, None, tag(0, slots), 1, room_ptr, room, 1)
        di, df, dg, do = gates_of(z, BLOCK_H, BLOCK_B)
        # In a table of its own: of those below somebody may still read one.
        largest = largest_of_all(largest_gate(di, df, dg, do), buffers + BYTES + 2 * TABLE)
        scale, inverse_s = power_of_two(largest)
        z = read(slot(from_ptr, tl.minimum(1, T - 1), slots, SLOT) + offs, None, None)
    for s in range(T):
        n = tl.minimum(s + NEXT, T - 1)
        z, room = wait(
            z, slot(from_ptr, n, slots, SLOT) + offs, None, tag(n, slots), 1,
            room_ptr, room, s + 2 - slots,
        )  # fmt: skip
        room = ask(room_ptr, EACH=True)
        di_1, df_1, dg_1, do_1 = gates_of(z, BLOCK_H, BLOCK_B)
        z = read(slot(from_ptr, tl.minimum(s + NEXT + 1, T - 1), slots, SLOT) + offs, None, None)
        buffer, table = buffers + s % 2 * (BYTES // 2), buffers + BYTES + s % 2 * TABLE
        if FLOAT32:
            q_i, q_f, q_g, q_o = di * scale, df * scale, dg * scale, do * scale
            back = inverse * inverse_s
            largest_1 = largest_gate(di_1, df_1, dg_1, do_1)
            write_largest(largest_1, table)
        else:
            di, df, dg, do = di_1, df_1, dg_1, do_1
            q_i, q_f, q_g, q_o = di, df, dg, do
        words = exchange_gates(q_i.to(DOT), q_f.to(DOT), q_g.to(DOT), q_o.to(DOT), buffer)
        tell(taken_ptr, s + 1)
        if offsets_ptr is None:
            begin, alive = (T - 1 - s).to(tl.int64) * B, mask
        else:
            begin, count = step_rows(offsets_ptr, s, T, 1)
            alive = mask & (row < count)
        z_ptr = grad_gates_ptr + begin * (4 * H) + offs_z
        write_grad_gates(di, df, dg, do, z_ptr, dtype, mask, alive, H)
        if FLOAT32:
            scale, inverse_s = power_of_two(read_largest(largest_1, table))
            di, df, dg, do = di_1, df_1, dg_1, do_1
        if mask_ptr is not None:
            m = tl.load(mask_ptr + begin * H + offs_m, mask=alive, other=0.0)
        dx = gates_product(w, words, BLOCK_H, BLOCK_B, DOT)
        if FLOAT32:
            dx *= back
        if mask_ptr is not None:
            dx *= to_tile(m, BLOCK_H, BLOCK_B)
        if offsets_ptr is not None:
            # What has ended has gates, too, of no meaning.
            dx = clear(tile * BLOCK_B + tl.arange(0, BLOCK_B)[None, :] >= count, dx)
        hand(slot(ring_ptr, s, slots, BLOCK_B * H) + offs_r, dx, inside_r, s, slots)


@triton.jit(
    do_not_specialize=["layer", "T", "B", "slots"],
    do_not_specialize_on_alignment=[
        "grad_h_n_ptr",
        "grad_c_n_ptr",
        "resets_ptr",
        "grad_h_0_ptr",
        "grad_c_0_ptr",
        "taken_ptr",
    ],
)
def lstm_joint_backward_kernel(
    steps_ptrs, weight_hh_t_ptrs, grad_gates_ptrs, mask_ptrs,
    grad_output_ptr, grad_h_n_ptr, grad_c_n_ptr, offsets_ptr, resets_ptr,
    grad_h_0_ptr, grad_c_0_ptr, grad_bias_ptr,
    rings_ptr, taken_ptr, layer, T, B, slots, H: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences in several layers from `layer` on, last
    step first.

    Shapes: as lstm_backward_kernel has them for one direction. What ends in ptrs is a tuple as
        lstm_joint_forward_kernel has it, from the lowest layer on. grad_output is that of the last
        layer, in float32 if H is odd; weight_hh_t, mask, rings and taken as there, taken from the
        highest layer down.
    Numerics: as lstm_backward_kernel has them. A product with W_ih is as that with W_hh.
    """
    stage = tl.program_id(1)
    # Which of the layers; of a product, the one it is of
    number = (tl.num_programs(1) - stage) // 2
    multiplies = stage % 2 == 1
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    ring = stage_of(rings_ptr, taken_ptr, slots, tile, tiles, BLOCK_H, BLOCK_B)
    grad_gates_ptr = of_layer(grad_gates_ptrs, number)
    dtype: tl.constexpr = grad_gates_ptr.dtype.element_ty
    DOT: tl.constexpr = tl.float16 if dtype == tl.float32 else dtype
    weight_t_ptr = of_layer(weight_hh_t_ptrs, number) + tl.where(multiplies, 4 * H * H, 0)
    w, inverse, infinite = load_matrices(weight_t_ptr, DOT, H, BLOCK_H, BLOCK_B, VEC)
    if multiplies:
        multiply_backward(
            w, inverse, of_layer(mask_ptrs, number - 1), grad_gates_ptr, offsets_ptr, ring,
            tile, T, B, dtype, H, BLOCK_H, BLOCK_B,
        )  # fmt: skip
        return
    layer_backward(
        w, inverse, infinite, of_layer(steps_ptrs, number), None, grad_output_ptr, grad_h_n_ptr,
        grad_c_n_ptr, offsets_ptr, resets_ptr, grad_gates_ptr, grad_h_0_ptr,
        grad_c_0_ptr, grad_bias_ptr, ring,
        tile, tiles, layer + number, T, B, H, 1, BLOCK_H, BLOCK_B, VEC, False,
    )  # fmt: skip


def lstm_joint_backward(
    steps, weight_hh_t, grad_output, grad_gates, masks, grad_h_n, grad_c_n, grad_h_0, grad_c_0,
    grad_bias, taken, layer, T, B, tile, offsets=None, resets=None,
):  # fmt: skip
    """Launch lstm_joint_backward_kernel, whose docstring has the shapes.

    Of steps, weight_hh_t and grad_gates one of each layer, from the lowest on; masks: of each but
    the lowest, or None for none; tile: as forward had it.
    """
    layers, H = len(steps), weight_hh_t[0].shape[-1] // 4
    masks = masks or (layers - 1) * (None,)
    if H % 2 or INTERPRETED:
        # What is not in parts (rings.py) is read as a ring is: words, each a number.
        grad_output = grad_output.float()
    shape = rings_shape(*taken.shape, T, tile["BLOCK_H"], tile["BLOCK_B"])
    launch(
        lstm_joint_backward_kernel, (-(-B // tile["BLOCK_B"]), config.stages(layers), 1),
        *map(tuple, (steps, weight_hh_t, grad_gates, masks)), grad_output,
        grad_h_n, grad_c_n, offsets, resets, grad_h_0, grad_c_0, grad_bias,
        taken.new_empty(shape), taken,
        layer, T, B, shape[2], H, **config.joint_tile(tile), launch_cooperative_grid=True,
    )  # fmt: skip
