"""Forward over a whole sequence: one layer, a program for each tile of sequences and direction.

    z_t = gates_ih[t] + W_hh h_{t-1};   h_t, c_t = cell(z_t, c_{t-1})

gates_ih, the product of the input with both biases, is known for all steps before the kernel
starts. What is left is a chain: the product with W_hh, five activations and one exchange of h among
the warps at every step, so the latency of one step bounds the kernel, not arithmetic or bandwidth.
Everything else is kept off the chain: W_hh stays in registers and c with its cell for all T steps,
gates_ih is read a step ahead, and nothing waits for what is written.
"""

import triton
import triton.language as tl

from .cell import cell_forward
from .layout import (
    choose,
    from_tile,
    gate_pair,
    inline,
    operand_indices,
    order_units,
    pack,
    pin,
    product,
    step_rows,
    tile_indices,
    to_operands,
    to_tile,
)
from .operand import REST, load_exact_weights, load_weights, split, to_range


@inline
def load_gates(pointers, mask, H: tl.constexpr):
    """i, f, g, o, which lie H apart, in memory order."""
    return (
        tl.load(pointers, mask=mask, other=0.0),
        tl.load(pointers + H, mask=mask, other=0.0),
        tl.load(pointers + 2 * H, mask=mask, other=0.0),
        tl.load(pointers + 3 * H, mask=mask, other=0.0),
    )


