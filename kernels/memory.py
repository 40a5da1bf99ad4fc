"""What a step of the sequence kernels reads and writes that both kinds of them have alike."""

import triton.language as tl

from .layout import inline, load_in_place, pairs_to_tile, to_tile


@inline
def load_gates(pointers, mask, GATE: tl.constexpr):
    """i, f, g, o, which lie GATE apart, in memory order."""
    return (
        tl.load(pointers, mask=mask, other=0),
        tl.load(pointers + GATE, mask=mask, other=0),
        tl.load(pointers + 2 * GATE, mask=mask, other=0),
        tl.load(pointers + 3 * GATE, mask=mask, other=0),
    )


@inline
def loaded_tile(x, dtype: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """What was loaded in memory order, in dtype or two of dtype in a word, as a tile."""
    if x.dtype == tl.int32:
        return pairs_to_tile(x, BLOCK_H, BLOCK_B, dtype)
    else:
        return to_tile(x, BLOCK_H, BLOCK_B)


@inline
def load_biases(bias_ih_ptr, bias_hh_ptr, unit, H: tl.constexpr, FAST: tl.constexpr):
    """Both biases of i, f, g and o in one, to broadcast with the units, zeros from H on; if FAST
    half of them for i, f and o, as the cell has them.
    """
    b_i = _load_bias(bias_ih_ptr, bias_hh_ptr, unit, H)
    b_f = _load_bias(bias_ih_ptr + H, bias_hh_ptr + H, unit, H)
    b_g = _load_bias(bias_ih_ptr + 2 * H, bias_hh_ptr + 2 * H, unit, H)
    b_o = _load_bias(bias_ih_ptr + 3 * H, bias_hh_ptr + 3 * H, unit, H)
    if FAST:
        b_i, b_f, b_o = 0.5 * b_i, 0.5 * b_f, 0.5 * b_o
    return b_i, b_f, b_g, b_o


@inline
def _load_bias(bias_ih_ptr, bias_hh_ptr, unit, H: tl.constexpr):
    bias = load_in_place(bias_ih_ptr + unit, unit < H).to(tl.float32)
    return bias + load_in_place(bias_hh_ptr + unit, unit < H).to(tl.float32)


@inline
def save_step(i, f, g, o, c, steps_ptr, SIZE: tl.constexpr):
    """Write what backward needs of a step, packed."""
    offs = tl.arange(0, SIZE)
    tl.store(steps_ptr + offs, i)
    tl.store(steps_ptr + SIZE + offs, f)
    tl.store(steps_ptr + 2 * SIZE + offs, g)
    tl.store(steps_ptr + 3 * SIZE + offs, o)
    tl.store(steps_ptr + 4 * SIZE + offs, c)


@inline
def load_saved(steps_ptr, offs, SIZE: tl.constexpr, APART: tl.constexpr = False):
    """i, f, g, o of a step and the c before it, in private order."""
    return (
        load_packed(steps_ptr + offs, APART),
        load_packed(steps_ptr + SIZE + offs, APART),
        load_packed(steps_ptr + 2 * SIZE + offs, APART),
        load_packed(steps_ptr + 3 * SIZE + offs, APART),
        load_packed(steps_ptr - SIZE + offs, APART),
    )


@inline
def load_packed(pointers, APART: tl.constexpr):
    """Private order; if APART each number of 16 bits in the lower half of a word."""
    if APART:
        return tl.inline_asm_elementwise(
            "ld.global.u16 $0, [$1];", "=r,l", [pointers.to(tl.int64)], dtype=tl.int32,
            is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.load(pointers)
