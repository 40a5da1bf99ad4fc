"""Forward of several layers at once, each some steps behind the one below (rings.py).

For each tile of sequences there is a program for every layer, that of forward.py, and one between
any two. That one multiplies each h of the lower layer with W_ih of the upper, which it holds in
registers as the others hold W_hh, and hands on what is gates_ih of the upper.
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
from .layout import inline, product, step_rows, tile_indices, to_gates, to_tile
from .operand import to_range
from .rings import (
    ask,
    hand,
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
def load_mask(mask_ptr, offs, mask, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """What a step's input is multiplied with: a tile."""
    return to_tile(tl.load(mask_ptr + offs, mask=mask, other=0.0), BLOCK_H, BLOCK_B)


@inline
def multiply_forward(
    w, inverse, mask_ptr, offsets_ptr, stage, tile, T, B,
    dtype: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """gates_ih = W_ih input of a tile's sequences, step by step, as the input comes.

    stage: as `rings.stage_of` has it: the input comes in slots (BLOCK_B, H), gates_ih goes on in
    slots (BLOCK_B, 4, H); the rest as the kernel has it; w, inverse: W_ih as `load_matrix` has it.
    """
    from_ptr, ring_ptr, taken_ptr, room_ptr, slots, handed, _ = stage
    handed = handed.to(tl.int32)
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    row = tile * BLOCK_B + sequence
    inside, mask = unit < H, (row < B) & (unit < H)
    offs, offs_m = sequence * H + unit, row * H + unit
    offs_z, inside_z = slot_indices(BLOCK_H, BLOCK_B, H, 4)
    BYTES: tl.constexpr = units_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + largest_bytes(BLOCK_H, BLOCK_B))
    room = start(stage)
    x = read(from_ptr + offs, inside, tag(0, slots))
    if mask_ptr is not None:
        begin, count = 0 * B.to(tl.int64), B
        if offsets_ptr is not None:
            begin, count = step_rows(offsets_ptr, 0, T, 0)
        m = load_mask(mask_ptr, begin * H + offs_m, mask & (row < count), BLOCK_H, BLOCK_B)
    for t in range(T):
        x, room = wait(
            x, slot(from_ptr, t, slots, BLOCK_B * H) + offs, inside, tag(t, slots), handed,
            room_ptr, room, t + 2 - slots,
        )  # fmt: skip
        room = ask(room_ptr)
        h = to_tile(x, BLOCK_H, BLOCK_B)
        n = tl.minimum(t + 1, T - 1)
        if mask_ptr is not None:
            h *= m
            if offsets_ptr is None:
                begin = n.to(tl.int64) * B
            else:
                begin, count = step_rows(offsets_ptr, n, T, 0)
            m = load_mask(mask_ptr, begin * H + offs_m, mask & (row < count), BLOCK_H, BLOCK_B)
        scale = inverse
        if FLOAT32 and mask_ptr is not None:
            # Dropout makes numbers larger than 1, by as much as you like.
            h, inverse_h = to_range(h, buffers + BYTES)
            scale = inverse * inverse_h
        words = exchange_units(h.to(DOT), buffers, t)
        tell(taken_ptr, t + 1)
        x = read(slot(from_ptr, n, slots, BLOCK_B * H) + offs, inside, tag(n, slots))
        d_i, d_f, d_g, d_o = to_gates(product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT)), BLOCK_B)
        if FLOAT32:
            d_i, d_f, d_g, d_o = d_i * scale, d_f * scale, d_g * scale, d_o * scale
        z_ptr = slot(ring_ptr, t, slots, BLOCK_B * 4 * H) + offs_z
        hand(z_ptr, d_i, inside_z, t, slots)
        hand(z_ptr + H, d_f, inside_z, t, slots)
        hand(z_ptr + 2 * H, d_g, inside_z, t, slots)
        hand(z_ptr + 3 * H, d_o, inside_z, t, slots)


