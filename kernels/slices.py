"""Slices: several programs share the units of one tile, since W_hh no longer fits one of them.

A slice owns 16 units and their rows of W_hh; its tile is a (BLOCK_B, BLOCK_H) tensor as memory has
it, at most two numbers a thread. What a step needs of the other slices goes through memory
(words.py):

    forward     h of the step before: every slice needs all of it
    backward    W_hh^T dz of its own units is, of each slice, a part of dh for all: the owner sums
                the parts, always in the same order

All slices of a tile have to run, or the others wait forever: the launch is cooperative, and CUDA
starts it only when all its programs fit the card at once, also beside those of other streams.
Launched one step at a time, kernels need not wait at all, and take h, c and dh, dc from memory;
that is how the interpreter runs them, one program after another.

A warp has a part of W_hh's columns, 32 at a time in turn with the others. It reads only their h,
straight into the registers of operand B, and what the warps have multiplied is summed in shared
memory. Where a tile has more sequences than there are, nobody reads anything of those.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import config
from .launching import launch
from .layout import INTERPRETED, inline, product, split_words, step_rows


class Meeting(NamedTuple):
    """How the slices of a launch exchange. Tensors as the kernels' docstrings have them.

    at_once: tiles of one launch, whose programs are all resident; 0 for a launch for each step,
    which takes states.
    """

    exchange: Any
    states: Any
    at_once: int


def launch_slices(kernel, arguments, layer, T, B, H, D, tile, meeting):
    """Launch a kernel of slices as they meet, as a Meeting says."""
    tiles, S = -(-B // tile["BLOCK_B"]), config.slices(H, tile)
    exchange, states, at_once = meeting
    if at_once == 0:
        parts = [((tiles, D, S), t, t + 1, 0) for t in range(T)]
    else:
        first_tiles = range(0, tiles, at_once)
        parts = [((min(at_once, tiles - n), D, S), 0, T, n) for n in first_tiles]
    for grid, begin, end, first_tile in parts:
        numbers = layer, T, B, begin, end, first_tile, tiles, H, D
        launch(
            kernel, grid, *arguments, exchange, states, *numbers, **tile,
            launch_cooperative_grid=at_once > 0,
        )  # fmt: skip


@inline
def slice_indices(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Unit, of all, and sequence of a slice's tile, which is as memory has it: (1, BLOCK_H) and
    (BLOCK_B, 1).
    """
    unit = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    return unit[None, :], tl.arange(0, BLOCK_B)[:, None]


@inline
def slice_rows(offsets_ptr, step, T, backwards):
    """`step_rows` in 32 bits: the gates of more rows of so many units no memory holds."""
    begin, count = step_rows(offsets_ptr, step, T, backwards)
    return begin.to(tl.int32), count


@inline
def to_flat(x, dtype: tl.constexpr):
    """A slice's tile as only our kernels read it: (BLOCK_B BLOCK_H,)."""
    return tl.reshape(x.to(dtype), (x.shape[0] * x.shape[1],))


