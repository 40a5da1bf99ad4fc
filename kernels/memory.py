"""What a step of the sequence kernels reads and writes that both kinds of them have alike."""

import triton.language as tl

from .layout import inline


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
def save_step(i, f, g, o, c, steps_ptr, SIZE: tl.constexpr):
    """Write what backward needs of a step, packed."""
    offs = tl.arange(0, SIZE)
    tl.store(steps_ptr + offs, i)
    tl.store(steps_ptr + SIZE + offs, f)
    tl.store(steps_ptr + 2 * SIZE + offs, g)
    tl.store(steps_ptr + 3 * SIZE + offs, o)
    tl.store(steps_ptr + 4 * SIZE + offs, c)


@inline
def load_saved(steps_ptr, offs, SIZE: tl.constexpr):
    """i, f, g, o of a step and the c before it, in private order."""
    return (
        tl.load(steps_ptr + offs),
        tl.load(steps_ptr + SIZE + offs),
        tl.load(steps_ptr + 2 * SIZE + offs),
        tl.load(steps_ptr + 3 * SIZE + offs),
        tl.load(steps_ptr - SIZE + offs),
    )
