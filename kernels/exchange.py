"""How the warps of one program tell each other what the next product needs.

Every warp has the cells of its own units, and its product needs h of all units. So at every step
each writes its part to shared memory, waits for the others at a barrier, and reads all of it. Left
to itself the compiler does so with a second barrier, before the writing, lest somebody overwrite
what another still reads. Here are two buffers, by the parity of the step, and one barrier is
enough: a warp writes to a buffer again only after the barrier of the step between, which no warp
reaches before it has multiplied what it read.

The memory is the kernel's own and the compiler does not know of it; instructions that it may not
move keep writing, barrier and reading in order. In the interpreter a program is one thread, and
nothing is exchanged.
"""

import triton
import triton.language as tl

from .layout import (
    INTERPRETED,
    as_columns,
    fence,
    halves,
    inline,
    order_gates,
    order_units,
    split_units,
    split_words,
)


@triton.constexpr_function
def own_units(block_h, block_b):
    """Neighbouring units of h that a thread reads, and whose weights it has."""
    return min(16, block_h // (4 * halves(block_b)))


@triton.constexpr_function
def _second_half(block_h):
    """Where in a row, of fewer sequences than eight, the second half of the units begins: in other
    banks than what is read of the first at the same time.
    """
    return block_h + 16 if block_h == 128 else 64


@triton.constexpr_function
def _units_row(block_h, block_b):
    """Bytes of a sequence, whose ends keep apart in the banks what lanes write, and of eight also
    read, at the same time of different sequences.
    """
    if block_b >= 8:
        return 2 * block_h + 16
    return (_second_half(block_h) + block_h - 32 + 127) // 128 * 128 + 32


@triton.constexpr_function
def units_bytes(block_h, block_b):
    """Both buffers of a tile."""
    return 2 * block_b * _units_row(block_h, block_b)


@triton.constexpr_function
def _declaration(size):
    return f"{{ .shared .align 16 .b8 exchange[{size}]; mov.u32 $0, exchange; }}"


@inline
def shared_memory(SIZE: tl.constexpr):
    """The address of SIZE bytes of the program's shared memory."""
    if INTERPRETED:
        return 0
    else:
        return tl.inline_asm_elementwise(
            _declaration(SIZE), "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@inline
def write_units(h, address):
    """A tile, of 16-bit numbers, to the rows at address."""
    if not INTERPRETED:
        BLOCK_H: tl.constexpr = h.shape[0]
        BLOCK_B: tl.constexpr = h.shape[1]
        address += tl.arange(0, BLOCK_B)[None, :] * _units_row(BLOCK_H, BLOCK_B)
        if BLOCK_B == 2:
            # One unit a thread
            unit = tl.arange(0, BLOCK_H)[:, None]
            address += _place_of_pair(unit // 2, BLOCK_H, BLOCK_B) + unit % 2 * 2
            tl.inline_asm_elementwise(
                "st.shared.b16 [$1], $2; mov.b32 $0, 0;",
                "=r,r,h", [address, h], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            h_0, h_1 = split_units(h)
            address += _place_of_pair(tl.arange(0, BLOCK_H // 2)[:, None], BLOCK_H, BLOCK_B)
            tl.inline_asm_elementwise(
                "{ .reg .b32 pair; mov.b32 pair, {$2, $3}; st.shared.b32 [$1], pair; "
                "mov.b32 $0, 0; }",
                "=r,r,h,h", [address, h_0, h_1], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@inline
def _place_of_pair(pair, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Byte of a row. Of eight units the second and third pair change places: the first four words
    of a thread are then the operands of one block after the other.
    """
    PAIRS: tl.constexpr = BLOCK_H // 2 // halves(BLOCK_B)
    own = pair % PAIRS
    if own_units(BLOCK_H, BLOCK_B) >= 8:
        own = own // 4 * 4 + own % 2 * 2 + own // 2 % 2
    return pair // PAIRS * _second_half(BLOCK_H) + own * 4


@inline
def read_units(h, address):
    """What all warps wrote: of each thread the words that `to_operand` makes its operand of, four
    or, of four units, two, twice.
    """
    if INTERPRETED:
        return h, h, h, h
    else:
        BLOCK_H: tl.constexpr = h.shape[0]
        BLOCK_B: tl.constexpr = h.shape[1]
        OWN: tl.constexpr = own_units(BLOCK_H, BLOCK_B)
        V: tl.constexpr = max(1, OWN // 8)
        READS: tl.constexpr = max(1, BLOCK_H // halves(BLOCK_B) // 32)
        J: tl.constexpr = (BLOCK_B + 7) // 8
        i = tl.arange(0, J * READS * 2 * BLOCK_H)
        read = i // (2 * BLOCK_H)
        column = read // READS * 8 + i // 4 % 8
        unit = read % READS // V * (4 * OWN) + i % 4 * OWN + read % V * 8
        sequence = column // (8 * J // BLOCK_B)
        if BLOCK_B >= 8:
            address += sequence * _units_row(BLOCK_H, BLOCK_B) + unit * 2
        else:
            # In two sums: the order of these decides which registers the time loop gets.
            address += sequence * _units_row(BLOCK_H, BLOCK_B)
            address += column % 2 * _second_half(BLOCK_H) + unit * 2
        if OWN < 8:
            w_0, w_1 = tl.inline_asm_elementwise(
                "ld.shared.v2.b32 {$0, $1}, [$2];", "=r,=r,r", [address],
                dtype=(tl.int32, tl.int32), is_pure=False, pack=1,
            )  # fmt: skip
            return w_0, w_1, w_0, w_1
        else:
            return tl.inline_asm_elementwise(
                "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r", [address],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
            )  # fmt: skip


@inline
def to_operand(words, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr):
    """Operand B of the forward product: (num_warps, BLOCK_H / halves, N), the same of every warp,
    its units in the order of the weights' columns. In the interpreter without warps.
    """
    w_0, w_1, w_2, w_3 = words
    OWN: tl.constexpr = own_units(BLOCK_H, BLOCK_B)
    K: tl.constexpr = BLOCK_H // halves(BLOCK_B)
    if INTERPRETED:
        if BLOCK_B < 8:
            h_0, h_1 = tl.permute(tl.reshape(w_0, (2, K, BLOCK_B)), (1, 2, 0)).split()
            return as_columns(order_units(h_0, OWN), order_units(h_1, OWN))
        else:
            return order_units(w_0, OWN)
    else:
        J: tl.constexpr = (BLOCK_B + 7) // 8
        V: tl.constexpr = max(1, OWN // 8)
        # Joins in this order, and the compiler's kWidth is 4 (Triton 3.6, 3.8).
        x = tl.join(w_0, w_1)
        if OWN >= 8:
            x = tl.join(x, tl.join(w_2, w_3))
        x = tl.reshape(x, (J, K // (4 * OWN), V, BLOCK_H // 16, 8, 4, min(2, OWN // 4), 2))
        return _from_words(tl.permute(x, (3, 1, 2, 6, 5, 7, 0, 4)), K, DOT)


@inline
def _from_words(x, K: tl.constexpr, DOT: tl.constexpr):
    """Words of two neighbouring units, in the order w, rest, v, half of a block (of gates: gate),
    c, pair of units, j, r, to an operand of K numbers.
    """
    e_0, e_1 = split_words(x)
    x = tl.permute(tl.join(e_0, e_1), (0, 1, 2, 3, 4, 5, 8, 6, 7)).to(DOT, bitcast=True)
    return tl.reshape(x, (x.shape[0], K, 8 * x.shape[7]))


@inline
def again(words):
    """The same words for a second product: of one that two products share, the compiler converts
    the second for its own (Triton 3.6, 3.8).
    """
    w_0, w_1, w_2, w_3 = words
    return fence(w_0), fence(w_1), fence(w_2), fence(w_3)


@inline
def exchange_units(h, buffers, t):
    """h of all warps, of 16 bits, for `to_operand`. One barrier."""
    buffers += t % 2 * (units_bytes(h.shape[0], h.shape[1]) // 2)
    write_units(h, buffers)
    tl.debug_barrier()
    return read_units(h, buffers)


@triton.constexpr_function
def _second_gates(block_h):
    """Where in a row, of fewer sequences than eight, g and o begin, as `_second_half` has it."""
    return 4 * block_h + 64


@triton.constexpr_function
def _gates_row(block_h, block_b):
    """Bytes of a sequence, as `_units_row` has it."""
    if block_b >= 8:
        return 8 * block_h + 16
    return 2 * _second_gates(block_h) + 64 // block_b


@triton.constexpr_function
def gates_bytes(block_h, block_b):
    """Both buffers of the gradients of a tile's gates."""
    return 2 * block_b * _gates_row(block_h, block_b)


@triton.constexpr_function
def _write_gates_ptx(block_b, second):
    """PTX by which a thread writes the gradients of its pair of units, or of its unit."""
    if block_b == 2:
        return (
            "st.shared.b16 [$1], $2; st.shared.b16 [$1 + 4], $3; "
            f"st.shared.b16 [$1 + {second}], $4; st.shared.b16 [$1 + {second + 4}], $5; "
            "mov.b32 $0, 0;"
        )
    write = "st.shared.v4.b32 [$1], {i, f, g, o};"
    if block_b < 8:
        write = f"st.shared.v2.b32 [$1], {{i, f}}; st.shared.v2.b32 [$1 + {second}], {{g, o}};"
    return (
        "{ .reg .b32 i, f, g, o; mov.b32 i, {$2, $3}; mov.b32 f, {$4, $5}; "
        f"mov.b32 g, {{$6, $7}}; mov.b32 o, {{$8, $9}}; {write} mov.b32 $0, 0; }}"
    )


@inline
def write_gates(di, df, dg, do, address):
    """Four tiles, of 16-bit numbers, to the rows at address: i, f, g, o of a pair of units side by
    side, of fewer sequences than eight i and f, and g and o; and of 16 pairs those a thread reads
    at once, eight pairs apart in pairs of two.
    """
    if not INTERPRETED:
        BLOCK_H: tl.constexpr = di.shape[0]
        BLOCK_B: tl.constexpr = di.shape[1]
        PTX: tl.constexpr = _write_gates_ptx(BLOCK_B, _second_gates(BLOCK_H))
        SIZE: tl.constexpr = 16 // halves(BLOCK_B)
        address += tl.arange(0, BLOCK_B)[None, :] * _gates_row(BLOCK_H, BLOCK_B)
        if BLOCK_B == 2:
            unit = tl.arange(0, BLOCK_H)[:, None]
            address += _place_of_gates(unit // 2) * SIZE + unit % 2 * 2
            tl.inline_asm_elementwise(
                PTX, "=r,r,h,h,h,h", [address, di, df, dg, do],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            i_0, i_1 = split_units(di)
            f_0, f_1 = split_units(df)
            g_0, g_1 = split_units(dg)
            o_0, o_1 = split_units(do)
            address += _place_of_gates(tl.arange(0, BLOCK_H // 2)[:, None]) * SIZE
            tl.inline_asm_elementwise(
                PTX, "=r,r,h,h,h,h,h,h,h,h", [address, i_0, i_1, f_0, f_1, g_0, g_1, o_0, o_1],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@inline
def _place_of_gates(pair):
    return pair // 16 * 16 + pair // 2 % 2 * 8 + pair // 4 % 4 * 2 + pair % 2


@inline
def read_gates(di, df, dg, do, address):
    """What all warps wrote: of each thread the words that make its operands, those of all gates of
    a pair of units; of fewer sequences than eight of two gates of one pair, and of the next.
    """
    if INTERPRETED:
        return di, df, dg, do
    else:
        BLOCK_H: tl.constexpr = di.shape[0]
        BLOCK_B: tl.constexpr = di.shape[1]
        READS: tl.constexpr = BLOCK_H // 8 // halves(BLOCK_B)
        J: tl.constexpr = (BLOCK_B + 7) // 8
        i = tl.arange(0, J * READS * 2 * BLOCK_H)
        read = i // (2 * BLOCK_H)
        column = read // READS * 8 + i // 4 % 8
        sequence = column // (8 * J // BLOCK_B)
        if BLOCK_B >= 8:
            pair = read // 4 % (BLOCK_H // 32) * 16 + read // 2 % 2 * 8 + i % 4 * 2 + read % 2
            address += sequence * _gates_row(BLOCK_H, BLOCK_B) + pair * 16
        else:
            half = column % 2 * _second_gates(BLOCK_H)
            address += sequence * _gates_row(BLOCK_H, BLOCK_B) + half + (read * 4 + i % 4) * 16
        return tl.inline_asm_elementwise(
            "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r", [address],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip


@inline
def to_gate_operands(words, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr):
    """Operands B of the backward product: of gates i and f, and of g and o, each (num_warps,
    2 BLOCK_H, BLOCK_B), units times gates of the pair, in the order of the weights' columns. Of
    fewer sequences than eight one for all, (num_warps, 2 BLOCK_H, 8). In the interpreter without
    warps.
    """
    w_0, w_1, w_2, w_3 = words
    if INTERPRETED:
        x_0, x_1 = order_gates(w_0, w_1), order_gates(w_2, w_3)
        if BLOCK_B >= 8:
            return x_0, x_1
        else:
            return as_columns(x_0, x_1)
    elif BLOCK_B >= 8:
        # j, rest, v, v, w, r, c, gate
        SHAPE: tl.constexpr = (BLOCK_B // 8, BLOCK_H // 32, 2, 2, BLOCK_H // 16, 8, 4, 2)
        x_0 = tl.permute(tl.reshape(tl.join(w_0, w_1), SHAPE), (4, 1, 2, 7, 6, 3, 0, 5))
        x_1 = tl.permute(tl.reshape(tl.join(w_2, w_3), SHAPE), (4, 1, 2, 7, 6, 3, 0, 5))
        return _from_words(x_0, 2 * BLOCK_H, DOT), _from_words(x_1, 2 * BLOCK_H, DOT)
    else:
        x = tl.join(tl.join(w_0, w_2), tl.join(w_1, w_3))
        # j, rest, v, w, r, c, v, gate
        x = tl.reshape(x, (1, BLOCK_H // 32, 2, BLOCK_H // 16, 8, 4, 2, 2))
        return _from_words(tl.permute(x, (3, 1, 2, 7, 5, 6, 0, 4)), 2 * BLOCK_H, DOT)


@inline
def exchange_gates(di, df, dg, do, address):
    """The gates' gradients of all warps, of 16 bits, for `gates_product`. One barrier."""
    write_gates(di, df, dg, do, address)
    tl.debug_barrier()
    return read_gates(di, df, dg, do, address)


# A word of two bfloat16 and that of the lane with the next four units, the next eight and the other
# half: the largest numbers of eight lanes, which have the same sequences.
_LARGEST_OF_LANES = tl.constexpr(
    " ".join(
        f"shfl.sync.bfly.b32 y, x, {lanes}, 31, -1; max.NaN.bf16x2 x, x, y;" for lanes in (4, 8, 16)
    )
)


@triton.constexpr_function
def _largest_words(block_b):
    """Words of a warp: of two sequences each, but of fewer than eight each of one, whose largest
    number is then the larger one of a word.
    """
    return block_b if block_b < 8 else block_b // 2


@triton.constexpr_function
def largest_bytes(block_h, block_b):
    """A table of the words of all warps."""
    return 4 * (block_h // 16) * _largest_words(block_b)


@inline
def write_largest(x, address):
    """The largest number of each sequence among the units of this warp. x: a tile, none below 0.

    Rounded to bfloat16, whose range is float32's: half the shuffles, half the table.
    """
    if not INTERPRETED:
        WARPS: tl.constexpr = x.shape[0] // 16
        BLOCK_B: tl.constexpr = x.shape[1]
        WORDS: tl.constexpr = _largest_words(BLOCK_B)
        if BLOCK_B == 2:
            # One unit a thread, of even number or of odd: a half of the word
            unit = tl.arange(0, x.shape[0])[:, None]
            address += unit // 16 * (4 * WORDS) + tl.arange(0, WORDS)[None, :] * 4 + unit % 2 * 2
            tl.inline_asm_elementwise(
                "{ .reg .b32 x, y; .reg .b16 half; cvt.rn.bf16x2.f32 x, $2, $2; "
                + _LARGEST_OF_LANES
                + " mov.b32 {half, _}, x; st.shared.b16 [$1], half; mov.b32 $0, 0; }",
                "=r,r,f", [address, x],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            x_0, x_1 = split_units(x)
            if BLOCK_B > 4:
                x_0, x_1 = tl.reshape(tl.maximum(x_0, x_1), (x_0.shape[0], WORDS, 2)).split()
            x_0, x_1 = tl.reshape(x_0, (WARPS, 8, WORDS)), tl.reshape(x_1, (WARPS, 8, WORDS))
            warp = tl.arange(0, WARPS)[:, None, None]
            address += (warp * WORDS + tl.arange(0, WORDS)[None, None, :]) * 4
            tl.inline_asm_elementwise(
                "{ .reg .b32 x, y; cvt.rn.bf16x2.f32 x, $3, $2; "
                + _LARGEST_OF_LANES
                + " st.shared.b32 [$1], x; mov.b32 $0, 0; }",
                "=r,r,f,f", [tl.broadcast_to(address, (WARPS, 8, WORDS)), x_0, x_1],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@triton.constexpr_function
def _read_largest_ptx(warps, words):
    """PTX by which each lane reads the word of one warp, and all get the largest."""
    return (
        "{ .reg .b32 x, y; mov.u32 x, %laneid; shr.u32 x, x, 2; "
        f"and.b32 x, x, {warps - 1}; mad.lo.u32 x, x, {4 * words}, $2; ld.shared.b32 x, [x]; "
        + _LARGEST_OF_LANES.value
        + " shl.b32 $0, x, 16; and.b32 $1, x, 0xFFFF0000; }"
    )


@inline
def read_largest(x, address):
    """The largest of what all warps wrote, (1, BLOCK_B). x: what this one wrote, or, but in the
    interpreter, any tile of those sizes.
    """
    if INTERPRETED:
        return tl.max(x, axis=0)[None, :]
    else:
        BLOCK_B: tl.constexpr = x.shape[1]
        WORDS: tl.constexpr = _largest_words(BLOCK_B)
        x_0, x_1 = tl.inline_asm_elementwise(
            _read_largest_ptx(x.shape[0] // 16, WORDS), "=f,=f,r",
            [address + tl.arange(0, WORDS)[None, :] * 4],
            dtype=(tl.float32, tl.float32), is_pure=False, pack=1,
        )  # fmt: skip
        if BLOCK_B > 4:
            return tl.reshape(tl.join(x_0, x_1), (1, BLOCK_B))
        else:
            return tl.maximum(x_0, x_1)


@inline
def largest_of_all(x, address):
    """The largest number of each sequence among all units: (1, BLOCK_B). x: a tile, none below 0.
    One barrier. Nobody may still read the table at address.
    """
    write_largest(x, address)
    tl.debug_barrier()
    return read_largest(x, address)


@inline
def declare_overflow(always):
    """What `overflowed` needs, once. always: 1 where all warps are to say yes every time: with
    infinite weights, which make infinities in some warps' units only.
    """
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            ".reg .pred overflow, always; setp.ne.s32 always, $1, 0; "
            "or.pred overflow, always, always; mov.b32 $0, 0;",
            "=r,r", [always], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def overflowed(x):
    """Whether this warp has an infinity or a NaN in a tile: 1, else 0, in a form that ptxas knows
    all threads of the warp agree on.
    """
    if INTERPRETED:
        return (tl.max((tl.abs(x) < float("inf")).to(tl.int32) ^ 1)).to(tl.int32)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; .reg .f32 size; abs.f32 size, $1; "
            "setp.geu.f32 p, size, 0f7F800000; or.pred overflow, overflow, p; mov.b32 $0, 0; }",
            "=r,f", [x], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; vote.sync.any.pred p, overflow, -1; selp.s32 $0, 1, 0, p; "
            "or.pred overflow, always, always; }",
            "=r", [], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