@inline
def from_flat(x, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The inverse of `to_flat`, in float32."""
    return tl.reshape(x, (BLOCK_B, BLOCK_H)).to(tl.float32)


@inline
def slice_product(w, h):
    """W_hh h of the units of a slice: a tile for each gate."""
    PARTS: tl.constexpr = w.shape[0]
    BLOCK_B: tl.constexpr = h.shape[2]
    # Block 2 q + pair: units of parity q, gates (i, f) or (g, o)
    z = tl.reshape(product(w, h), (PARTS // 2, 2, 2, 2, 2, 8, BLOCK_B))
    # One exchange brings the parts together, the rest is each thread's own sum. Units are the
    # fastest of what is left, so they lie side by side in a warp.
    a, b = tl.permute(z, (0, 3, 4, 6, 5, 2, 1)).split()  # part pair gate b r q part
    z = a + b
    if PARTS >= 4:
        z = _sum_halves(tl.reshape(z, (PARTS // 4, 2, 2, 2, BLOCK_B, 16)))
    if PARTS >= 8:
        z = _sum_halves(tl.reshape(z, (PARTS // 8, 2, 2, 2, BLOCK_B, 16)))
    i_f, g_o = tl.permute(tl.reshape(z, (2, 2, BLOCK_B, 16)), (2, 3, 1, 0)).split()
    i, f = i_f.split()
    g, o = g_o.split()
    return i, f, g, o


@inline
def _sum_halves(z):
    a, b = tl.permute(z, (0, 2, 3, 4, 5, 1)).split()
    return a + b


# Of one sequence: 64 numbers of 16 bits, and what keeps apart in the banks what lanes read, where
# the inverse of their scale has room.
_ROW = tl.constexpr(2 * 64 + 16)


@triton.constexpr_function
def slice_bytes(block_b):
    """Both buffers of `slice_operand`."""
    return 2 * block_b * _ROW.value


@inline
def slice_operand(di, df, dg, do, inverse, buffers, step, PARTS: tl.constexpr):
    """Operand B of a slice's backward product: (num_warps, 64, BLOCK_B), the same of every warp, of
    four tiles of 16-bit numbers, gate by gate. One barrier, as in exchange.py, whose memory it is.
    inverse: what `read_inverse` is to read, a tile with one number for each sequence, or None.

    Lane c multiplies units 4 c to 4 c + 3, and reads a pair of them at once, of all gates.
    """
    BLOCK_B: tl.constexpr = di.shape[0]
    if INTERPRETED:
        x = tl.join(tl.join(di, dg), tl.join(df, do))  # b unit gate
        return tl.reshape(tl.permute(x, (2, 3, 1, 0)), (64, BLOCK_B))
    else:
        J: tl.constexpr = BLOCK_B // 8
        buffers += step % 2 * (BLOCK_B * _ROW)
        unit = tl.arange(0, 16)[None, :]
        place = unit // 4 * 32 + unit // 2 % 2 * 16 + unit % 2 * 2
        place += tl.arange(0, BLOCK_B)[:, None] * _ROW
        tl.inline_asm_elementwise(
            "st.shared.b16 [$1], $2; st.shared.b16 [$1 + 4], $3; st.shared.b16 [$1 + 8], $4; "
            "st.shared.b16 [$1 + 12], $5; mov.b32 $0, 0;",
            "=r,r,h,h,h,h", [buffers + place, di, df, dg, do],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        if inverse is not None:
            # Of its first unit's thread
            tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.eq.s32 p, $3, 0; @p st.shared.b32 [$1], $2; mov.b32 $0, 0; }",
                "=r,r,f,r",
                [buffers + tl.arange(0, BLOCK_B)[:, None] * _ROW + 128, inverse, unit],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        tl.debug_barrier()
        n = tl.arange(0, 64 * J * PARTS)  # j pair w r c
        sequence = n // (64 * PARTS) * 8 + n // 4 % 8
        w_i, w_f, w_g, w_o = tl.inline_asm_elementwise(
            "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,r",
            [buffers + sequence * _ROW + n % 4 * 32 + n // (32 * PARTS) % 2 * 16],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
        x = tl.join(tl.join(w_i, w_g), tl.join(w_f, w_o))
        x = tl.reshape(x, (J, 2, PARTS, 8, 4, 2, 2))
        x = tl.permute(x, (2, 5, 6, 4, 1, 0, 3))  # w gate gate c pair j r
        e_0, e_1 = split_words(x)
        x = tl.permute(tl.join(e_0, e_1), (0, 1, 2, 3, 4, 7, 5, 6)).to(di.dtype, bitcast=True)
        return tl.reshape(x, (PARTS, 64, BLOCK_B))


@inline
def read_inverse(inverse, buffers, step):
    """What `slice_operand` was given, as the product has sequences: (1, 1, BLOCK_B)."""
    BLOCK_B: tl.constexpr = inverse.shape[0]
    if INTERPRETED:
        return tl.max(inverse, axis=1)[None, None, :]
    else:
        buffers += step % 2 * (BLOCK_B * _ROW) + 128
        return tl.inline_asm_elementwise(
            "ld.shared.f32 $0, [$1];", "=f,r",
            [buffers + tl.arange(0, BLOCK_B)[None, None, :] * _ROW],
            dtype=tl.float32, is_pure=False, pack=1,
        )  # fmt: skip
