"""How far a program has come, told to another one of the same launch: several layers at once.

A layer needs a step only after the one below has taken it, so they can run side by side, each some
steps behind the one before (joint_forward.py, joint_backward.py). What passes between them lies in
memory in any case: h of each step and its product, in backward the gates' gradients and their
product. Besides it each program that others wait for has a counter, of the steps it has written,
which starts at 0.

A counter says so with release, which waits until all that the program has written is seen by the
others, hundreds of cycles; so it is told a few steps at a time, by a product before it waits for
the next ones. Its reader asks with acquire, hundreds of cycles too, so it asks only when the last
answer is used up. It may fall behind by asking, but then the next answer is of more steps.

All programs of a launch have to run, or some wait for ever: the launch is cooperative, as that of
slices (slices.py). Nobody waits in a circle: each stage waits for the one before it alone. In the
interpreter programs run one after the other, in that order, and find all they need.
"""

import triton.language as tl

from .layout import INTERPRETED, inline
from .words import SPIN_LIMIT


@inline
def steps_of_layer(T):
    """How many of T steps a layer takes between two times it tells how far it is, a power of two.

    Telling takes a layer as long as half a step (estimated), waiting the next one as long as so
    many: of few steps the second counts, of many the first.
    """
    return tl.where(T < 64, 4, tl.where(T < 384, 8, 16))


@inline
def of_layer(pointers, number):
    """That of a layer, out of a tuple of all layers' pointers to one thing; None of none."""
    pointer = pointers[0]
    if pointer is not None:
        for n in tl.static_range(1, len(pointers)):
            pointer = tl.where(number == n, pointers[n], pointer)
    return pointer


@inline
def tell(done_ptr, steps):
    """Say that this program has written so many steps, all of it before a barrier."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; .reg .b32 x; mov.u32 x, %tid.x; setp.ge.u32 p, x, 32; "
            "@p bra told_${:uid}; bar.warp.sync -1; setp.eq.s32 p, x, 0; "
            "@p st.release.gpu.global.b32 [$1], $2; told_${:uid}: mov.b32 $0, 0; }",
            "=r,l,r", [done_ptr.to(tl.int64), steps], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def tell_all(done_ptr, steps):
    """The same of the last step, too, which not all threads have left behind yet."""
    tl.debug_barrier()
    tell(done_ptr, steps)


@inline
def wait(ready_ptr, known, needed):
    """Wait until so many steps are there. known: how many were, when this thread asked last, 0 at
    first. Returns how many are.

    The vote lets ptxas know that a warp stays together.
    """
    if INTERPRETED:
        return known
    elif SPIN_LIMIT > 0:
        return _spin(ready_ptr, known, needed)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; mov.b32 $0, $1; setp.ge.s32 p, $0, $2; vote.sync.all.pred p, p, -1; "
            "@p bra there_${:uid}; again_${:uid}: ld.acquire.gpu.global.b32 $0, [$3]; "
            "setp.lt.s32 p, $0, $2; vote.sync.any.pred p, p, -1; @p bra again_${:uid}; "
            "there_${:uid}: }",
            "=&r,r,r,l", [known, needed, ready_ptr.to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def _spin(ready_ptr, known, needed):
    """Ask SPIN_LIMIT times at most, then say that it was in vain."""
    spins = 0
    while (known < needed) & (spins < SPIN_LIMIT):
        spins, known = spins + 1, _ask(ready_ptr)
    if known < needed:
        tl.device_print("fused_lstm: waited in vain for another layer's steps, of which", needed)
    return known


@inline
def _ask(ready_ptr):
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [ready_ptr.to(tl.int64)], dtype=tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip
