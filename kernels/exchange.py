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
    fence,
    inline,
    order_gates,
    order_units,
    repeat,
    split_units,
    split_words,
)


@triton.constexpr_function
def own_units(block_h):
    """Neighbouring units of h that a thread reads, and whose weights it has."""
    return min(16, block_h // 4)


@triton.constexpr_function
def _row_bytes(size, block_b):
    """Of one sequence, whose numbers are `size` bytes. What it has more of them keeps apart in the
    banks what the lanes write for different sequences, and read where a thread has 16 units.
    """
    return size + 128 // min(8, block_b)


@triton.constexpr_function
def units_bytes(block_h, block_b):
    """Both buffers of a tile."""
    return 2 * block_b * _row_bytes(2 * block_h, block_b)


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
    """A tile, of 16-bit numbers, to the rows at address.

    Of eight units the second and third pair change places: the first four words of a thread are
    then the operands of one block after the other.
    """
    if not INTERPRETED:
        BLOCK_H: tl.constexpr = h.shape[0]
        BLOCK_B: tl.constexpr = h.shape[1]
        address += tl.arange(0, BLOCK_B)[None, :] * _row_bytes(2 * BLOCK_H, BLOCK_B)
        if BLOCK_B == 2:
            # One unit a thread
            unit = tl.arange(0, BLOCK_H)[:, None]
            tl.inline_asm_elementwise(
                "st.shared.b16 [$1], $2; mov.b32 $0, 0;",
                "=r,r,h", [address + _place_of_pair(unit // 2) * 4 + unit % 2 * 2, h],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            h_0, h_1 = split_units(h)
            address += _place_of_pair(tl.arange(0, BLOCK_H // 2)[:, None]) * 4
            tl.inline_asm_elementwise(
                "{ .reg .b32 pair; mov.b32 pair, {$2, $3}; st.shared.b32 [$1], pair; "
                "mov.b32 $0, 0; }",
                "=r,r,h,h", [address, h_0, h_1], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@inline
def _place_of_pair(pair):
    return pair // 4 * 4 + pair % 2 * 2 + pair // 2 % 2


@inline
def read_units(h, address):
    """What all warps wrote: of each thread the words that `to_operand` makes its operand of."""
    if INTERPRETED:
        return h, h, h, h
    else:
        BLOCK_H: tl.constexpr = h.shape[0]
        BLOCK_B: tl.constexpr = h.shape[1]
        N: tl.constexpr = max(8, BLOCK_B)
        OWN: tl.constexpr = own_units(BLOCK_H)
        READS: tl.constexpr = BLOCK_H // 32
        i = tl.arange(0, BLOCK_H * BLOCK_H * N // 128)
        read = i // (2 * BLOCK_H)
        sequence = (read // READS * 8 + i // 4 % 8) // (N // BLOCK_B)
        unit = read % READS // (OWN // 8) * (4 * OWN) + i % 4 * OWN + read % (OWN // 8) * 8
        address += sequence * _row_bytes(2 * BLOCK_H, BLOCK_B) + unit * 2
        return tl.inline_asm_elementwise(
            "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r", [address],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip


@inline
def to_operand(words, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr):
    """Operand B of the forward product: (num_warps, BLOCK_H, BLOCK_B), the same of every warp, its
    units in the order of the weights' columns. In the interpreter (BLOCK_H, BLOCK_B).
    """
    w_0, w_1, w_2, w_3 = words
    OWN: tl.constexpr = own_units(BLOCK_H)
    if INTERPRETED:
        return repeat(order_units(w_0, OWN))
    else:
        J: tl.constexpr = (BLOCK_B + 7) // 8
        # Joins in this order, and the compiler's kWidth is 4 (Triton 3.6, 3.8).
        x = tl.join(tl.join(w_0, w_1), tl.join(w_2, w_3))
        x = tl.reshape(x, (J, BLOCK_H // (4 * OWN), OWN // 8, BLOCK_H // 16, 8, 4, 2, 2))
        x = tl.permute(x, (3, 1, 2, 6, 5, 7, 0, 4))  # w, rest, v, half, c, pair, j, r
        e_0, e_1 = split_words(x)
        x = tl.permute(tl.join(e_0, e_1), (0, 1, 2, 3, 4, 5, 8, 6, 7)).to(DOT, bitcast=True)
        return tl.reshape(x, (BLOCK_H // 16, BLOCK_H, 8 * J))


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
def gates_bytes(block_h, block_b):
    """Both buffers of the gradients of a tile's gates."""
    return 2 * block_b * _row_bytes(8 * block_h, block_b)


@inline
def write_gates(di, df, dg, do, address):
    """Four tiles, of 16-bit numbers, to the rows at address: i, f, g, o of a pair of units side by
    side, and of 16 pairs those a thread reads at once, eight pairs apart in pairs of two.
    """
    if not INTERPRETED:
        BLOCK_H: tl.constexpr = di.shape[0]
        BLOCK_B: tl.constexpr = di.shape[1]
        address += tl.arange(0, BLOCK_B)[None, :] * _row_bytes(8 * BLOCK_H, BLOCK_B)
        if BLOCK_B == 2:
            # One unit a thread
            unit = tl.arange(0, BLOCK_H)[:, None]
            address += _place_of_gates(unit // 2) * 16 + unit % 2 * 2
            tl.inline_asm_elementwise(
                "st.shared.b16 [$1], $2; st.shared.b16 [$1 + 4], $3; st.shared.b16 [$1 + 8], $4; "
                "st.shared.b16 [$1 + 12], $5; mov.b32 $0, 0;",
                "=r,r,h,h,h,h", [address, di, df, dg, do], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            i_0, i_1 = split_units(di)
            f_0, f_1 = split_units(df)
            g_0, g_1 = split_units(dg)
            o_0, o_1 = split_units(do)
            address += _place_of_gates(tl.arange(0, BLOCK_H // 2)[:, None]) * 16
            tl.inline_asm_elementwise(
                "{ .reg .b32 i, f, g, o; mov.b32 i, {$2, $3}; mov.b32 f, {$4, $5}; "
                "mov.b32 g, {$6, $7}; mov.b32 o, {$8, $9}; "
                "st.shared.v4.b32 [$1], {i, f, g, o}; mov.b32 $0, 0; }",
                "=r,r,h,h,h,h,h,h,h,h", [address, i_0, i_1, f_0, f_1, g_0, g_1, o_0, o_1],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@inline
def _place_of_gates(pair):
    return pair // 16 * 16 + pair // 2 % 2 * 8 + pair // 4 % 4 * 2 + pair % 2


@inline
def read_gates(di, df, dg, do, address):
    """What all warps wrote: of each thread the words that `to_gate_operand` makes operands of."""
    if INTERPRETED:
        return di, df, dg, do
    else:
        BLOCK_H: tl.constexpr = di.shape[0]
        BLOCK_B: tl.constexpr = di.shape[1]
        N: tl.constexpr = max(8, BLOCK_B)
        i = tl.arange(0, BLOCK_H * BLOCK_H * N // 32)
        read = i // (2 * BLOCK_H)
        sequence = (read // (BLOCK_H // 8) * 8 + i // 4 % 8) // (N // BLOCK_B)
        pair = read // 4 % (BLOCK_H // 32) * 16 + read // 2 % 2 * 8 + i % 4 * 2 + read % 2
        address += sequence * _row_bytes(8 * BLOCK_H, BLOCK_B) + pair * 16
        return tl.inline_asm_elementwise(
            "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r", [address],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip


@inline
def to_gate_operand(w_0, w_1, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr):
    """Operand B of the backward product of a pair of gates: (num_warps, 2 BLOCK_H, BLOCK_B), units
    times gates of the pair, in the order of the weights' columns. In the interpreter without warps.
    """
    if INTERPRETED:
        return repeat(order_gates(w_0, w_1))
    else:
        J: tl.constexpr = (BLOCK_B + 7) // 8
        x = tl.join(w_0, w_1)
        # j, rest, v, v, w, r, c, gate
        x = tl.reshape(x, (J, BLOCK_H // 32, 2, 2, BLOCK_H // 16, 8, 4, 2))
        x = tl.permute(x, (4, 1, 2, 7, 6, 3, 0, 5))
        e_0, e_1 = split_words(x)
        x = tl.permute(tl.join(e_0, e_1), (0, 1, 2, 3, 4, 5, 8, 6, 7)).to(DOT, bitcast=True)
        return tl.reshape(x, (BLOCK_H // 16, 2 * BLOCK_H, 8 * J))


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
    """Words of a warp: of two sequences each, but of four sequences each of one, twice."""
    return max(4, block_b // 2)


@triton.constexpr_function
def largest_bytes(block_h, block_b):
    """Two tables of a warp's words each."""
    return 2 * 4 * (block_h // 16) * _largest_words(block_b)


@inline
def write_largest(x, address):
    """The largest number of each sequence among the units of this warp. x: a tile, none below 0.

    Rounded to bfloat16, whose range is float32's: half the shuffles, half the table.
    """
    if not INTERPRETED:
        WARPS: tl.constexpr = x.shape[0] // 16
        BLOCK_B: tl.constexpr = x.shape[1]
        WORDS: tl.constexpr = _largest_words(BLOCK_B)
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
    """The largest of what all warps wrote, (1, BLOCK_B). x: a tile of those sizes."""
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
