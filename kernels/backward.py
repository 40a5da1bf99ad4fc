"""Backward over a whole sequence: one layer, a program for each tile of sequences and direction.

    from t = T down to 1:
        dh += grad_output[t];   dc += k_c dh
        di, df, dg, do = k_i dc, k_f dc, k_g dc, k_o dh          (cell.py)
        dh, dc = W_hh^T (di, df, dg, do), f dc

The kernel writes the gradients of the gates' sums, grad_gates; those of input and weights are
products of them with what forward had, one each over all T * B rows, which are the caller's. Those
of the biases are their sums: a program of two or four sequences makes its own, the caller the
others (config.bias_parts).
As in forward the chain through dh bounds the kernel: W_hh^T stays in registers, and what a step
needs from memory is read a step ahead or more, and made into factors a step ahead.
"""

import triton
import triton.language as tl

from .cell import cell_factors, tanh
from .exchange import (
    again,
    declare_overflow,
    exchange_gates,
    gates_bytes,
    largest_bytes,
    largest_of_all,
    overflowed,
    read_gates,
    read_largest,
    shared_memory,
    to_gate_operands,
    write_gates,
    write_largest,
)
from .launching import launch
from .layout import (
    INTERPRETED,
    add_own,
    choose,
    clear,
    fence,
    from_tile,
    inline,
    load_cuts,
    operand_indices,
    pin,
    product,
    rows_in_order,
    step_rows,
    tile_indices,
    to_operands,
    to_tile,
    to_units,
    unpack,
)
from .memory import load_packed, load_saved
from .operand import (
    REST,
    gates_to_range,
    largest_gate,
    load_exact_weights,
    load_weights,
    power_of_two,
    split,
)
from .rings import (
    ask,
    gates_indices,
    hand_gates,
    in_parts,
    parts_indices,
    read,
    slot,
    start,
    tag,
    tell,
    wait,
)
from .sliced_backward import lstm_sliced_backward_kernel
from .slices import launch_slices

# How far below the end of float16's range the largest gradient of two steps before is brought: what
# has grown by more than this, or twice this, overflows, and is multiplied once more.
ROOM = tl.constexpr(64.0)


@inline
def write_grad_gates(di, df, dg, do, pointers, dtype: tl.constexpr, mask, alive, H: tl.constexpr):
    """The gradients of the gates' sums, in memory order, which is that of mask."""
    tl.store(pointers, from_tile(di, dtype, mask), mask=alive)
    tl.store(pointers + H, from_tile(df, dtype, mask), mask=alive)
    tl.store(pointers + 2 * H, from_tile(dg, dtype, mask), mask=alive)
    tl.store(pointers + 3 * H, from_tile(do, dtype, mask), mask=alive)


