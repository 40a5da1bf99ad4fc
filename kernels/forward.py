"""Forward over a whole sequence: one layer, a program for each tile of sequences and direction.

    z_t = gates_ih[t] + b_ih + b_hh + W_hh h_{t-1};   h_t, c_t = cell(z_t, c_{t-1})

gates_ih, the product of the input, is known for all steps before the kernel starts. What is left is
a chain: the product with W_hh, five activations and one exchange of h among the warps at every
step, so the latency of one step bounds the kernel, not arithmetic or bandwidth. Everything else is
kept off the chain: W_hh stays in registers and c with its cell for all T steps, gates_ih is read
and z summed ahead, and what is written is written under the product of the step after. Where W_hh
is too large for one program, several share its units and exchange h through memory (slices.py).
"""

import triton
import triton.language as tl

from . import config
from .cell import take_step
from .exchange import (
    again,
    exchange_units,
    largest_bytes,
    own_units,
    read_units,
    shared_memory,
    to_operand,
    units_bytes,
    write_units,
)
from .launching import launch
from .layout import (
    clear,
    fence,
    from_gates,
    from_tile,
    halves,
    hide,
    inline,
    load_cuts,
    operand_indices,
    pack,
    pair_indices,
    pin,
    product,
    rows_in_order,
    step_rows,
    tile_indices,
    to_gates,
    to_operands,
    to_tile,
)
from .memory import load_biases, load_gates, loaded_tile, save_step
from .operand import LEAST, REST, load_exact_weights, load_weights, split, to_range
from .rings import (
    ask,
    hand,
    read_four,
    slot,
    slot_indices,
    start,
    tag,
    tell,
    wait_four,
)
from .sliced_forward import lstm_sliced_forward_kernel
from .slices import launch_slices

TRANSPOSERS = tl.constexpr(config.TRANSPOSERS)


@inline
def gate_tiles(
    i, f, g, o, b_i, b_f, b_g, b_o, scale, dtype: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """What `load_gates` gave, as tiles, times scale, if FAST half of that for i, f and o, as the
    cell has them. Plus biases, if there are any, which have the same factors already.
    """
    half = 0.5 * scale if FAST else scale
    i = half * loaded_tile(i, dtype, BLOCK_H, BLOCK_B)
    f = half * loaded_tile(f, dtype, BLOCK_H, BLOCK_B)
    g = scale * loaded_tile(g, dtype, BLOCK_H, BLOCK_B)
    o = half * loaded_tile(o, dtype, BLOCK_H, BLOCK_B)
    if b_i is not None:
        i, f, g, o = i + b_i, f + b_f, g + b_g, o + b_o
    return i, f, g, o


@inline
def exact_product(
    w, w_rest, words, rests, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr
):
    """W_hh h with the rests of both operands (operand.py)."""
    d = product(w, to_operand(rests, BLOCK_H, BLOCK_B, DOT))
    d += product(w_rest, to_operand(again(words), BLOCK_H, BLOCK_B, DOT))
    return product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT)) + d / REST


