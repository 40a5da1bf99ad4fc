"""Backward over a whole sequence by slices: programs that share the units of a tile (slices.py).

The equations are backward.py's. A step takes of all slices their parts of dh of its own units, and
writes for each of them what this slice's gradients have of W_hh^T times the gates' gradients.
"""

import triton
import triton.language as tl

from .cell import cell_factors, tanh
from .exchange import shared_memory
from .layout import (
    choose,
    clear,
    load_cuts,
    operand_indices,
    pin,
    product,
    rows_in_order,
    to_operands,
)
from .memory import load_saved
from .operand import gates_to_range, largest_gate, load_weights
from .slices import (
    from_flat,
    read_inverse,
    slice_bytes,
    slice_indices,
    slice_operand,
    slice_rows,
    to_flat,
)
from .words import part_offsets, sum_parts, sums_bytes, write_words


@triton.jit(
    do_not_specialize=["layer", "T", "B", "begin", "end", "first_tile", "tiles"],
    do_not_specialize_on_alignment=["grad_h_n_ptr", "grad_c_n_ptr", "resets_ptr", "grad_c_0_ptr"],
)
def lstm_sliced_backward_kernel(
    steps_ptr, weight_hh_t_ptr, grad_output_ptr, grad_h_n_ptr, grad_c_n_ptr, offsets_ptr,
    resets_ptr, grad_gates_ptr, grad_c_0_ptr, exchange_ptr, states_ptr,
    layer, T, B, begin, end, first_tile, tiles, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr, PARTS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """The whole sequence of BLOCK_H units of a tile of BLOCK_B sequences, last step first.

    Shapes: as lstm_backward_kernel has them, without grad_h_0; steps as lstm_sliced_forward_kernel
        wrote them, and launches as it has them; exchange (2, D, tiles, BLOCK_K / BLOCK_H, S,
        BLOCK_H * BLOCK_B), states of dh and dc.
    Numerics: as lstm_backward_kernel has them.
    """
    dtype: tl.constexpr = grad_gates_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    FAST: tl.constexpr = not FLOAT32
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    S: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    OWNERS: tl.constexpr = BLOCK_K // BLOCK_H
    BLOCKS: tl.constexpr = BLOCK_K // (16 * PARTS)
    tile = tl.program_id(0).to(tl.int64) + first_tile
    row = tile * BLOCK_B
    live = tl.minimum(B - row, BLOCK_B).to(tl.int32)
    state = (layer.to(tl.int64) * D * B + row) * H
    saved = tile
    step_z = B.to(tl.int64) * (4 * H)
    step_h = B.to(tl.int64) * (D * H)
    last = (T - 1 - begin).to(tl.int64)
    taken = last
    reverse = 0
    if D == 2:
        # The second direction has the second of everything, and took the first step last.
        reverse = tl.program_id(1).to(tl.int64)
        weight_hh_t_ptr += reverse * (4 * H * H)
        if offsets_ptr is None:
            grad_gates_ptr += reverse * T * step_z
        else:
            grad_gates_ptr += reverse * tl.load(offsets_ptr + T) * (4 * H)
        if grad_output_ptr is not None:
            grad_output_ptr += reverse * H
        state += reverse * B * H
        saved += reverse * tiles
        last += reverse * (begin - last)
    grad_gates_ptr += row * (4 * H)
    if offsets_ptr is None:
        grad_gates_ptr += last * step_z
        if D == 2:
            step_z *= 1 - 2 * reverse
    else:
        begin_row, count = slice_rows(offsets_ptr, begin, T, 1 - reverse)
        begin_1, count_1 = slice_rows(offsets_ptr, begin + 1, T, 1 - reverse)
        _, count_before = slice_rows(offsets_ptr, tl.maximum(begin - 1, 0), T, 1 - reverse)

    # Blocks of W_hh^T are of different rows, each with all gates.
    block, wr, half, group, unit = operand_indices(PARTS, BLOCK_H, VEC, 4, 4, BLOCKS)
    row_unit = (wr // 8 * BLOCKS + block) * 16 + half * 8 + wr % 8
    unit += tl.program_id(2) * BLOCK_H
    weights = weight_hh_t_ptr + (row_unit * 4 + group) * H + unit
    w, inverse, _ = load_weights(weights, (row_unit < H) & (unit < H), 1.0, DOT)
    w = rows_in_order(to_operands(pin(w), PARTS, BLOCK_H, VEC, 4, 4, BLOCKS, 4))

    unit, sequence = slice_indices(BLOCK_H, BLOCK_B)
    exchanged = tiles.to(tl.int64) * (D * OWNERS * S * SIZE)
    exchange_ptr += saved * (OWNERS * S * SIZE)
    parts = part_offsets(PARTS, BLOCKS, BLOCK_B, S)
    parts += tl.program_id(2) * SIZE
    own_ptr = exchange_ptr + tl.program_id(2) * (S * SIZE)
    saved = saved * S + tl.program_id(2)
    offs_b = row.to(tl.int32) + sequence
    mask = (offs_b < B) & (unit < H)
    offs_h = sequence * (D * H) + unit
    offs_z = sequence * (4 * H) + unit
    offs_state = state + sequence * H + unit
    offs_saved = tl.arange(0, SIZE)
    steps_ptr += (saved * (1 + 5 * T.to(tl.int64)) + 1 + 5 * taken) * SIZE

    dh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    dc = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if grad_h_n_ptr is not None:
        dh = tl.load(grad_h_n_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
    if grad_c_n_ptr is not None:
        dc = tl.load(grad_c_n_ptr + offs_state, mask=mask, other=0.0).to(tl.float32)
    if states_ptr is not None:
        states_ptr += saved * SIZE
        dc_ptr = states_ptr + tiles.to(tl.int64) * (D * S * SIZE)
        if begin > 0:
            dh = from_flat(tl.load(states_ptr + offs_saved), BLOCK_H, BLOCK_B)
            dc = from_flat(tl.load(dc_ptr + offs_saved), BLOCK_H, BLOCK_B)
    if grad_output_ptr is not None:
        grad_output_ptr += row * (D * H)
        if offsets_ptr is None:
            grad_output_ptr += last * step_h
            if D == 2:
                step_h *= 1 - 2 * reverse
            grad = tl.load(grad_output_ptr + offs_h, mask=mask, other=0.0)
            grad_output_ptr -= step_h
        else:
            now = mask & (offs_b < count)
            grad = tl.load(
                grad_output_ptr + begin_row.to(tl.int64) * (D * H) + offs_h, mask=now, other=0.0
            )
    if resets_ptr is not None:
        cut = load_cuts(resets_ptr, offsets_ptr, begin, T, B, offs_b, 1 - reverse)
        before = tl.maximum(begin - 1, 0)
        cut_before = load_cuts(resets_ptr, offsets_ptr, before, T, B, offs_b, 1 - reverse)
    c = from_flat(tl.load(steps_ptr + 4 * SIZE + offs_saved), BLOCK_H, BLOCK_B)
    s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, SIZE)

    BYTES: tl.constexpr = slice_bytes(BLOCK_B)
    buffers = shared_memory(BYTES + sums_bytes(S, SIZE, PARTS))
    for s in range(begin, end):
        i, f = from_flat(s_i, BLOCK_H, BLOCK_B), from_flat(s_f, BLOCK_H, BLOCK_B)
        g, o = from_flat(s_g, BLOCK_H, BLOCK_B), from_flat(s_o, BLOCK_H, BLOCK_B)
        c_prev = from_flat(s_c, BLOCK_H, BLOCK_B)
        c_before = c_prev
        if resets_ptr is not None:
            c_before = clear(cut, c_prev)
            cut_ahead = load_cuts(resets_ptr, offsets_ptr, s + 1, T, B, offs_b, 1 - reverse)
        k_i, k_f, k_g, k_o, k_c = cell_factors(i, f, g, o, c_before, tanh(c, FAST, False))
        c = c_prev
        # For the next step; after the last, the same again, which nobody uses.
        more = (s + 1 < T).to(tl.int32)
        steps_ptr -= more * (5 * SIZE)
        s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, SIZE)

        if s > 0:
            dh_all = sum_parts(
                own_ptr + s % 2 * exchanged, live, s, buffers + BYTES, BLOCK_H, BLOCK_B, S, PARTS,
                states_ptr is None,
            )  # fmt: skip
            if resets_ptr is not None:
                dh_all = clear(cut_before, dh_all)
            dh = dh_all if offsets_ptr is None else choose(offs_b < count_before, dh_all, dh)
        if grad_output_ptr is not None:
            dh += grad.to(tl.float32)
        dc_after = dc
        dc += k_c * dh
        di = k_i * dc
        df = k_f * dc
        dg = k_g * dc
        do = k_o * dh
        dc = f * dc
        if resets_ptr is not None:
            dc = clear(cut, dc)
            cut_before = cut
            cut = cut_ahead
        if offsets_ptr is not None:
            dc = choose(offs_b < count, dc, dc_after)
        q_i, q_f, q_g, q_o, inverse_s = di, df, dg, do, None
        if FLOAT32:
            largest = tl.max(largest_gate(di, df, dg, do), axis=1, keep_dims=True)
            largest = tl.broadcast_to(largest, (BLOCK_B, BLOCK_H))
            q_i, q_f, q_g, q_o, inverse_s = gates_to_range(di, df, dg, do, largest)
        x = slice_operand(
            q_i.to(DOT), q_f.to(DOT), q_g.to(DOT), q_o.to(DOT), inverse_s, buffers, s, PARTS
        )
        dh_parts = product(w, x)
        if FLOAT32:
            dh_parts = dh_parts * (inverse * read_inverse(inverse_s, buffers, s))
        write_words(exchange_ptr + (s + 1) % 2 * exchanged + parts, dh_parts, live, s)
        z_ptr = grad_gates_ptr
        alive = mask
        if offsets_ptr is None:
            grad_gates_ptr -= step_z
        else:
            alive = mask & (offs_b < count)
            z_ptr += begin_row.to(tl.int64) * (4 * H)
        if grad_output_ptr is not None:
            ahead = mask & (s + 1 < T)
            if offsets_ptr is None:
                grad_ptr = grad_output_ptr
                grad_output_ptr -= step_h
            else:
                ahead &= offs_b < count_1
                grad_ptr = grad_output_ptr + begin_1.to(tl.int64) * (D * H)
            grad = tl.load(grad_ptr + offs_h, mask=ahead, other=0.0)
        if offsets_ptr is not None:
            count_before = count
            begin_row, count = begin_1, count_1
            begin_1, count_1 = slice_rows(offsets_ptr, s + 2, T, 1 - reverse)
        pointers = z_ptr + offs_z
        tl.store(pointers, di.to(dtype), mask=alive)
        tl.store(pointers + H, df.to(dtype), mask=alive)
        tl.store(pointers + 2 * H, dg.to(dtype), mask=alive)
        tl.store(pointers + 3 * H, do.to(dtype), mask=alive)
    if states_ptr is not None:
        tl.store(states_ptr + offs_saved, to_flat(dh, tl.float32))
        tl.store(dc_ptr + offs_saved, to_flat(dc, tl.float32))
    if grad_c_0_ptr is not None:
        tl.store(grad_c_0_ptr + offs_state, dc.to(dtype), mask=mask)