@triton.jit(
    do_not_specialize=["layer", "T", "B", "slots"],
    do_not_specialize_on_alignment=[
        "bias_ih_ptrs",
        "bias_hh_ptrs",
        "h_0_ptr",
        "c_0_ptr",
        "resets_ptr",
        "h_n_ptr",
        "c_n_ptr",
        "taken_ptr",
    ],
)
def lstm_joint_forward_kernel(
    weight_hh_ptrs, output_ptrs, steps_ptrs, weight_hh_t_ptrs, bias_ih_ptrs, bias_hh_ptrs,
    weight_ih_ptrs, mask_ptrs,
    gates_ih_ptr, h_0_ptr, c_0_ptr, offsets_ptr, resets_ptr, h_n_ptr, c_n_ptr, rings_ptr, taken_ptr,
    layer, T, B, slots, H: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences, in several layers from `layer` on.

    Shapes: as lstm_forward_kernel has them for one direction. What ends in ptrs is a tuple, one of
        each layer. gates_ih is that of the first, in float32. Of all others: weight_ih (4, H, H);
        mask (T, B, H), packed (rows, H), what multiplies the input, Nones for ones; and room in
        weight_hh_t, (2, H, 4, H), for W_ih transposed, too. rings of `rings_shape`, with so many
        slots, a power of two; taken (stages, tiles), int32, first zeros: of first layer,
        product, second layer, product and so on, how many steps it has taken from the ring of the
        stage before it, and one.
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
    ring = stage_of(rings_ptr, taken_ptr, slots, tile, tiles, BLOCK_H, BLOCK_B)
    dtype: tl.constexpr = output_ptrs[0].dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    half = None if FLOAT32 else tl.where(multiplies, 1.0, 0.5)
    w, inverse = load_matrix(weight_ptr, half, DOT, H, BLOCK_H, BLOCK_B, VEC)
    if multiplies:
        multiply_forward(
            w, inverse, of_layer(mask_ptrs, number - 1), offsets_ptr, ring, tile, T, B,
            dtype, H, BLOCK_H, BLOCK_B,
        )  # fmt: skip
        return
    layer_forward(
        w, inverse, gates_ih_ptr, of_layer(bias_ih_ptrs, number), of_layer(bias_hh_ptrs, number),
        None, h_0_ptr, c_0_ptr, offsets_ptr, resets_ptr, of_layer(output_ptrs, number), h_n_ptr,
        c_n_ptr, of_layer(steps_ptrs, number), ring, tile, tiles, layer + number, T, B, H, 1,
        BLOCK_H, BLOCK_B, VEC, False,
    )  # fmt: skip


def lstm_joint_forward(
    layers, gates_ih, weight_ih, masks, h_0, c_0, h_n, c_n, taken, layer, T, B, tile,
    offsets=None, resets=None,
):  # fmt: skip
    """Launch lstm_joint_forward_kernel, whose docstring has the shapes.

    layers: of each, from the lowest on, bias_ih, bias_hh, weight_hh, output, steps and weight_hh_t;
    gates_ih: of the lowest; weight_ih, masks: of each but the lowest, masks None for none; tile:
    config.tile(...).
    """
    bias_ih, bias_hh, *of_layers = zip(*layers, strict=True)
    H, tiles = c_n.shape[-1], -(-B // tile["BLOCK_B"])
    masks = masks or (len(layers) - 1) * (None,)
    shape = rings_shape(*taken.shape, T, tile["BLOCK_H"], tile["BLOCK_B"])
    extra = 0 if layers[0][-1] is None else config.TRANSPOSERS
    launch(
        lstm_joint_forward_kernel, (tiles + extra, config.stages(len(layers)), 1),
        *of_layers, bias_ih, bias_hh, tuple(weight_ih), tuple(masks),
        gates_ih, h_0, c_0, offsets, resets, h_n, c_n, taken.new_empty(shape), taken,
        layer, T, B, shape[2], H, **config.joint_tile(tile), launch_cooperative_grid=True,
    )  # fmt: skip