@inline
def exchange_exact(h, buffers, t):
    """h of all warps and its rest (operand.py)."""
    BYTES: tl.constexpr = units_bytes(h.shape[0], h.shape[1])
    buffers += t % 2 * (BYTES // 2)
    h, rest = split(h)
    write_units(h, buffers)
    write_units(rest, buffers + BYTES)
    tl.debug_barrier()
    return read_units(h, buffers), read_units(rest, buffers + BYTES)


@inline
def only(x, mask):
    """A tile where mask, in memory order, holds, else zero."""
    BLOCK_H: tl.constexpr = x.shape[0]
    BLOCK_B: tl.constexpr = x.shape[1]
    x = tl.where(mask, from_tile(x, tl.float32, mask), 0.0)
    return to_tile(x, BLOCK_H, BLOCK_B)


@inline
def pack_step(i, f, g, o, c, dtype: tl.constexpr):
    """What backward needs of a step, to write."""
    return (
        pack(i, dtype),
        pack(f, dtype),
        pack(g, dtype),
        pack(o, dtype),
        pack(c, dtype),
    )


@inline
def transpose(weight_ptr, weight_t_ptr, gate, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """W_hh of a gate, of (4, H, H), to its part of W_hh^T, (H, 4, H)."""
    # More units at once would take more shared memory than some programs of a multiprocessor have.
    for first in tl.static_range(0, BLOCK_H, 32):
        unit = first + tl.arange(0, 32)
        k = tl.arange(0, BLOCK_H)
        mask = (unit[:, None] < H) & (k[None, :] < H)
        w = tl.load(weight_ptr + (gate * H + unit[:, None]) * H + k[None, :], mask=mask)
        w_t = weight_t_ptr + (k[:, None] * 4 + gate) * H + unit[None, :]
        tl.store(w_t, tl.trans(w), mask=(k[:, None] < H) & (unit[None, :] < H))


@inline
def matrix_pointers(
    weight_ptr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr
):
    """Of W_hh, (4, H, H), in operand order: pointers, which of them are there, and gates."""
    K: tl.constexpr = BLOCK_H // halves(BLOCK_B)
    OWN: tl.constexpr = own_units(BLOCK_H, BLOCK_B)
    block, wr, half, _, k = operand_indices(BLOCK_H // 16, K, VEC, OWN, 1, 4 * halves(BLOCK_B))
    if BLOCK_B >= 8:
        # Block 2 q + pair: units of parity q, gates (i, f) or (g, o)
        gate, unit = block % 2 * 2 + half, wr * 2 + block // 2
    else:
        # Block 4 q + gate: both halves of the sum
        gate, unit = block % 4, wr * 2 + block // 4
        k += half * K
    return weight_ptr + (gate * H + unit) * H + k, (unit < H) & (k < H), gate


@inline
def to_matrix(w, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr):
    """What `matrix_pointers` point to, as operand A."""
    K: tl.constexpr = BLOCK_H // halves(BLOCK_B)
    OWN: tl.constexpr = own_units(BLOCK_H, BLOCK_B)
    # h from memory is put together by joins, which make kWidth 4 (Triton 3.6, 3.8).
    w = to_operands(pin(w), BLOCK_H // 16, K, VEC, OWN, 1, 4 * halves(BLOCK_B), 4)
    return rows_in_order(w)


@inline
def load_matrix(
    weight_ptr, half, DOT: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """W_hh as operand A and the inverse of its scale. half: what multiplies rows of i, f and o."""
    pointers, mask, gate = matrix_pointers(weight_ptr, H, BLOCK_H, BLOCK_B, VEC)
    factor = 1.0 if half is None else tl.where(gate == 2, 1.0, half)
    w, inverse, _ = load_weights(pointers, mask, factor, DOT, LEAST)
    return to_matrix(w, BLOCK_H, BLOCK_B, VEC), inverse


@inline
def load_exact_matrix(
    weight_ptr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr
):
    """W_hh and its rest (operand.py) as operands A, and the inverse of their scale."""
    pointers, mask, _ = matrix_pointers(weight_ptr, H, BLOCK_H, BLOCK_B, VEC)
    w, rest, inverse = load_exact_weights(pointers, mask)
    rest = to_matrix(rest, BLOCK_H, BLOCK_B, VEC)
    return to_matrix(w, BLOCK_H, BLOCK_B, VEC), rest, inverse


@inline
def read_joint_gates(
    gates_ih_ptr, offs, inside, begin, count, step, slots, handed, step_z, row, sequence,
    H: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The gates of a step, of one of several layers at once: from a ring, if it is handed them,
    else from gates_ih, packed from row `begin` on, of `count` sequences.
    """
    if begin is None:
        gates_ih_ptr += (step & tl.where(handed, slots - 1, -1)) * step_z
    else:
        first = tl.where(handed, (step & (slots - 1)) * BLOCK_B, begin)
        gates_ih_ptr += first.to(tl.int64) * (4 * H)
        inside = inside & (handed | (row + sequence < count))
    return read_four(gates_ih_ptr + offs, inside, H, tag(step, slots))


@inline
def layer_forward(
    w, inverse, gates_ih_ptr, bias_ih_ptr, bias_hh_ptr, weight_hh_ptr, h_0_ptr, c_0_ptr,
    offsets_ptr, resets_ptr, output_ptr, h_n_ptr, c_n_ptr, steps_ptr,
    stage, tile, tiles, layer, T, B, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What a program of lstm_forward_kernel does, whose docstring has the arguments.

    w, inverse: W_hh as `load_matrix` has it, None where it is to be loaded from weight_hh. tile:
    which, of tiles. stage: None, or of one of several layers at once what `rings.stage_of` has:
    gates_ih comes in slots (BLOCK_B, 4, H), h goes on in slots (BLOCK_B, H).
    """
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    FAST: tl.constexpr = not FLOAT32
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    SAVE: tl.constexpr = steps_ptr is not None
    RING: tl.constexpr = stage is not None
    if RING:
        from_ptr, ring_ptr, taken_ptr, room_ptr, slots, handed, _ = stage
        asked = handed.to(tl.int32)
    # How many steps ahead gates are loaded. Of float32 the registers are too few for two, but for
    # few sequences; and what a ring has is looked at as late as can be.
    AHEAD: tl.constexpr = 2 if not RING and (FAST or BLOCK_B < 8) else 1
    # The tensor core begins its sum with z, known before h, so that the chain has no addition. Not
    # where it would cut what float32 rounds; and of few sequences, whose halves are added anyway,
    # only of float32's four, by what the compiler makes of it (bench/variants.md). Nor of a ring,
    # whose z is looked at under the product.
    Z_FIRST: tl.constexpr = not RING and not EXACT and (BLOCK_B >= 8 or (BLOCK_B >= 4 and FLOAT32))
    # Two neighbouring numbers of 16 bits at once, where rows of H are aligned so.
    PAIRS: tl.constexpr = not FLOAT32 and not RING and H % 2 == 0 and BLOCK_B >= 4
    GATE: tl.constexpr = H // 2 if PAIRS else H
    if PAIRS:
        gates_ih_ptr = gates_ih_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    row = tile * BLOCK_B
    state = (layer.to(tl.int64) * D * B + row) * H
    saved = tile
    step_z = B.to(tl.int64) * (4 * GATE)
    step_h = B.to(tl.int64) * (D * H)
    if RING:
        step_z = tl.where(handed, BLOCK_B * 4 * H, step_z)
        gates_ih_ptr = tl.where(handed, from_ptr, gates_ih_ptr + row * (4 * H))
    else:
        gates_ih_ptr += row * (4 * GATE)
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
            gates_ih_ptr += reverse * tl.load(offsets_ptr + T) * (4 * GATE)
        state += reverse * B * H
        saved += reverse * tiles
        step_z *= 1 - 2 * reverse
        step_h *= 1 - 2 * reverse

    if EXACT:
        w, w_rest, inverse = load_exact_matrix(weight_hh_ptr, H, BLOCK_H, BLOCK_B, VEC)
    elif w is None:
        half: tl.constexpr = 0.5 if FAST else None
        w, inverse = load_matrix(weight_hh_ptr, half, DOT, H, BLOCK_H, BLOCK_B, VEC)

    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    inside = unit < H
    mask = (tile * BLOCK_B + sequence < B) & inside
    if PAIRS:
        unit_z, sequence_z = pair_indices(BLOCK_H, BLOCK_B)
        offs_z = sequence_z * (4 * GATE) + unit_z // 2
        mask_z = (row + sequence_z < B) & (unit_z < H)
    elif RING and offsets_ptr is None:
        # A slot has room for all sequences of a tile; of others that are not there the last one.
        sequence_z, mask_z = tl.minimum(sequence, (B - 1 - row).to(tl.int32)), inside
        offs_z = sequence_z * (4 * H) + unit
    else:
        sequence_z, offs_z, mask_z = sequence, sequence * (4 * H) + unit, mask
    offs_b = row + tl.arange(0, BLOCK_B)[None, :]
    offs_h = sequence * (D * H) + unit
    offs_state = state + sequence * H + unit
    b_i, b_f, b_g, b_o = None, None, None, None
    if bias_ih_ptr is not None:
        units = tl.arange(0, BLOCK_H)[:, None]
        b_i, b_f, b_g, b_o = load_biases(bias_ih_ptr, bias_hh_ptr, units, H, FAST)
    h = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    c = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    if c_0_ptr is not None:
        c = tl.load(c_0_ptr + offs_state, mask=mask, other=0.0)
        c = to_tile(c, BLOCK_H, BLOCK_B)
    if steps_ptr is not None:
        steps_ptr += saved * (1 + 5 * T.to(tl.int64)) * SIZE
        tl.store(steps_ptr + tl.arange(0, SIZE), pack(c, dtype))
        steps_ptr += SIZE
    # The first step, whose product is of h_0 alone
    active = None
    alive = mask
    out_ptr = output_ptr
    begin_0, count_0 = None, None
    if offsets_ptr is not None:
        begin_0, count_0 = step_rows(offsets_ptr, 0, T, reverse)
        begin_1, count_1 = step_rows(offsets_ptr, 1, T, reverse)
        begin_2, count_2 = step_rows(offsets_ptr, 2, T, reverse)
    if RING:
        room = start(stage)
        x_i, x_f, x_g, x_o = read_joint_gates(
            gates_ih_ptr, offs_z, inside, begin_0, count_0, 0, slots, handed, step_z, row, sequence,
            H, BLOCK_B,
        )  # fmt: skip
        x_i, x_f, x_g, x_o, room = wait_four(
            x_i, x_f, x_g, x_o, gates_ih_ptr + offs_z, inside, H, tag(0, slots),
            asked, room_ptr, room, 1,
        )  # fmt: skip
    elif offsets_ptr is None:
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask_z, GATE)
        gates_ih_ptr += step_z
    else:
        now = mask_z & (row + sequence_z < count_0)
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + begin_0 * (4 * GATE) + offs_z, now, GATE)
    if offsets_ptr is not None:
        active = offs_b < count_0
        alive = mask & (row + sequence < count_0)
        out_ptr = output_ptr + begin_0 * (D * H)
        begin_0, count_0, begin_1, count_1 = begin_1, count_1, begin_2, count_2
        begin_2, count_2 = step_rows(offsets_ptr, 3, T, reverse)
    z_i, z_f, z_g, z_o = gate_tiles(
        x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, 1.0, dtype, BLOCK_H, BLOCK_B, FAST
    )
    scale = 1.0 if EXACT else 1.0 / inverse
    BYTES: tl.constexpr = (2 if EXACT else 1) * units_bytes(BLOCK_H, BLOCK_B)
    buffers = shared_memory(BYTES + largest_bytes(BLOCK_H, BLOCK_B))
    if h_0_ptr is not None:
        # h_0 alone may be above 1, even infinite: its product needs a scale of its own, and has
        # infinity times zero, a NaN, in the units above H, which must not reach the others.
        h = tl.load(h_0_ptr + offs_state, mask=mask, other=0.0)
        h = to_tile(h, BLOCK_H, BLOCK_B)
        if FLOAT32:
            h, inverse_h = to_range(h, buffers + BYTES)
        if EXACT:
            words, rests = exchange_exact(h, buffers, 0)
            d = exact_product(w, w_rest, words, rests, BLOCK_H, BLOCK_B, DOT)
        else:
            words = exchange_units(h.to(DOT), buffers, 0)
            d = product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT))
        d_i, d_f, d_g, d_o = to_gates(d, BLOCK_B)
        if FLOAT32:
            d_i, d_f = d_i * inverse * inverse_h, d_f * inverse * inverse_h
            d_g, d_o = d_g * inverse * inverse_h, d_o * inverse * inverse_h
        z_i, z_f = z_i + only(d_i, mask), z_f + only(d_f, mask)
        z_g, z_o = z_g + only(d_g, mask), z_o + only(d_o, mask)
    i, f, g, o, h, c = take_step(z_i, z_f, z_g, z_o, h, c, active, FAST, EXACT)
    p_h = from_tile(h, dtype, mask)
    if RING:
        offs_r, inside_r = slot_indices(BLOCK_H, BLOCK_B, H)
        q_h = h
    if SAVE:
        p_i, p_f, p_g, p_o, p_c = pack_step(i, f, g, o, c, dtype)
    if resets_ptr is not None:
        cut = load_cuts(resets_ptr, offsets_ptr, 0, T, B, offs_b, reverse)
        h, c = clear(cut, h), clear(cut, c)
    if RING:
        n = tl.minimum(1, T - 1)
        x_i, x_f, x_g, x_o = read_joint_gates(
            gates_ih_ptr, offs_z, inside, begin_0, count_0, n, slots, handed, step_z, row, sequence,
            H, BLOCK_B,
        )  # fmt: skip
    else:
        z_ptr = gates_ih_ptr
        now = mask_z & (T > 1)
        if offsets_ptr is not None:
            z_ptr += begin_0 * (4 * GATE)
            now &= row + sequence_z < count_0
        x_i, x_f, x_g, x_o = load_gates(z_ptr + offs_z, now, GATE)
    if b_i is not None:
        b_i, b_f, b_g, b_o = scale * b_i, scale * b_f, scale * b_g, scale * b_o
    if AHEAD == 2:
        z_i, z_f, z_g, z_o = gate_tiles(
            x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, scale, dtype, BLOCK_H, BLOCK_B, FAST
        )
        now = mask_z & (T > 2)
        if offsets_ptr is None:
            gates_ih_ptr += step_z
            z_ptr = gates_ih_ptr
        else:
            z_ptr = gates_ih_ptr + begin_1 * (4 * GATE)
            now &= row + sequence_z < count_1
        x_i, x_f, x_g, x_o = load_gates(z_ptr + offs_z, now, GATE)
    if EXACT:
        words, rests = exchange_exact(h, buffers, 1)
    else:
        words = exchange_units(h.to(DOT), buffers, 1)

    # The order in here is the compiler's hint: what nobody waits for stands below the product,
    # under which it then takes place, and the exchange stands last, as close to h as it gets.
    for t in range(1, T):
        if resets_ptr is not None:
            cut = load_cuts(resets_ptr, offsets_ptr, t, T, B, offs_b, reverse)
        if AHEAD == 1 and not RING:
            z_i, z_f, z_g, z_o = gate_tiles(
                x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, scale, dtype, BLOCK_H, BLOCK_B, FAST,
            )  # fmt: skip
        if Z_FIRST:
            d = from_gates(z_i, z_f, z_g, z_o)
            d = product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT), d)
            z_i, z_f, z_g, z_o = to_gates(d, BLOCK_B)
        else:
            if EXACT:
                d = exact_product(w, w_rest, words, rests, BLOCK_H, BLOCK_B, DOT) * inverse
            else:
                d = product(w, to_operand(words, BLOCK_H, BLOCK_B, DOT))
            d_i, d_f, d_g, d_o = to_gates(d, BLOCK_B)
            if not RING:
                z_i, z_f, z_g, z_o = z_i + d_i, z_f + d_f, z_g + d_g, z_o + d_o
        if AHEAD == 2:
            n_i, n_f, n_g, n_o = gate_tiles(
                x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, scale, dtype, BLOCK_H, BLOCK_B, FAST,
            )  # fmt: skip
        # Of the step before
        tl.store(out_ptr + offs_h, p_h, mask=alive)
        if SAVE:
            save_step(p_i, p_f, p_g, p_o, p_c, steps_ptr, SIZE)
            steps_ptr += 5 * SIZE
        if RING:
            hand(slot(ring_ptr, t - 1, slots, BLOCK_B * H) + offs_r, q_h, inside_r, t - 1, slots)
            x_i, x_f, x_g, x_o, room = wait_four(
                x_i, x_f, x_g, x_o, slot(gates_ih_ptr, t, slots, BLOCK_B * 4 * H) + offs_z,
                inside, H, tag(t, slots), asked, room_ptr, room, t + 2 - slots,
            )  # fmt: skip
            z_i, z_f, z_g, z_o = gate_tiles(
                x_i, x_f, x_g, x_o, b_i, b_f, b_g, b_o, scale, dtype, BLOCK_H, BLOCK_B, FAST,
            )  # fmt: skip
            z_i, z_f, z_g, z_o = z_i + d_i, z_f + d_f, z_g + d_g, z_o + d_o
            tell(taken_ptr, t)
            room = ask(room_ptr)
        n = tl.minimum(t + AHEAD, T - 1)
        if offsets_ptr is None:
            out_ptr += step_h
            begin_n, count_n = None, None
        else:
            active = offs_b < count_0
            alive = mask & (row + sequence < count_0)
            out_ptr = output_ptr + begin_0 * (D * H)
            begin_n, count_n = (begin_2, count_2) if AHEAD == 2 else (begin_1, count_1)
            begin_0, count_0, begin_1, count_1 = begin_1, count_1, begin_2, count_2
            begin_2, count_2 = step_rows(offsets_ptr, t + 3, T, reverse)
        if RING:
            x_i, x_f, x_g, x_o = read_joint_gates(
                gates_ih_ptr, offs_z, inside, begin_n, count_n, n, slots, handed, step_z, row,
                sequence, H, BLOCK_B,
            )  # fmt: skip
        else:
            now = mask_z & (t + AHEAD < T)
            if offsets_ptr is None:
                gates_ih_ptr += step_z
                z_ptr = gates_ih_ptr
            else:
                z_ptr = gates_ih_ptr + begin_n * (4 * GATE)
                now &= row + sequence_z < count_n
            x_i, x_f, x_g, x_o = load_gates(z_ptr + offs_z, now, GATE)
        i, f, g, o, h, c = take_step(z_i, z_f, z_g, z_o, h, c, active, FAST, EXACT, inverse)
        p_h = from_tile(h, dtype, mask)
        if SAVE:
            p_i, p_f, p_g, p_o, p_c = pack_step(i, f, g, o, c, dtype)
        if RING:
            q_h = h
        if resets_ptr is not None:
            h, c = clear(cut, h), clear(cut, c)
        if AHEAD == 2:
            # Fenced, or the compiler makes the sums only where they are used.
            z_i, z_f, z_g, z_o = fence(n_i), fence(n_f), fence(n_g), fence(n_o)
        if EXACT:
            words, rests = exchange_exact(h, buffers, t + 1)
        else:
            words = exchange_units(h.to(DOT), buffers, t + 1)
    if RING:
        hand(hide(slot(ring_ptr, T - 1, slots, BLOCK_B * H)) + offs_r, q_h, inside_r, T - 1, slots)
    tl.store(hide(out_ptr) + offs_h, p_h, mask=alive)
    if SAVE:
        save_step(p_i, p_f, p_g, p_o, p_c, hide(steps_ptr), SIZE)
    tl.store(h_n_ptr + offs_state, from_tile(h, dtype, mask), mask=mask)
    tl.store(c_n_ptr + offs_state, from_tile(c, dtype, mask), mask=mask)


# T and B change from call to call, and with B the addresses at which a layer's states begin. They
# compile nothing new: the numbers are not looked at, nor the alignment of what no loop reads.
@triton.jit(
    do_not_specialize=["layer", "T", "B"],
    do_not_specialize_on_alignment=[
        "bias_ih_ptr",
        "bias_hh_ptr",
        "h_0_ptr",
        "c_0_ptr",
        "resets_ptr",
        "h_n_ptr",
        "c_n_ptr",
    ],
)
def lstm_forward_kernel(
    gates_ih_ptr, bias_ih_ptr, bias_hh_ptr, weight_hh_ptr, h_0_ptr, c_0_ptr,
    offsets_ptr, resets_ptr,
    output_ptr, h_n_ptr, c_n_ptr, steps_ptr, weight_hh_t_ptr,
    layer, T, B, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences, in one of D directions.

    Shapes: gates_ih (D, T, B, 4, H); bias_ih, bias_hh (D, 4, H), both or none; weight_hh (D, 4, H,
        H); h_0, c_0, h_n, c_n (layers D, B, H), of which number `layer` is meant; output (T, B, D,
        H). For backward only: steps (D, tiles, 1 + 5 T, BLOCK_H * BLOCK_B), c_0 and then i, f, g,
        o, c of each step, in the order they are taken and in private order (layout.pack), and
        weight_hh_t (D, H, 4, H), W_hh transposed. All contiguous, in one dtype. h_0 and c_0 may be
        None, for zeros; the last two are where no gradient is wanted.
        Packed: offsets (T + 1), int64, else None, are where the rows of each step begin, and
        gates_ih is (D, rows, 4, H), output (rows, D, H). If D is 2 h_0 is None: its product is in
        gates_ih.
        resets (T, B), packed (rows,), uint8, or None: not 0 where no state passes between a step
        and the one before it in time; those of the first are the caller's.
    Numerics: z, the cell and c are float32; h_t is rounded to the operand dtype (operand.py)
        before W_hh reads it, if EXACT to float32's precision.
    """
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    if weight_hh_t_ptr is not None:
        tiles -= TRANSPOSERS
        if tile >= tiles:
            matrix = tl.program_id(1).to(tl.int64) * (4 * H * H)
            transpose(weight_hh_ptr + matrix, weight_hh_t_ptr + matrix, tile - tiles, H, BLOCK_H)
            return
    layer_forward(
        None, None, gates_ih_ptr, bias_ih_ptr, bias_hh_ptr, weight_hh_ptr, h_0_ptr, c_0_ptr,
        offsets_ptr, resets_ptr, output_ptr, h_n_ptr, c_n_ptr, steps_ptr,
        None, tile, tiles, layer, T, B, H, D, BLOCK_H, BLOCK_B, VEC, EXACT,
    )  # fmt: skip


def lstm_forward(
    gates_ih, bias_ih, bias_hh, weight_hh, output, steps, weight_hh_t, h_0, c_0, h_n, c_n,
    layer, D, T, B, tile, offsets=None, resets=None, meeting=None,
):  # fmt: skip
    """Launch lstm_forward_kernel, whose docstring has the shapes. tile: config.tile(...); meeting:
    of slices, else None.
    """
    H = c_n.shape[-1]
    if meeting is not None:
        arguments = (
            gates_ih, bias_ih, bias_hh, weight_hh, c_0, offsets, resets, output, h_n, c_n, steps,
        )  # fmt: skip
        launch_slices(lstm_sliced_forward_kernel, arguments, layer, T, B, H, D, tile, meeting)
        return
    tiles = -(-B // tile["BLOCK_B"])
    launch(
        lstm_forward_kernel, (tiles if weight_hh_t is None else tiles + config.TRANSPOSERS, D, 1),
        gates_ih, bias_ih, bias_hh, weight_hh, h_0, c_0, offsets, resets,
        output, h_n, c_n, steps, weight_hh_t, layer, T, B, H, D, **tile,
    )  # fmt: skip