@inline
def gate_tiles(i, f, g, o, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """What `load_gates` gave, as tiles."""
    return (
        to_tile(i, BLOCK_H, BLOCK_B),
        to_tile(f, BLOCK_H, BLOCK_B),
        to_tile(g, BLOCK_H, BLOCK_B),
        to_tile(o, BLOCK_H, BLOCK_B),
    )


@inline
def gates_product(w_0, w_1, w_2, w_3, h, VEC: tl.constexpr):
    """W_hh h: a tile for each gate."""
    x = order_units(h, VEC)
    i, f = gate_pair(product(w_0, x), product(w_2, x))
    g, o = gate_pair(product(w_1, x), product(w_3, x))
    return i, f, g, o


@inline
def exact_product(w_0, w_1, w_2, w_3, r_0, r_1, r_2, r_3, h, VEC: tl.constexpr):
    """W_hh h with the rests of both operands (operand.py)."""
    h, rest = split(h)
    i, f, g, o = gates_product(w_0, w_1, w_2, w_3, h, VEC)
    a_i, a_f, a_g, a_o = gates_product(w_0, w_1, w_2, w_3, rest, VEC)
    b_i, b_f, b_g, b_o = gates_product(r_0, r_1, r_2, r_3, h, VEC)
    i += (a_i + b_i) / REST
    f += (a_f + b_f) / REST
    g += (a_g + b_g) / REST
    o += (a_o + b_o) / REST
    return i, f, g, o


@inline
def only(x, mask):
    """A tile where mask, in memory order, holds, else zero."""
    BLOCK_H: tl.constexpr = x.shape[0]
    BLOCK_B: tl.constexpr = x.shape[1]
    return to_tile(tl.where(mask, from_tile(x, tl.float32, mask), 0.0), BLOCK_H, BLOCK_B)


@inline
def finish_step(
    z_i, z_f, z_g, z_o, d_i, d_f, d_g, d_o, h_prev, c_prev,
    output_ptr, gates_ptr, cells_ptr, offs_h, mask, active,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A step after its product: the cell, and what is written. z: of gates_ih; d: W_hh h; active:
    which sequences take it, None for all; the others keep their states.
    """
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    if FAST:
        z_i = 0.5 * z_i
        z_f = 0.5 * z_f
        z_o = 0.5 * z_o
    i, f, g, o, h, c = cell_forward(z_i + d_i, z_f + d_f, z_g + d_g, z_o + d_o, c_prev, FAST, EXACT)
    if active is not None:
        h = choose(active, h, h_prev)
        c = choose(active, c, c_prev)
    tl.store(output_ptr + offs_h, from_tile(h, dtype, mask), mask=mask)
    if gates_ptr is not None:
        offs = tl.arange(0, SIZE)
        tl.store(gates_ptr + offs, pack(i, dtype))
        tl.store(gates_ptr + SIZE + offs, pack(f, dtype))
        tl.store(gates_ptr + 2 * SIZE + offs, pack(g, dtype))
        tl.store(gates_ptr + 3 * SIZE + offs, pack(o, dtype))
        tl.store(cells_ptr + offs, pack(c, dtype))
    return h, c


# T and B change from call to call, and with B the addresses at which a layer's states begin. They
# compile nothing new: the numbers are not looked at, nor the alignment of what no loop reads.
@triton.jit(
    do_not_specialize=["T", "B"],
    do_not_specialize_on_alignment=["h_0_ptr", "c_0_ptr", "h_n_ptr", "c_n_ptr"],
)
def lstm_forward_kernel(
    gates_ih_ptr, weight_hh_ptr, h_0_ptr, c_0_ptr, offsets_ptr,
    output_ptr, h_n_ptr, c_n_ptr, gates_ptr, cells_ptr,
    T, B, H: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The whole sequence of one tile of BLOCK_B sequences, in one of D directions.

    Shapes: gates_ih (D, T, B, 4, H); weight_hh (D, 4, H, H); h_0, c_0, h_n, c_n (D, B, H); output
        (T, B, D, H); gates (D, tiles, T, 4, BLOCK_H * BLOCK_B) and cells (D, tiles, T + 1,
        BLOCK_H * BLOCK_B), c_0 to c_T, in the order of the steps taken and in private order
        (layout.pack), for backward only. All contiguous, in one dtype. h_0 and c_0 may be None, for
        zeros; gates and cells are None where no gradient is wanted.
        Packed: offsets (T + 1), int64, else None, are where the rows of each step begin, and
        gates_ih is (D, rows, 4, H), output (rows, D, H), h_0 None: its product is in gates_ih.
    Numerics: z, the cell and c are float32; h_t is rounded to the operand dtype (operand.py)
        before W_hh reads it, if EXACT to float32's precision.
    """
    dtype: tl.constexpr = output_ptr.dtype.element_ty
    FLOAT32: tl.constexpr = dtype == tl.float32
    DOT: tl.constexpr = tl.float16 if FLOAT32 else dtype
    FAST: tl.constexpr = not FLOAT32
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    tile = tl.program_id(0).to(tl.int64)
    row = tile * BLOCK_B
    state = row * H
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
        output_ptr += reverse * H
        if offsets_ptr is None:
            gates_ih_ptr += reverse * (2 * T - 1) * step_z
            output_ptr += reverse * (T - 1) * step_h
        else:
            gates_ih_ptr += reverse * tl.load(offsets_ptr + T) * (4 * H)
        state += reverse * B * H
        saved += reverse * tl.num_programs(0)
        step_z *= 1 - 2 * reverse
        step_h *= 1 - 2 * reverse

    # Block 2 q + pair of W_hh: units of parity q, gates (i, f) or (g, o)
    block, wr, half, _, k = operand_indices(BLOCK_H, VEC, 1)
    gate = block % 2 * 2 + half
    unit = wr * 2 + block // 2
    halved = tl.where((gate == 2) | (not FAST), 1.0, 0.5)
    weights = weight_hh_ptr + (gate * H + unit) * H + k
    if EXACT:
        w, w_rest, inverse = load_exact_weights(weights, (unit < H) & (k < H))
        r_0, r_1, r_2, r_3 = to_operands(pin(w_rest), BLOCK_H, VEC, 1)
    else:
        w, inverse = load_weights(weights, (unit < H) & (k < H), halved, DOT)
    w_0, w_1, w_2, w_3 = to_operands(pin(w), BLOCK_H, VEC, 1)

    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    mask = (tile * BLOCK_B + sequence < B) & (unit < H)
    offs_h = sequence * (D * H) + unit
    offs_z = sequence * (4 * H) + unit
    offs_state = state + sequence * H + unit
    h = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    c = tl.zeros((BLOCK_H, BLOCK_B), tl.float32)
    if c_0_ptr is not None:
        c = to_tile(tl.load(c_0_ptr + offs_state, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
    if gates_ptr is not None:
        gates_ptr += saved * T * (4 * SIZE)
        cells_ptr += saved * (T + 1) * SIZE
        tl.store(cells_ptr + tl.arange(0, SIZE), pack(c, dtype))
        cells_ptr += SIZE
    if offsets_ptr is None:
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask, H)
    else:
        begin, count = step_rows(offsets_ptr, 0, T, reverse)
        begin_1, count_1 = step_rows(offsets_ptr, 1, T, reverse)
        now = mask & (row + sequence < count)
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + begin * (4 * H) + offs_z, now, H)
        lane = row + tl.arange(0, BLOCK_B)[None, :]

    first = 0
    if h_0_ptr is not None:
        # h_0 alone may be above 1, even infinite: its product needs a scale of its own, and has
        # infinity times zero, a NaN, in the units above H, which must not reach the others.
        h = to_tile(tl.load(h_0_ptr + offs_state, mask=mask, other=0.0), BLOCK_H, BLOCK_B)
        if FLOAT32:
            h, inverse_h = to_range(h)
        if EXACT:
            d_i, d_f, d_g, d_o = exact_product(w_0, w_1, w_2, w_3, r_0, r_1, r_2, r_3, h, VEC)
        else:
            d_i, d_f, d_g, d_o = gates_product(w_0, w_1, w_2, w_3, h.to(DOT), VEC)
        if FLOAT32:
            d_i, d_f = d_i * inverse * inverse_h, d_f * inverse * inverse_h
            d_g, d_o = d_g * inverse * inverse_h, d_o * inverse * inverse_h
        z_i, z_f, z_g, z_o = gate_tiles(x_i, x_f, x_g, x_o, BLOCK_H, BLOCK_B)
        h, c = finish_step(
            z_i, z_f, z_g, z_o, only(d_i, mask), only(d_f, mask), only(d_g, mask), only(d_o, mask),
            h, c, output_ptr, gates_ptr, cells_ptr, offs_h, mask, None,
            BLOCK_H, BLOCK_B, FAST, EXACT,
        )  # fmt: skip
        first = 1
        gates_ih_ptr += step_z
        output_ptr += step_h
        if gates_ptr is not None:
            gates_ptr += 4 * SIZE
            cells_ptr += SIZE
        x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask & (T > 1), H)

    for t in range(first, T):
        z_i, z_f, z_g, z_o = gate_tiles(x_i, x_f, x_g, x_o, BLOCK_H, BLOCK_B)
        if offsets_ptr is None:
            gates_ih_ptr += step_z
            x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + offs_z, mask & (t + 1 < T), H)
            out_ptr = output_ptr
            alive = mask
            active = None
        else:
            active = lane < count
            alive = mask & (row + sequence < count)
            out_ptr = output_ptr + begin * (D * H)
            ahead = mask & (row + sequence < count_1) & (t + 1 < T)
            x_i, x_f, x_g, x_o = load_gates(gates_ih_ptr + begin_1 * (4 * H) + offs_z, ahead, H)
            begin, count = begin_1, count_1
            begin_1, count_1 = step_rows(offsets_ptr, t + 2, T, reverse)
        if EXACT:
            d_i, d_f, d_g, d_o = exact_product(w_0, w_1, w_2, w_3, r_0, r_1, r_2, r_3, h, VEC)
        else:
            d_i, d_f, d_g, d_o = gates_product(w_0, w_1, w_2, w_3, h.to(DOT), VEC)
        if FLOAT32:
            d_i, d_f, d_g, d_o = d_i * inverse, d_f * inverse, d_g * inverse, d_o * inverse
        h, c = finish_step(
            z_i, z_f, z_g, z_o, d_i, d_f, d_g, d_o,
            h, c, out_ptr, gates_ptr, cells_ptr, offs_h, alive, active,
            BLOCK_H, BLOCK_B, FAST, EXACT,
        )  # fmt: skip
        if offsets_ptr is None:
            output_ptr += step_h
        if gates_ptr is not None:
            gates_ptr += 4 * SIZE
            cells_ptr += SIZE
    tl.store(h_n_ptr + offs_state, from_tile(h, dtype, mask), mask=mask)
    tl.store(c_n_ptr + offs_state, from_tile(c, dtype, mask), mask=mask)


def lstm_forward(
    gates_ih, weight_hh, h_0, c_0, output, h_n, c_n, gates, cells, tile, offsets=None
):  # fmt: skip
    """Launch lstm_forward_kernel, whose docstring has the shapes. tile: config.tile(...)."""
    D, B, H = h_n.shape
    T = output.shape[0] if offsets is None else offsets.shape[0] - 1
    grid = (triton.cdiv(B, tile["BLOCK_B"]), D)
    lstm_forward_kernel[grid](
        gates_ih, weight_hh, h_0, c_0, offsets, output, h_n, c_n, gates, cells, T, B, H, D, **tile
    )
