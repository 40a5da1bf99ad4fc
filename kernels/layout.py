"""Where the numbers of a tile live: registers, lanes, warps, memory. Home of every layout trick.

A *tile* is a (BLOCK_H, BLOCK_B) tensor, hidden units by sequences, in the register layout of a
tensor-core accumulator, so that the cell runs on what a matrix product leaves behind, with no
shuffle and no shared memory:

    unit     u = (8 w + r) 2 + q        w warp, r = lane / 4, q register
    sequence b = (4 j + c) 2 + p        c = lane % 4, j and p registers

    warp w    c=0      c=1      c=2      c=3
    r=0      u0 u1    u0 u1    u0 u1    u0 u1     u 16 w + {0, 1}, b {0, 1}, {2, 3}, {4, 5}, {6, 7}
    r=1      u2 u3    u2 u3    ...
    ...                                           16 units a warp, so BLOCK_H = 16 num_warps

Of fewer sequences than eight a thread has those of p = 0, so of four sequences b = c; of two, half
of those, of one unit, so that b = c / 2 and q = c % 2. The functions below say j, p, c and q
whatever their lengths.

A product is W (rows, K) @ x (K, N), the weights as operand A, held in registers for all time
steps: the sequences are the narrow side of the tensor core's tile, so a tile may be as narrow as
eight of them. One tensor-core block is 16 rows and gives a thread rows r and r + 8. Rows are
loaded in an order that makes these the rows the thread needs next: the four gates of its own units
(forward), its own units (backward). The order of K is free as long as W and x agree, and is chosen
so that a thread reads VEC neighbouring weights at once.

Of fewer sequences than eight, K is split into two halves. A sequence takes two neighbouring columns
of the tensor core's block, x of one half and of the other, and a row of W rows r and r + 8, again
of one half and of the other. Of the four sums that a thread then has, row r by column 2 c and row
r + 8 by column 2 c + 1 are the two halves of one; the other two are of no use. Two sequences are
eight columns with a copy of each. It costs as many products as eight sequences, but a warp reads
half as much of x: what it reads bounds backward (bench/bounds.py).

                     x, first half    x, second half
    W, first half      a sum's half         -
    W, second half          -          its other half

Wherever two of these orders differ in the eyes of Triton's compiler it converts through shared
memory, at two barriers each. Four habits keep it from that, and exchange.py does itself the one
exchange that a step needs; tests/kernels/test_static.py notices when one stops working.
  - Tensors shared with torch are read and written as 2-D arrays whose coalesced layout is the
    tile's (`tile_indices`), tensors that only our kernels read as 1-D arrays (`pack`): where both
    have the same shape, the compiler gives both the wider access and converts one.
  - Weights are read as a 1-D array in operand order (`operand_indices`), computed with constant
    divisors only, or the compiler no longer sees which ones are neighbours.
  - `pin` hides from the compiler that the weights come from memory, or it reads them again at
    every step; `fence` hides from it how x of slices was put together, or Triton 3.6 chooses
    another order of K and shuffles all weights at every step.
  - The product has a batch dimension, one batch a warp. Such a product is mma.sync on every card;
    a plain one becomes wgmma or tcgen05 on newer ones, whose 64 or 128 rows an instruction would
    put the weights in shared memory.
"""

import triton
import triton.language as tl

# The interpreter has no inline assembly, and its tl.dot multiplies the raw bits of bfloat16
# (Triton 3.8).
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# Decorates what kernels call. The interpreter replaces all of triton.language anew at each call of
# a jitted function, in 0.1 ms, but a plain one runs within its caller's.
inline = (lambda function: function) if triton.knobs.runtime.interpret else triton.jit


@triton.constexpr_function
def halves(block_b):
    """Into how many parts a tile of so many sequences splits what its products sum over."""
    return 2 if block_b < 8 else 1


# Lengths of j, c and p in a tile of so many sequences
@triton.constexpr_function
def _c(block_b):
    return min(4, block_b)


@triton.constexpr_function
def _p(block_b):
    return min(2, block_b // _c(block_b))


@triton.constexpr_function
def _j(block_b):
    return max(1, block_b // 8)


@inline
def tile_indices(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, H: tl.constexpr):
    """Unit and sequence of a tile in memory order: (J P, BLOCK_H C), j p by w r c q.

    Rows of an odd H are aligned to one number, so that no two can be moved at once: where a thread
    has both q, then (BLOCK_B BLOCK_H, 1), q j p w r c.
    """
    C: tl.constexpr = _c(BLOCK_B)
    P: tl.constexpr = _p(BLOCK_B)
    JP: tl.constexpr = BLOCK_B // C
    if H % 2 == 0 or BLOCK_B == 2:
        column = tl.arange(0, C * BLOCK_H)[None, :]
        jp = tl.arange(0, JP)[:, None]
        c = column // 2 % C
        return column // (2 * C) * 2 + column % 2, (jp // P * C + c) * P + jp % P
    else:
        i = tl.arange(0, BLOCK_B * BLOCK_H)[:, None]
        jp = i // (BLOCK_H // 2 * C) % JP
        q = i // (BLOCK_H // 2 * BLOCK_B)
        return i // C % (BLOCK_H // 2) * 2 + q, (jp // P * C + i % C) * P + jp % P


@inline
def to_tile(x, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Memory order to a float32 tile."""
    J: tl.constexpr = _j(BLOCK_B)
    C: tl.constexpr = _c(BLOCK_B)
    P: tl.constexpr = _p(BLOCK_B)
    if x.shape[1] == 1:
        x = tl.reshape(x, (2, J, P, BLOCK_H // 2, C))  # q j p wr c
        x = tl.permute(x, (3, 0, 1, 4, 2))
    else:
        x = tl.reshape(x, (J, P, BLOCK_H // 2, C, 2))  # j p wr c q
        x = tl.permute(x, (2, 4, 0, 3, 1))
    return tl.reshape(x, (BLOCK_H, BLOCK_B)).to(tl.float32)


@inline
def cell_number(unit, sequence, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Of a tile's cells, one of each thread after the other: q j p w r c; of two sequences, where a
    thread has but one, w r c q.
    """
    C: tl.constexpr = _c(BLOCK_B)
    P: tl.constexpr = _p(BLOCK_B)
    if BLOCK_B == 2:
        return (unit // 2 * C + sequence) * 2 + unit % 2
    else:
        jp = sequence // (C * P) * P + sequence % P
        slow = unit % 2 * (BLOCK_B // C) + jp
        return (slow * (BLOCK_H // 2) + unit // 2) * C + sequence // P % C


@inline
def cells_to_tile(x, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Numbers in the order of `cell_number` to a float32 tile."""
    if BLOCK_B == 2:
        return to_tile(tl.reshape(x, (1, BLOCK_H * BLOCK_B)), BLOCK_H, BLOCK_B)
    else:
        return to_tile(tl.reshape(x, (BLOCK_H * BLOCK_B, 1)), BLOCK_H, BLOCK_B)


@inline
def pair_indices(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """First unit and sequence of a tile's pairs of units, one word each: (BLOCK_B BLOCK_H / 2,),
    j p w r c. Of four sequences at least.
    """
    P: tl.constexpr = _p(BLOCK_B)
    i = tl.arange(0, BLOCK_B * BLOCK_H // 2)
    jp = i // (2 * BLOCK_H)
    return i // 4 % (BLOCK_H // 2) * 2, (jp // P * 4 + i % 4) * P + jp % P


@inline
def pairs_to_tile(x, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, dtype: tl.constexpr):
    """Words of two numbers of dtype, as `pair_indices` has them, to a float32 tile."""
    x = tl.reshape(x, (_j(BLOCK_B), _p(BLOCK_B), BLOCK_H // 2, 4))  # j p wr c
    return _halves(tl.reshape(tl.permute(x, (2, 0, 3, 1)), (BLOCK_H // 2, BLOCK_B)), dtype)


@inline
def _halves(x, dtype: tl.constexpr):
    """Words of two units' numbers, (BLOCK_H / 2, BLOCK_B), to a float32 tile."""
    if dtype == tl.bfloat16:
        # The upper half of a float32. By way of 16 bits the second number would take two steps.
        x_0 = (x << 16).to(tl.float32, bitcast=True)
        x_1 = (x & -65536).to(tl.float32, bitcast=True)
    else:
        x_0 = x.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        x_1 = (x >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    x = tl.permute(tl.join(x_0, x_1), (0, 2, 1))
    return tl.reshape(x, (2 * x.shape[0], x.shape[2]))


@inline
def lower_half(x, dtype: tl.constexpr):
    """The first number of dtype of each word, in float32."""
    if dtype == tl.bfloat16:
        return (x << 16).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 x, y; mov.b32 {x, y}, $1; cvt.f32.f16 $0, x; }", "=r,r", [x],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip


@inline
def from_tile(x, dtype: tl.constexpr, mask):
    """A tile to memory order, which is that of mask, in dtype."""
    x = tl.permute(_digits(x.to(dtype)), (2, 3, 0, 4, 1))  # j p wr c q
    if mask.shape[1] == 1:
        x = tl.permute(x, (4, 0, 1, 2, 3))
    return tl.reshape(x, mask.shape)


@inline
def _digits(x):
    """A tile as (w r, q, j, p, c)."""
    BLOCK_H: tl.constexpr = x.shape[0]
    BLOCK_B: tl.constexpr = x.shape[1]
    x = tl.reshape(x, (BLOCK_H // 2, 2, _j(BLOCK_B), _c(BLOCK_B), _p(BLOCK_B)))
    return tl.permute(x, (0, 1, 2, 4, 3))


@inline
def pack(x, dtype: tl.constexpr):
    """A tile to private order: at most 16 bytes of one thread, then of the next thread."""
    BLOCK_H: tl.constexpr = x.shape[0]
    BLOCK_B: tl.constexpr = x.shape[1]
    RUN: tl.constexpr = min(BLOCK_B // 2, 128 // dtype.primitive_bitwidth)
    x = tl.permute(_digits(x.to(dtype)), (0, 4, 2, 3, 1))  # wr c j p q
    x = tl.reshape(x, (2 * BLOCK_H, BLOCK_B // 2 // RUN, RUN))
    return tl.reshape(tl.permute(x, (1, 0, 2)), (BLOCK_H * BLOCK_B,))


@inline
def unpack(x, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, dtype: tl.constexpr):
    """Private order to a float32 tile. x: of dtype, or words of two of dtype, of two sequences of
    one.
    """
    if x.dtype == tl.int32 and BLOCK_B == 2:
        return unpack(lower_half(x, dtype), BLOCK_H, BLOCK_B, dtype)
    elif x.dtype == tl.int32:
        RUN: tl.constexpr = min(BLOCK_B // 4, 4)
        x = tl.permute(tl.reshape(x, (BLOCK_B // 4 // RUN, 2 * BLOCK_H, RUN)), (1, 0, 2))
        x = tl.reshape(x, (BLOCK_H // 2, 4, _j(BLOCK_B), _p(BLOCK_B)))  # wr c j p
        return _halves(tl.reshape(tl.permute(x, (0, 2, 1, 3)), (BLOCK_H // 2, BLOCK_B)), dtype)
    else:
        RUN: tl.constexpr = min(BLOCK_B // 2, 128 // x.dtype.primitive_bitwidth)
        x = tl.permute(tl.reshape(x, (BLOCK_B // 2 // RUN, 2 * BLOCK_H, RUN)), (1, 0, 2))
        x = tl.reshape(x, (BLOCK_H // 2, _c(BLOCK_B), _j(BLOCK_B), _p(BLOCK_B), 2))  # wr c j p q
        return tl.reshape(tl.permute(x, (0, 4, 2, 1, 3)), (BLOCK_H, BLOCK_B)).to(tl.float32)


@inline
def operand_indices(
    NUM_WARPS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr, OWN: tl.constexpr,
    GROUPS: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr = 1,
):  # fmt: skip
    """Operand order of BLOCKS matrices (16 num_warps, GROUPS COLUMNS): block, w r, half, group, k.

    Row r + 8 half of warp w's tensor-core block; column k of a group, of COLUMNS. Fastest to
    slowest: VEC of k, c, r, w, the rest of the OWN neighbours in k that a thread has, half, group,
    the rest of k, block. PARTS: warps w, w + PARTS, ... have the same columns, each of the others
    4 OWN columns on, of PARTS COLUMNS.
    """
    REST: tl.constexpr = COLUMNS // (4 * OWN)
    i = tl.arange(0, 16 * NUM_WARPS * GROUPS * COLUMNS * BLOCKS)
    own = i // (32 * NUM_WARPS * VEC)
    slow = own // (OWN // VEC)
    wr = i // (4 * VEC) % (8 * NUM_WARPS)
    k = i % VEC + own % (OWN // VEC) * VEC + i // VEC % 4 * OWN
    rest = slow // (2 * GROUPS) % REST
    if PARTS > 1:
        rest = rest * PARTS + i // (32 * VEC) % PARTS
    k += rest * (4 * OWN)
    return slow // (2 * GROUPS * REST), wr, slow % 2, slow // 2 % GROUPS, k


@inline
def to_operands(
    w, NUM_WARPS: tl.constexpr, COLUMNS: tl.constexpr, VEC: tl.constexpr, OWN: tl.constexpr,
    GROUPS: tl.constexpr, BLOCKS: tl.constexpr, RUN: tl.constexpr = 2,
):  # fmt: skip
    """`operand_indices` order to (num_warps, 16, GROUPS COLUMNS, BLOCKS).

    RUN: neighbours in k of one thread that the product takes for neighbours: the compiler's kWidth.
    """
    REST: tl.constexpr = COLUMNS // (4 * OWN)
    # w half r, then columns as `order_units` and `order_gates` have them, then block
    if VEC < RUN:  # block, rest, group, half, v, e, w, r, c, e
        w = tl.reshape(w, (BLOCKS, REST, GROUPS, 2, OWN // RUN, RUN // VEC, NUM_WARPS, 8, 4, VEC))
        w = tl.permute(w, (6, 3, 7, 1, 4, 2, 8, 5, 9, 0))
    else:  # block, rest, group, half, v, w, r, c, v, e
        w = tl.reshape(w, (BLOCKS, REST, GROUPS, 2, OWN // VEC, NUM_WARPS, 8, 4, VEC // RUN, RUN))
        w = tl.permute(w, (5, 3, 6, 1, 4, 8, 2, 7, 9, 0))
    return tl.reshape(w, (NUM_WARPS, 16, GROUPS * COLUMNS, BLOCKS))


@inline
def rows_in_order(w):
    """`to_operands`' blocks one below the other: (num_warps, 16 blocks, columns)."""
    w = tl.permute(w, (0, 3, 1, 2))
    return tl.reshape(w, (w.shape[0], w.shape[1] * w.shape[2], w.shape[3]))


@inline
def step_rows(offsets_ptr, step, T, backwards):
    """First row of a packed step and how many there are; backwards, 0 or 1: counted from the last.

    Of a step beyond the last one: those of the last.
    """
    step = tl.minimum(step, T - 1)
    step += backwards * (T - 1 - 2 * step)
    begin = tl.load(offsets_ptr + step)
    return begin, tl.load(offsets_ptr + step + 1).to(tl.int32) - begin.to(tl.int32)


@inline
def load_cuts(resets_ptr, offsets_ptr, step, T, B, offs_b, backwards):
    """Which of these sequences lose their state between a step and the next, which the later of the
    two in time says; backwards, 0 or 1: counted from the last. After the last: none.
    """
    time = tl.maximum(tl.minimum(step + 1 + backwards * (T - 2 - 2 * step), T - 1), 0)
    if offsets_ptr is None:
        begin, count = time * B.to(tl.int64), B
    else:
        begin = tl.load(offsets_ptr + time)
        count = tl.load(offsets_ptr + time + 1) - begin
    pointers = resets_ptr + begin + offs_b
    mask = (offs_b < count) & (step + 1 < T)
    return load_in_place(pointers, mask) != 0


@inline
def load_in_place(pointers, mask):
    """Numbers in the layout of the pointers, where tl.load would take one of its own; zeros where
    the mask is not. Bytes become int32.
    """
    if INTERPRETED:
        return tl.load(pointers, mask=mask, other=0)
    else:
        return _load_in_place(pointers, mask)


@inline
def _load_in_place(pointers, mask):
    addresses, mask = pointers.to(tl.int64), mask.to(tl.int32)
    if pointers.dtype.element_ty == tl.uint8:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b32 $0, 0; @p ld.global.nc.u8 $0, [$1]; }",
            "=&r,l,r", [addresses, mask], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    elif pointers.dtype.element_ty == tl.float32:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b32 $0, 0; @p ld.global.nc.b32 $0, [$1]; }",
            "=&r,l,r", [addresses, mask], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b16 $0, 0; @p ld.global.nc.b16 $0, [$1]; }",
            "=&h,l,r", [addresses, mask], dtype=pointers.dtype.element_ty, is_pure=True, pack=1,
        )  # fmt: skip


@inline
def clear(flags, x):
    """A tile with zeros for the sequences with a flag. flags: to broadcast with it."""
    return tl.where(tl.broadcast_to(flags, (x.shape[0], x.shape[1])), 0.0, x)


@inline
def choose(flags, x, y):
    """x for the sequences with a flag, else y: tiles. flags: to broadcast with them."""
    return tl.where(tl.broadcast_to(flags, (x.shape[0], x.shape[1])), x, y)


@inline
def add_own(total, x):
    """total, (BLOCK_H, lanes), plus a tile's sequences, those of a thread in one: nothing is asked
    of another lane.
    """
    OWN: tl.constexpr = x.shape[1] // total.shape[1]
    if OWN == 1:
        return total + x
    elif OWN == 2:
        x_0, x_1 = tl.reshape(x, (total.shape[0], total.shape[1], OWN)).split()
        return (total + x_0) + x_1
    else:
        return total + tl.sum(tl.reshape(x, (total.shape[0], total.shape[1], OWN)), axis=2)


@inline
def as_columns(x_0, x_1):
    """Two halves of an operand, of fewer sequences than eight, as a product's columns."""
    K: tl.constexpr = x_0.shape[0]
    BLOCK_B: tl.constexpr = x_0.shape[1]
    x = tl.reshape(tl.join(x_0, x_1), (K, BLOCK_B, 1, 2))
    return tl.reshape(tl.broadcast_to(x, (K, BLOCK_B, 4 // BLOCK_B, 2)), (K, 8))


@inline
def order_units(h, OWN: tl.constexpr):
    """A tile, its units in the order of `to_operands`' columns."""
    BLOCK_H: tl.constexpr = h.shape[0]
    BLOCK_B: tl.constexpr = h.shape[1]
    x = tl.reshape(h, (BLOCK_H // (4 * OWN), 4, OWN // 4, 4, BLOCK_B))  # rest c v e b
    return tl.reshape(tl.permute(x, (0, 2, 1, 3, 4)), (BLOCK_H, BLOCK_B))


@inline
def order_gates(di, df):
    """The tiles of a pair of gates, (i, f) or (g, o), as one (2 BLOCK_H, BLOCK_B), units times
    gates in the order of `to_operands`' columns.
    """
    BLOCK_H: tl.constexpr = di.shape[0]
    BLOCK_B: tl.constexpr = di.shape[1]
    x = tl.reshape(tl.join(di, df), (BLOCK_H // 32, 4, 2, 4, BLOCK_B, 2))  # rest c v e b gate
    return tl.reshape(tl.permute(x, (0, 2, 5, 1, 3, 4)), (2 * BLOCK_H, BLOCK_B))


@inline
def split_units(x):
    """A tile's units of even and of odd number."""
    BLOCK_H: tl.constexpr = x.shape[0]
    BLOCK_B: tl.constexpr = x.shape[1]
    return tl.permute(tl.reshape(x, (BLOCK_H // 2, 2, BLOCK_B)), (0, 2, 1)).split()


@inline
def split_words(words):
    """Two 16-bit numbers of each word, as int16."""
    if INTERPRETED:
        return (words & 0xFFFF).to(tl.int16), (words >> 16).to(tl.int16)
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;", "=h,=h,r", [words], dtype=(tl.int16, tl.int16), is_pure=True,
            pack=1,
        )  # fmt: skip


@inline
def product(w, x, z=None):
    """W (num_warps, rows, K) @ x (K, N) or (num_warps, K, N), in float32: (num_warps, rows, N).

    z: of this shape, what the tensor core begins its sum with; None for zeros.
    """
    if len(x.shape) == 3:
        if INTERPRETED:
            return tl.dot(w.to(tl.float32), x.to(tl.float32), input_precision="ieee")
        else:
            return tl.dot(w, x, z)
    elif INTERPRETED:
        ROWS: tl.constexpr = w.shape[1]
        w = tl.reshape(w, (w.shape[0] * ROWS, w.shape[2])).to(tl.float32)
        d = tl.dot(w, x.to(tl.float32), input_precision="ieee")
        d = tl.reshape(d, (w.shape[0] // ROWS, ROWS, x.shape[1]))
        return d if z is None else z + d
    else:
        return tl.dot(w, tl.broadcast_to(x[None], (w.shape[0], x.shape[0], x.shape[1])), z)


@inline
def _own_sums(d, BLOCK_B: tl.constexpr):
    """Sums of a product, (num_warps, q, rest, 8 halves, N), to those of a tile: (num_warps, r, q,
    BLOCK_B, rest).
    """
    if BLOCK_B >= 8:
        return tl.permute(d, (0, 3, 1, 4, 2))
    else:
        W: tl.constexpr = d.shape[0]
        X: tl.constexpr = d.shape[2]
        d = tl.reshape(d, (W, 2, X, 2, 8, 4, 2))  # w q rest half r c half
        first, second = tl.permute(d, (0, 4, 1, 5, 2, 3, 6)).split()
        first, _ = first.split()
        _, second = second.split()
        d = first + second
        if BLOCK_B == 2:
            # Of the copies, which are in lanes, each keeps one unit.
            d_0, d_1 = tl.permute(d, (0, 1, 3, 4, 2)).split()  # w r c rest
            d = tl.where(tl.arange(0, 4)[None, None, :, None] % 2 == 0, d_0, d_1)
            d = tl.permute(tl.reshape(d, (W, 8, 2, 2, X)), (0, 1, 3, 2, 4))
        return d


@inline
def to_gates(d, BLOCK_B: tl.constexpr):
    """A product of all gates, (num_warps, 64 halves, N), to a tile for each gate."""
    W: tl.constexpr = d.shape[0]
    d = tl.reshape(d, (W, 2, 4, 8 * halves(BLOCK_B), d.shape[2]))  # w q gate r n
    i_g, f_o = tl.reshape(_own_sums(d, BLOCK_B), (16 * W, BLOCK_B, 2, 2)).split()
    i, g = i_g.split()
    f, o = f_o.split()
    return i, f, g, o


@inline
def from_gates(i, f, g, o):
    """The inverse of `to_gates`, of four sequences or more: what a product adds to."""
    W: tl.constexpr = i.shape[0] // 16
    BLOCK_B: tl.constexpr = i.shape[1]
    d = tl.join(tl.join(i, g), tl.join(f, o))
    d = tl.permute(tl.reshape(d, (W, 8, 2, BLOCK_B, 4)), (0, 2, 4, 1, 3))  # w q gate r b
    if BLOCK_B < 8:
        # The first half is added to, the second and what is of no use begin at zero.
        zero = tl.zeros(d.shape, tl.float32)
        d = tl.join(tl.join(d, zero), tl.join(zero, zero))
        d = tl.permute(d, (0, 1, 2, 6, 3, 4, 5))
    return tl.reshape(d, (W, 64 * halves(BLOCK_B), max(8, BLOCK_B)))


@inline
def to_units(d, BLOCK_B: tl.constexpr):
    """A product of units, (num_warps, 16 halves, N), to a tile."""
    W: tl.constexpr = d.shape[0]
    d = tl.reshape(d, (W, 2, 1, 8 * halves(BLOCK_B), d.shape[2]))
    return tl.reshape(_own_sums(d, BLOCK_B), (16 * W, BLOCK_B))


@inline
def pin(w):
    """The same registers, but of an origin the compiler cannot see. No instruction."""
    if INTERPRETED:
        return w
    else:
        return tl.inline_asm_elementwise("", "=r,0", [w], dtype=w.dtype, is_pure=True, pack=2)


@inline
def fence(x):
    """The same registers, but the compiler neither looks nor moves anything through here.

    No instruction. A pure asm it would look through.
    """
    if INTERPRETED:
        return x
    else:
        pack: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=pack)


@inline
def hide(pointer):
    """The same pointer, but of an origin the compiler cannot see. No instruction.

    For what is written after a loop where the loop writes, too: seen, each address there becomes
    a pointer that the loop moves.
    """
    if INTERPRETED:
        return pointer
    else:
        address = tl.inline_asm_elementwise(
            "", "=l,0", [pointer.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
        )
        return address.to(pointer.dtype)


@inline
def uniform(flag):
    """A scalar that all threads agree on, in a form that ptxas knows they do.

    After a branch on anything else it takes warps for split, and each later shuffle for a call.
    """
    if INTERPRETED:
        return flag
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $1, 0; vote.sync.any.pred p, p, -1; "
            "selp.s32 $0, 1, 0, p; }",
            "=r,r", [flag], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