@inline
def step_factors(
    s_i, s_f, s_g, s_o, s_c, tanh_c, cut, dtype: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """`cell_factors` of a saved step, whose c has this tanh, then f and the c before it. cut: of
    which sequences that one is not this step's, None for none.
    """
    i = unpack(s_i, BLOCK_H, BLOCK_B, dtype)
    f = unpack(s_f, BLOCK_H, BLOCK_B, dtype)
    g = unpack(s_g, BLOCK_H, BLOCK_B, dtype)
    o = unpack(s_o, BLOCK_H, BLOCK_B, dtype)
    c_prev = unpack(s_c, BLOCK_H, BLOCK_B, dtype)
    before = c_prev
    if cut is not None:
        before = clear(cut, c_prev)
    k_i, k_f, k_g, k_o, k_c = cell_factors(i, f, g, o, before, tanh_c)
    return k_i, k_f, k_g, k_o, k_c, f, c_prev


@inline
def gates_product(w, words, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr):
    """W_hh^T, as `to_matrices` has it, times the gradients of the gates: a tile."""
    if BLOCK_B >= 8:
        # Two chains, each of half of the weights
        w_if, w_go = w
        x_if, x_go = to_gate_operands(words, BLOCK_H, BLOCK_B, DOT)
        return to_units(product(w_if, x_if), BLOCK_B) + to_units(product(w_go, x_go), BLOCK_B)
    else:
        return to_units(product(w, to_gate_operands(words, BLOCK_H, BLOCK_B, DOT)), BLOCK_B)


@inline
def matrix_pointers(
    weight_t_ptr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr
):
    """Of W_hh^T, (H, 4, H), in operand order: pointers, and which of them are there."""
    block, wr, half, group, unit = operand_indices(BLOCK_H // 16, BLOCK_H, VEC, 8, 2, 2)
    if BLOCK_B >= 8:
        # A block for each pair of gates, (i, f) and (g, o)
        pair, row = block, wr * 2 + half
    else:
        # A block for units of each parity, times a pair of gates and the other
        pair, row = half, wr * 2 + block
    return weight_t_ptr + (row * 4 + pair * 2 + group) * H + unit, (row < H) & (unit < H)


@inline
def to_matrices(w, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr):
    """What `matrix_pointers` point to, as operands A: of gates i and f, and of g and o; of fewer
    sequences than eight as one.
    """
    w = to_operands(pin(w), BLOCK_H // 16, BLOCK_H, VEC, 8, 2, 2, 4)
    if BLOCK_B >= 8:
        return w.split()
    else:
        return rows_in_order(w)


@inline
def load_matrices(
    weight_t_ptr, DOT: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """W_hh^T as operands A, the inverse of their scale, and whether it is infinite (operand.py)."""
    pointers, mask = matrix_pointers(weight_t_ptr, H, BLOCK_H, BLOCK_B, VEC)
    w, inverse, infinite = load_weights(pointers, mask, 1.0, DOT)
    return to_matrices(w, BLOCK_H, BLOCK_B, VEC), inverse, infinite


@inline
def read_joint_grad(
    from_ptr, grad_output_ptr, places, begin, count, step, slots, handed, T, B, H: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The grad_output of a step, of one of several layers at once: from a ring, if it is handed it,
    else from where it is given, packed from row `begin` on, of `count` sequences. places: of a
    tile, in a slot and where it is given, None for the same, which are there, of which sequence.
    """
    offs_r, offs_x, inside, sequence = places
    first = (T - 1 - step).to(tl.int64) * B if begin is None else begin
    x_ptr = (grad_output_ptr + first * H).to(from_ptr.dtype, bitcast=True)
    ring_ptr = slot(from_ptr, step, slots, BLOCK_B * H)
    if offs_x is None:
        x_ptr = tl.where(handed, ring_ptr, x_ptr) + offs_r
    else:
        x_ptr = tl.where(handed, ring_ptr + offs_r, x_ptr + offs_x)
    inside = inside & (step < T) & (handed | (sequence < count))
    return read(x_ptr, inside, tag(step, slots))


@inline
def layer_backward(
    w, inverse, infinite, steps_ptr, weight_hh_t_ptr, grad_output_ptr, grad_h_n_ptr,
    grad_c_n_ptr, offsets_ptr, resets_ptr, grad_gates_ptr, grad_h_0_ptr, grad_c_0_ptr,
    grad_bias_ptr, stage,
    tile, tiles, layer, T, B, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What a program of lstm_backward_kernel does, whose docstring has the arguments.

    w, inverse, infinite: W_hh^T as `load_matrices` has it, None where it is to be loaded.
    tile: which, of tiles. stage: None, or of one of several layers at once what `rings.stage_of`
    has: grad_output comes in slots (BLOCK_B, H), the gates' gradients go on in slots of gates.
    """
    dtype: tl.constexpr = grad_gates_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    FAST: tl.constexpr = not FLOAT32
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    # The factors of a step are made a step ahead; of float32 registers are too few for that.
    AHEAD: tl.constexpr = FAST
    RING: tl.constexpr = stage is not None
    if RING:
        from_ptr, ring_ptr, taken_ptr, room_ptr, slots, handed, heard = stage
        asked = handed.to(tl.int32)
    GIVEN: tl.constexpr = grad_output_ptr is not None and not RING
    # float32's scale is that of two steps before, which takes no part in the chain.
    LAGGED: tl.constexpr = FLOAT32 and not EXACT and not INTERPRETED
    # Saved steps of 16 bits are read as words of two numbers.
    WORDS: tl.constexpr = SIZE if FLOAT32 or BLOCK_B == 2 else SIZE // 2
    # Of two sequences single ones, of which the compiler makes one register for two: with rings a
    # step would wait for that, so each is kept in a word of its own.
    APART: tl.constexpr = RING and FAST and BLOCK_B == 2 and not INTERPRETED
    if WORDS < SIZE:
        steps_ptr = steps_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    row = tile * BLOCK_B
    state = (layer.to(tl.int64) * D * B + row) * H
    saved = tile
    summed = layer.to(tl.int64) * D * tiles + tile
    step_z = B.to(tl.int64) * (4 * H)
    last = (T - 1).to(tl.int64)
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
        summed += reverse * tiles
        last -= reverse * last
    grad_gates_ptr += row * (4 * H)
    if offsets_ptr is None:
        grad_gates_ptr += last * step_z
        if D == 2:
            step_z *= 1 - 2 * reverse
    else:
        begin_row, count = step_rows(offsets_ptr, 0, T, 1 - reverse)
        begin_1, count_1 = step_rows(offsets_ptr, 1, T, 1 - reverse)
        begin_2, count_2 = step_rows(offsets_ptr, 2, T, 1 - reverse)

    if EXACT:
        pointers, inside = matrix_pointers(weight_hh_t_ptr, H, BLOCK_H, BLOCK_B, VEC)
        w, w_rest, inverse = load_exact_weights(pointers, inside)
        w_rest = to_matrices(w_rest, BLOCK_H, BLOCK_B, VEC)
        w = to_matrices(w, BLOCK_H, BLOCK_B, VEC)
    elif w is None:
        w, inverse, infinite = load_matrices(weight_hh_t_ptr, DOT, H, BLOCK_H, BLOCK_B, VEC)

    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    mask = (tile * BLOCK_B + sequence < B) & (unit < H)
    offs_b = row + tl.arange(0, BLOCK_B)[None, :]
    offs_h = sequence * (D * H) + unit
    offs_z = sequence * (4 * H) + unit
    offs_state = state + sequence * H + unit
    offs_saved = tl.arange(0, WORDS)
    steps_ptr += (saved * (1 + 5 * T.to(tl.int64)) + 1 + 5 * taken) * WORDS

    dh = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    dc = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    if grad_h_n_ptr is not None:
        grad = tl.load(grad_h_n_ptr + offs_state, mask=mask, other=0.0)
        dh = to_tile(grad, BLOCK_H, BLOCK_B)
    if grad_c_n_ptr is not None:
        grad = tl.load(grad_c_n_ptr + offs_state, mask=mask, other=0.0)
        dc = to_tile(grad, BLOCK_H, BLOCK_B)
    if offsets_ptr is None:
        begin_row, count, begin_1, count_1, begin_2, count_2 = None, B, None, B, None, B
    if RING:
        room = start(stage)
        if in_parts(dtype, H):
            # One number after the other, as of odd H
            unit_x, sequence_x = tile_indices(BLOCK_H, BLOCK_B, 1)
            offs_r, offs_x = parts_indices(unit_x, sequence_x, BLOCK_B, H)
            odd = unit_x % 2 != 0
        else:
            unit_x, sequence_x, odd = unit, sequence, None
            offs_r, offs_x = sequence * H + unit, None
        inside = unit_x < H
        places = offs_r, offs_x, inside, row + sequence_x
        grad_output_ptr += row * H
        step = tl.zeros((), tl.int32)
        x = read_joint_grad(
            from_ptr, grad_output_ptr, places, begin_row, count, step, slots, handed, T, B, H,
            BLOCK_B,
        )  # fmt: skip
        x, room = wait(
            x, from_ptr + offs_r, inside, tag(0, slots), asked, room_ptr, room, 1, odd, dtype
        )
        dh += to_tile(x, BLOCK_H, BLOCK_B)
        x = read_joint_grad(
            from_ptr, grad_output_ptr, places, begin_1, count_1, step + 1, slots, handed, T, B, H,
            BLOCK_B,
        )  # fmt: skip
    if GIVEN:
        step_h = B.to(tl.int64) * (D * H)
        grad_output_ptr += row * (D * H)
        if offsets_ptr is None:
            grad_output_ptr += last * step_h
            if D == 2:
                step_h *= 1 - 2 * reverse
            grad_now = tl.load(grad_output_ptr + offs_h, mask=mask, other=0)
            grad_output_ptr -= step_h
            ahead = mask & (T > 1)
            grad = tl.load(grad_output_ptr + offs_h, mask=ahead, other=0)
        else:
            now = mask & (row + sequence < count)
            grad_now = tl.load(grad_output_ptr + begin_row * (D * H) + offs_h, mask=now, other=0)
            now = mask & (row + sequence < count_1) & (T > 1)
            grad = tl.load(grad_output_ptr + begin_1 * (D * H) + offs_h, mask=now, other=0)
        dh += to_tile(grad_now, BLOCK_H, BLOCK_B)
    if resets_ptr is not None:
        cut = load_cuts(resets_ptr, offsets_ptr, 0, T, B, offs_b, 1 - reverse)
    c = load_packed(steps_ptr + 4 * WORDS + offs_saved, APART)
    c = unpack(c, BLOCK_H, BLOCK_B, dtype)
    s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, WORDS, APART)

    if resets_ptr is None:
        cut = None
    else:
        cut_1 = load_cuts(resets_ptr, offsets_ptr, 1, T, B, offs_b, 1 - reverse)
    tanh_c = tanh(c, FAST, EXACT)
    if AHEAD:
        k_i, k_f, k_g, k_o, k_c, f, c = step_factors(
            s_i, s_f, s_g, s_o, s_c, tanh_c, cut, dtype, BLOCK_H, BLOCK_B
        )
        # After the last step the same again, which nobody uses.
        steps_ptr -= (T > 1).to(tl.int32) * (5 * WORDS)
        s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, WORDS, APART)
    BYTES: tl.constexpr = gates_bytes(BLOCK_H, BLOCK_B)
    TABLE: tl.constexpr = largest_bytes(BLOCK_H, BLOCK_B)
    GATES: tl.constexpr = (2 if EXACT else 1) * BYTES
    buffers = shared_memory(GATES + 2 * TABLE)
    tables = buffers + GATES
    if LAGGED:
        declare_overflow(infinite)
        size = tl.maximum(tl.abs(dh), tl.abs(dc))
        scale, inverse_s = power_of_two(largest_of_all(size, tables + TABLE) * ROOM)
    LANES: tl.constexpr = min(4, BLOCK_B)
    sum_i = tl.zeros((BLOCK_H, LANES), tl.float32)
    sum_f, sum_g, sum_o = sum_i, sum_i, sum_i
    # The order in here is the compiler's hint: what nobody waits for stands below the exchange,
    # under whose product it then takes place.
    for s in range(0, T):
        if not AHEAD:
            k_i, k_f, k_g, k_o, k_c, f, c = step_factors(
                s_i, s_f, s_g, s_o, s_c, tanh_c, cut, dtype, BLOCK_H, BLOCK_B
            )
        dh_after = dh
        dc_after = dc
        dc += k_c * dh
        di = k_i * dc
        df = k_f * dc
        dg = k_g * dc
        do = k_o * dh
        dc = f * dc
        if not AHEAD:
            # Of the next step, already here: registers are too few to load two steps ahead.
            steps_ptr -= (s + 1 < T).to(tl.int32) * (5 * WORDS)
            s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, WORDS, APART)
            if RING:
                y = read_joint_grad(
                    from_ptr, grad_output_ptr, places, begin_2, count_2, s + 2, slots, handed, T, B,
                    H, BLOCK_B,
                )  # fmt: skip
                room = ask(room_ptr, EACH=True)
            if GIVEN:
                ahead = mask & (s + 1 < T)
                if offsets_ptr is None:
                    grad_ptr = grad_output_ptr
                    grad_output_ptr -= step_h
                else:
                    ahead &= row + sequence < count_1
                    grad_ptr = grad_output_ptr + begin_1 * (D * H)
                grad = tl.load(grad_ptr + offs_h, mask=ahead, other=0)
        q_i, q_f, q_g, q_o = di, df, dg, do
        if LAGGED:
            q_i, q_f, q_g, q_o = di * scale, df * scale, dg * scale, do * scale
        elif FLOAT32:
            largest = largest_of_all(largest_gate(di, df, dg, do), tables)
            q_i, q_f, q_g, q_o, inverse_s = gates_to_range(di, df, dg, do, largest)
        if EXACT:
            q_i, e_i = split(q_i)
            q_f, e_f = split(q_f)
            q_g, e_g = split(q_g)
            q_o, e_o = split(q_o)
        buffer = buffers + s % 2 * (BYTES // 2)
        if EXACT:
            write_gates(e_i, e_f, e_g, e_o, buffer + BYTES)
        words = exchange_gates(q_i.to(DOT), q_f.to(DOT), q_g.to(DOT), q_o.to(DOT), buffer)
        alive = mask
        if offsets_ptr is None:
            z_ptr = grad_gates_ptr
            grad_gates_ptr -= step_z
        else:
            alive = mask & (row + sequence < count)
            z_ptr = grad_gates_ptr + begin_row * (4 * H)
        if RING:
            if AHEAD:
                # Here, where float32, which asks above, would take longer (bench/variants.md)
                room = ask(room_ptr, EACH=True)
            slot_ptr = slot(ring_ptr, s, slots, 4 * SIZE)
            hand_gates(slot_ptr + gates_indices(BLOCK_H, BLOCK_B), di, df, dg, do, heard, s, slots)
            # Of others the next stage writes them, which has more time.
            alive = alive & ~heard
        write_grad_gates(di, df, dg, do, z_ptr + offs_z, dtype, mask, alive, H)
        dh = gates_product(w, words, BLOCK_H, BLOCK_B, DOT)
        if LAGGED:
            # The next step's scale is of the step before this one, which all warps have written
            # by now; before the first step, of the states' gradients.
            before = read_largest(dh, tables + (s + 1) % 2 * TABLE)
            new_scale, new_inverse = power_of_two(before * ROOM)
            largest = largest_gate(di, df, dg, do)
            write_largest(largest, tables + s % 2 * TABLE)
        # Of the c before, the next step's, here under the product; fenced, or it moves.
        tanh_c = fence(tanh(c, FAST, EXACT))
        if EXACT:
            rests = read_gates(e_i, e_f, e_g, e_o, buffer + BYTES)
            rest = gates_product(w, rests, BLOCK_H, BLOCK_B, DOT)
            rest += gates_product(w_rest, again(words), BLOCK_H, BLOCK_B, DOT)
            dh += rest / REST
        if LAGGED:  # noqa: SIM102 (known when the kernel is compiled, the other when it runs)
            if overflowed(dh) > 0:
                # In all warps: each has a sum over all units of each sequence, or it is for the
                # weights. After the barrier all have written this step's largest number, and nobody
                # still reads the buffer.
                tl.debug_barrier()
                of_step = read_largest(dh, tables + s % 2 * TABLE)
                q_i, q_f, q_g, q_o, inverse_s = gates_to_range(di, df, dg, do, of_step)
                words = exchange_gates(q_i.to(DOT), q_f.to(DOT), q_g.to(DOT), q_o.to(DOT), buffer)
                dh = gates_product(w, words, BLOCK_H, BLOCK_B, DOT)
        if FLOAT32:
            dh = dh * (inverse * inverse_s)
        if LAGGED:
            scale, inverse_s = new_scale, new_inverse
        if grad_bias_ptr is not None:
            if offsets_ptr is not None:
                done = offs_b >= count
                di, df, dg, do = clear(done, di), clear(done, df), clear(done, dg), clear(done, do)
            sum_i, sum_f = add_own(sum_i, di), add_own(sum_f, df)
            sum_g, sum_o = add_own(sum_g, dg), add_own(sum_o, do)
        if resets_ptr is not None:
            dh, dc = clear(cut, dh), clear(cut, dc)
            cut = cut_1
            cut_1 = load_cuts(resets_ptr, offsets_ptr, s + 2, T, B, offs_b, 1 - reverse)
        if offsets_ptr is not None:
            dh = choose(offs_b < count, dh, dh_after)
            dc = choose(offs_b < count, dc, dc_after)
        if AHEAD:
            k_i, k_f, k_g, k_o, k_c, f, c = step_factors(
                s_i, s_f, s_g, s_o, s_c, tanh_c, cut, dtype, BLOCK_H, BLOCK_B
            )
        if RING:
            x, room = wait(
                x, slot(from_ptr, s + 1, slots, BLOCK_B * H) + offs_r, inside, tag(s + 1, slots),
                asked, room_ptr, room, s + 3 - slots, odd, dtype,
            )  # fmt: skip
            tell(taken_ptr, s + 1)
        if GIVEN:
            # The fence keeps its use here: any earlier it is not there yet.
            dh += to_tile(fence(grad), BLOCK_H, BLOCK_B)
        elif RING:
            dh += to_tile(x, BLOCK_H, BLOCK_B)
        if RING and AHEAD:
            x = read_joint_grad(
                from_ptr, grad_output_ptr, places, begin_2, count_2, s + 2, slots, handed, T, B, H,
                BLOCK_B,
            )  # fmt: skip
        elif RING:
            x = y
        if GIVEN and AHEAD:
            ahead = mask & (s + 2 < T)
            if offsets_ptr is None:
                grad_output_ptr -= step_h
                grad_ptr = grad_output_ptr
            else:
                ahead &= row + sequence < count_2
                grad_ptr = grad_output_ptr + begin_2 * (D * H)
            grad = tl.load(grad_ptr + offs_h, mask=ahead, other=0)
        if offsets_ptr is not None:
            begin_row, count, begin_1, count_1 = begin_1, count_1, begin_2, count_2
            begin_2, count_2 = step_rows(offsets_ptr, s + 3, T, 1 - reverse)
        if AHEAD:
            steps_ptr -= (s + 2 < T).to(tl.int32) * (5 * WORDS)
            s_i, s_f, s_g, s_o, s_c = load_saved(steps_ptr, offs_saved, WORDS, APART)
    if grad_h_0_ptr is not None:
        tl.store(grad_h_0_ptr + offs_state, from_tile(dh, dtype, mask), mask=mask)
    if grad_c_0_ptr is not None:
        tl.store(grad_c_0_ptr + offs_state, from_tile(dc, dtype, mask), mask=mask)
    if grad_bias_ptr is not None:
        unit, lane = tile_indices(BLOCK_H, LANES, H)
        grad_bias_ptr += (summed * LANES + lane) * (4 * H) + unit
        inside = unit < H
        write_grad_gates(sum_i, sum_f, sum_g, sum_o, grad_bias_ptr, tl.float32, inside, inside, H)


@triton.jit(
    do_not_specialize=["layer", "T", "B"],
    do_not_specialize_on_alignment=[
        "grad_h_n_ptr",
        "grad_c_n_ptr",
        "resets_ptr",
        "grad_h_0_ptr",
        "grad_c_0_ptr",
    ],
)
def lstm_backward_kernel(
    steps_ptr, weight_hh_t_ptr, grad_output_ptr, grad_h_n_ptr, grad_c_n_ptr, offsets_ptr,
    resets_ptr,
    grad_gates_ptr, grad_h_0_ptr, grad_c_0_ptr, grad_bias_ptr,
    layer, T, B, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences in one of D directions, last step first.

    Shapes: steps as lstm_forward_kernel wrote them; weight_hh_t (D, H, 4, H), W_hh
        transposed; grad_output (T, B, D, H); grad_h_n, grad_c_n, grad_h_0, grad_c_0 (layers D, B,
        H), of which number `layer` is meant; grad_gates (D, T, B, 4, H). All contiguous, in one
        dtype. And, float32, grad_bias (layers, D, tiles, config.bias_parts(...), 4, H), to be
        summed over all tiles and parts.
        grad_output, grad_h_n and grad_c_n may be None, for zeros; grad_h_0, grad_c_0 and grad_bias
        where they are not wanted; resets as forward has them.
        Packed: offsets as forward has them, else None, grad_output (rows, D, H), grad_gates (D,
        rows, 4, H).
    Numerics: dh, dc and the factors are float32; the gates' gradients are rounded to the operand
        dtype (operand.py) before W_hh^T reads them, if EXACT to float32's precision, and to their
        own dtype where they are written. grad_bias is of what they were before.
    """
    layer_backward(
        None, None, 0, steps_ptr, weight_hh_t_ptr, grad_output_ptr, grad_h_n_ptr,
        grad_c_n_ptr, offsets_ptr, resets_ptr, grad_gates_ptr, grad_h_0_ptr, grad_c_0_ptr,
        grad_bias_ptr, None,
        tl.program_id(0).to(tl.int64), tl.num_programs(0), layer, T, B, H, D,
        BLOCK_H, BLOCK_B, VEC, EXACT,
    )  # fmt: skip


def lstm_backward(
    steps, weight_hh_t, grad_output, grad_h_n, grad_c_n, grad_gates, grad_h_0, grad_c_0, grad_bias,
    layer, D, T, B, tile, offsets=None, resets=None, meeting=None,
):  # fmt: skip
    """Launch lstm_backward_kernel, whose docstring has the shapes. tile: as forward had it;
    meeting: of slices, else None. Of slices grad_bias is not looked at.
    """
    H = weight_hh_t.shape[-1] // 4
    if meeting is not None:
        arguments = (
            steps, weight_hh_t, grad_output, grad_h_n, grad_c_n, offsets, resets, grad_gates,
            grad_c_0,
        )  # fmt: skip
        launch_slices(lstm_sliced_backward_kernel, arguments, layer, T, B, H, D, tile, meeting)
        return
    launch(
        lstm_backward_kernel, (-(-B // tile["BLOCK_B"]), D, 1),
        steps, weight_hh_t, grad_output, grad_h_n, grad_c_n, offsets, resets,
        grad_gates, grad_h_0, grad_c_0, grad_bias, layer, T, B, H, D, **tile,
    )  # fmt: skip
