"""Forward over a whole sequence by slices: programs that share the units of a tile (slices.py).

The equations are forward.py's. A step takes h of all slices from memory, multiplies it with this
slice's rows of W_hh, and writes h of this slice's units.
"""

import triton
import triton.language as tl

from .cell import take_step
from .layout import (
    clear,
    inline,
    load_cuts,
    operand_indices,
    pin,
    rows_in_order,
    to_operands,
)
from .memory import load_biases, load_gates, save_step
from .operand import LEAST, load_weights
from .slices import from_flat, slice_indices, slice_product, slice_rows, to_flat
from .words import h_offsets, load_h, write_h


@inline
def to_sums(i, f, g, o, b_i, b_f, b_g, b_o, FAST: tl.constexpr):
    """What `load_gates` gave, in float32, if FAST half of it for i, f and o, as the cell has them.
    Plus biases, if there are any, of which half already.
    """
    half = 0.5 if FAST else 1.0
    i, f = half * i.to(tl.float32), half * f.to(tl.float32)
    g, o = g.to(tl.float32), half * o.to(tl.float32)
    if b_i is not None:
        i, f, g, o = i + b_i, f + b_f, g + b_g, o + b_o
    return i, f, g, o


@triton.jit(
    do_not_specialize=["layer", "T", "B", "begin", "end", "first_tile", "tiles"],
    do_not_specialize_on_alignment=[
        "bias_ih_ptr",
        "bias_hh_ptr",
        "c_0_ptr",
        "resets_ptr",
        "h_n_ptr",
        "c_n_ptr",
    ],
)
def lstm_sliced_forward_kernel(
    gates_ih_ptr, bias_ih_ptr, bias_hh_ptr, weight_hh_ptr, c_0_ptr, offsets_ptr, resets_ptr,
    output_ptr, h_n_ptr, c_n_ptr, steps_ptr, exchange_ptr, states_ptr,
    layer, T, B, begin, end, first_tile, tiles, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr, PARTS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of BLOCK_H units of a tile of BLOCK_B sequences, in one of D directions.

    Shapes: as lstm_forward_kernel has them, h_0 None, its product in gates_ih; steps (D, tiles, S,
        1 + 5 T, BLOCK_H * BLOCK_B), of each of S slices; exchange (2, D, tiles, BLOCK_K * BLOCK_B),
        of 16 bits each, first zeros, in float32's memory: BLOCK_K, a power of two, is at least H,
        PARTS warps share its columns.
        Of tiles in all, a launch has those from first_tile on, and all steps, states None; or of
        the steps only that from begin to end, with states (2, D, tiles, S, BLOCK_H * BLOCK_B),
        float32, to carry h and c.
    Numerics: as lstm_forward_kernel has them.
    """
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    FAST: tl.constexpr = not FLOAT32
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    S: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    tile = tl.program_id(0).to(tl.int64) + first_tile
    row = tile * BLOCK_B
    live = tl.minimum(B - row, BLOCK_B).to(tl.int32)
    state = (layer.to(tl.int64) * D * B + row) * H
    saved = tile
    step_z = B.to(tl.int64) * (4 * H)
    step_h = B.to(tl.int64) * (D * H)
    gates_ih_ptr += row * (4 * H)
    output_ptr += row * (D * H)
    reverse = 0
    if D == 2:
        # The second direction has the second of everything, and takes the steps from the last.
        reverse = tl.program_id(1).to(tl.int64)
        weight_hh_ptr += reverse * (4 * H * H)
        if bias_ih_ptr is not None:
            bias_ih_ptr += reverse * (4 * H)
            bias_hh_ptr += reverse * (4 * H)
        output_ptr += reverse * H
        if offsets_ptr is None:
            gates_ih_ptr += reverse * (2 * T - 1) * step_z
            output_ptr += reverse * (T - 1) * step_h
        else:
            gates_ih_ptr += reverse * tl.load(offsets_ptr + T) * (4 * H)
        state += reverse * B * H
        saved += reverse * tiles
        step_z *= 1 - 2 * reverse
        step_h *= 1 - 2 * reverse

    # Block 2 q + pair of W_hh: units of parity q, gates (i, f) or (g, o)
    block, wr, half, _, k = operand_indices(PARTS, BLOCK_K // PARTS, VEC, 8, 1, 4, PARTS)
    gate = block % 2 * 2 + half
    unit = wr % 8 * 2 + block // 2 + tl.program_id(2) * BLOCK_H
    factor = tl.where(gate == 2, 1.0, 0.5) if FAST else 1.0
    weights = weight_hh_ptr + (gate * H + unit) * H + k
    w, inverse, _ = load_weights(weights, (unit < H) & (k < H), factor, DOT, LEAST)
    # h from memory is put together by joins, which make kWidth 4 (Triton 3.6, 3.8).
    w = rows_in_order(to_operands(pin(w), PARTS, BLOCK_K // PARTS, VEC, 8, 1, 4, 4))

    unit, sequence = slice_indices(BLOCK_H, BLOCK_B)
    exchange_ptr = exchange_ptr.to(tl.pointer_type(tl.int16), bitcast=True)
    exchanged = tiles.to(tl.int64) * (D * BLOCK_K * BLOCK_B)
    exchange_ptr += saved * (BLOCK_K * BLOCK_B)
    offs_x = h_offsets(unit, sequence, BLOCK_B)
    saved = saved * S + tl.program_id(2)
    if offsets_ptr is None:
        gates_ih_ptr += begin * step_z
        output_ptr += begin * step_h
    offs_b = row.to(tl.int32) + sequence
    mask = (offs_b < B) & (unit < H)
    offs_z = sequence * (4 * H) + unit
    offs_h = sequence * (D * H) + unit
    offs_state = state + sequence * H + unit
    b_i, b_f, b_g, b_o = None, None, None, None
    if bias_ih_ptr is not None:
        b_i, b_f, b_g, b_o = load_biases(bias_ih_ptr, bias_hh_ptr, unit, H, FAST)
    h = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    c = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if c_0_ptr is not None:
        c = tl.load(c_0_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
    if states_ptr is not None:
        states_ptr += saved * SIZE
        c_ptr = states_ptr + tiles.to(tl.int64) * (D * S * SIZE)
        if begin > 0:
            h = from_flat(tl.load(states_ptr + tl.arange(0, SIZE)), BLOCK_H, BLOCK_B)
            c = from_flat(tl.load(c_ptr + tl.arange(0, SIZE)), BLOCK_H, BLOCK_B)
    if steps_ptr is not None:
        steps_ptr += saved * (1 + 5 * T.to(tl.int64)) * SIZE
        # Later the launch before has written it, and may have passed on zeros instead.
        if begin == 0:
            tl.store(steps_ptr + tl.arange(0, SIZE), to_flat(c, dtype))
        steps_ptr += (1 + 5 * begin.to(tl.int64)) * SIZE
    if offsets_ptr is None:
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask, H)
    else:
        begin_row, count = slice_rows(offsets_ptr, begin, T, reverse)
        begin_1, count_1 = slice_rows(offsets_ptr, begin + 1, T, reverse)
        now = mask & (offs_b < count)
        x_i, x_f, x_g, x_o = load_gates(
            gates_ih_ptr + begin_row.to(tl.int64) * (4 * H) + offs_z, now, H
        )
    for t in range(begin, end):
        z_i, z_f, z_g, z_o = to_sums(x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, FAST)
        if resets_ptr is not None:
            cut = load_cuts(resets_ptr, offsets_ptr, t, T, B, offs_b, reverse)
        if offsets_ptr is None:
            gates_ih_ptr += step_z
            x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask & (t + 1 < end), H)
            out_ptr = output_ptr
            alive = mask
            active = None
        else:
            active = offs_b < count
            alive = mask & (offs_b < count)
            out_ptr = output_ptr + begin_row.to(tl.int64) * (D * H)
            ahead = mask & (offs_b < count_1) & (t + 1 < end)
            x_i, x_f, x_g, x_o = load_gates(
                gates_ih_ptr + begin_1.to(tl.int64) * (4 * H) + offs_z, ahead, H
            )
            begin_row, count = begin_1, count_1
            begin_1, count_1 = slice_rows(offsets_ptr, t + 2, T, reverse)
        h_all = load_h(
            exchange_ptr + t % 2 * exchanged, live, t, S, BLOCK_K, PARTS, BLOCK_B, DOT,
            states_ptr is None,
        )  # fmt: skip
        d_i, d_f, d_g, d_o = slice_product(w, h_all)
        if FLOAT32:
            d_i, d_f, d_g, d_o = d_i * inverse, d_f * inverse, d_g * inverse, d_o * inverse
        z_i, z_f, z_g, z_o = z_i + d_i, z_f + d_f, z_g + d_g, z_o + d_o
        i, f, g, o, h, c = take_step(z_i, z_f, z_g, z_o, h, c, active, FAST, False)
        p_h = h.to(dtype)
        if steps_ptr is not None:
            p_i, p_f = to_flat(i, dtype), to_flat(f, dtype)
            p_g, p_o = to_flat(g, dtype), to_flat(o, dtype)
            p_c = to_flat(c, dtype)
        if resets_ptr is not None:
            h, c = clear(cut, h), clear(cut, c)
        write_h(exchange_ptr + (t + 1) % 2 * exchanged + offs_x, h.to(DOT), t)
        tl.store(out_ptr + offs_h, p_h, mask=alive)
        if offsets_ptr is None:
            output_ptr += step_h
        if steps_ptr is not None:
            save_step(p_i, p_f, p_g, p_o, p_c, steps_ptr, SIZE)
            steps_ptr += 5 * SIZE
    tl.store(h_n_ptr + offs_state, h.to(dtype), mask=mask)
    tl.store(c_n_ptr + offs_state, c.to(dtype), mask=mask)
    if states_ptr is not None:
        tl.store(states_ptr + tl.arange(0, SIZE), to_flat(h, tl.float32))
        tl.store(c_ptr + tl.arange(0, SIZE), to_flat(c, tl.float32))
