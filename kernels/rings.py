"""What one program of a launch hands to the next, step by step: several layers at once.

A layer needs a step only after the one below has taken it, so they can run side by side, each some
steps behind the one before (joint_forward.py, joint_backward.py). The programs of a tile are stages
of which each hands on what it makes of a step: h, or its product; in backward the gates' gradients,
or their product. It goes through a ring of slots in memory, one for each step, in float32.

A word's lowest bit, far below what a product keeps, is a tag, which changes each time round the
ring. Who needs a step has read it a step before, and looks at the tags when it needs it; only what
was not there yet is read again. Word and tag are one access, so no order between words is needed,
and one trip through the second cache does it, where a counter takes two, and a fence.

Nobody overwrites what is still to be read: each stage says how many steps it has taken, once all
its threads have met after that, and the stage before it waits until there is room. The zeros that
the first tags differ from are written by the ring's reader, who says so with release, its one
fence, before anything is handed to it. tests/kernels/test_rings.py goes through every order in
which two stages can do this.

All programs of a launch have to run, or some wait for ever: the launch is cooperative, as that of
slices (slices.py). Nobody waits in a circle: for a step a stage waits for the one before it, for
room for the one after it, which then has steps to take. In the interpreter programs run one after
the other, and a ring has a slot for every step.
"""

from functools import cache

import triton
import triton.language as tl

from .layout import INTERPRETED, cell_number, cells_to_tile, fence, inline, lower_half
from .words import SPIN_LIMIT

# As many steps pass before a stage knows that there is room again (simulated).
SLOTS = 8


@cache
def rings_shape(stages, tiles, T, BLOCK_H, BLOCK_B):
    """Of a launch's rings, words of 32 bits, of each stage the one it hands on to: (stages, tiles,
    slots, 4 BLOCK_H BLOCK_B). Nothing has to be in them.
    """
    slots = max(SLOTS, 1 << (T - 1).bit_length()) if INTERPRETED else SLOTS
    return stages, tiles, slots, 4 * BLOCK_H * BLOCK_B


@inline
def of_layer(pointers, number):
    """That of a layer, out of a tuple of all layers' pointers to one thing; None of none."""
    pointer = pointers[0]
    if pointer is not None:
        for n in tl.static_range(1, len(pointers)):
            pointer = tl.where(number == n, pointers[n], pointer)
    return pointer


@inline
def stage_of(
    rings_ptr, taken_ptr, slots, tile, tiles, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr
):
    """What this program, a stage of a tile, has to do with others: the ring it takes from, which is
    emptied, and the one it hands on to; where it says how many steps it has taken, and where the
    next stage does; slots; whether it is handed anything, and whether anybody hears it.
    """
    SIZE: tl.constexpr = 4 * BLOCK_H * BLOCK_B
    rings_ptr = rings_ptr.to(tl.pointer_type(tl.float32), bitcast=True)
    stage = tl.program_id(1)
    handed, heard = stage > 0, stage + 1 < tl.num_programs(1)
    ring_ptr = rings_ptr + (stage * tiles + tile) * slots * SIZE
    from_ptr = ring_ptr - tiles * slots * SIZE
    # Of the last stage nobody takes anything: it has room where it has taken a step itself.
    room_ptr = taken_ptr + tl.where(heard, stage + 1, stage) * tiles + tile
    if handed and not INTERPRETED:
        for n in range(slots):
            tl.store(from_ptr + n * SIZE + tl.arange(0, SIZE), tl.zeros((SIZE,), tl.float32))
    _declare_registers()
    return from_ptr, ring_ptr, taken_ptr + stage * tiles + tile, room_ptr, slots, handed, heard


@inline
def start(stage):
    """Say that the ring that a stage takes from is empty, and wait until the next stage's is.
    Returns: how many steps that one has taken, and one.
    """
    room = 0
    if not INTERPRETED:
        _, _, taken_ptr, room_ptr, _, _, _ = stage
        tl.debug_barrier()
        tell(taken_ptr, 0, True)
        spins, room = 0, ask(room_ptr, True)
        while _again(_lacks(0, room, 1), spins):
            spins, room = spins + 1, ask(room_ptr, True)
    return room


@triton.constexpr_function
def _tell_ptx(release):
    """PTX of `tell`, by the first thread."""
    return (
        "{ .reg .pred p; .reg .b32 x; mov.u32 x, %tid.x; setp.eq.u32 p, x, 0; "
        f"@p st.{'release' if release else 'relaxed'}.gpu.global.b32 [$1], $2; mov.b32 $0, 0; }}"
    )


@inline
def tell(taken_ptr, steps, RELEASE: tl.constexpr = False):
    """Say that this stage has taken so many steps: all its threads have met since."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            _tell_ptx(RELEASE), "=r,l,r", [taken_ptr.to(tl.int64), steps + 1], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@triton.constexpr_function
def _ask_ptx(acquire, each):
    order = "acquire" if acquire else "relaxed"
    if each:
        return (
            "{ .reg .b64 x; cvt.u64.u32 x, zero; add.s64 x, x, $1; "
            f"ld.{order}.gpu.global.b32 $0, [x]; }}"
        )
    return f"ld.{order}.gpu.global.b32 $0, [$1];"


@inline
def ask(room_ptr, ACQUIRE: tl.constexpr = False, EACH: tl.constexpr = False):
    """How many steps the next stage has taken, and one.

    EACH: to the compiler each lane has its own answer. One that all have in common it may keep in a
    uniform register, for which backward would wait at the end of each step.
    """
    if INTERPRETED:
        return 0
    else:
        return tl.inline_asm_elementwise(
            _ask_ptx(ACQUIRE, EACH), "=r,l", [room_ptr.to(tl.int64)], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@inline
def slot(ring_ptr, step, slots, SIZE: tl.constexpr):
    return ring_ptr + (step & (slots - 1)) * SIZE


@inline
def slot_indices(
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, H: tl.constexpr, GATES: tl.constexpr = 1,
    PARTS: tl.constexpr = False,
):  # fmt: skip
    """Where a slot, (BLOCK_B, GATES, H), or in PARTS, has a tile's numbers of the first gate, and
    which of them are there: in the layout of a tile.
    """
    unit, sequence = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_B)[None, :]
    if PARTS:
        offs, _ = parts_indices(unit, sequence, BLOCK_B, H)
    else:
        offs = sequence * (GATES * H) + unit
    return offs, unit < H


@triton.constexpr_function
def in_parts(dtype, H):
    """Whether a slot of grad_output, of a layer of this dtype, has units of even and of odd number
    apart, (2, BLOCK_B, H / 2). Then words of two 16-bit numbers, (BLOCK_B, H / 2), are where the
    first part is, and one load reads either.
    """
    return dtype.primitive_bitwidth == 16 and H % 2 == 0 and not INTERPRETED


@inline
def parts_indices(unit, sequence, BLOCK_B: tl.constexpr, H: tl.constexpr):
    """Where a slot in parts has a unit of a sequence, and where it would have a word with it."""
    word = sequence * (H // 2) + unit // 2
    return word + unit % 2 * (BLOCK_B * (H // 2)), word


@inline
def gates_indices(BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Where a slot of gates has those of a tile's cells, four words side by side, so that a warp
    writes 512 bytes at once: in the layout of a tile. `gates_of` reads them in this order.
    """
    unit, sequence = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_B)[None, :]
    return 4 * cell_number(unit, sequence, BLOCK_H, BLOCK_B)


@inline
def gates_of(words, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """Numbers of a slot of gates, as memory has them, to a tile for each gate."""
    i_g, f_o = tl.reshape(words, (BLOCK_H * BLOCK_B, 2, 2)).split()
    i, g = i_g.split()
    f, o = f_o.split()
    i, f = cells_to_tile(i, BLOCK_H, BLOCK_B), cells_to_tile(f, BLOCK_H, BLOCK_B)
    return i, f, cells_to_tile(g, BLOCK_H, BLOCK_B), cells_to_tile(o, BLOCK_H, BLOCK_B)


@inline
def tag(step, slots):
    """Of the words of a step: 1 the first time round the ring, then 0 and 1 in turn."""
    return ((step & slots) == 0).to(tl.int32)


@inline
def _tagged(x, step, slots):
    return (x.to(tl.int32, bitcast=True) & ~1) | tag(step, slots)


@inline
def _untagged(words):
    """Words as numbers: zeros and infinities come out as what they were."""
    if INTERPRETED:
        return words
    else:
        return (words.to(tl.int32, bitcast=True) & ~1).to(tl.float32, bitcast=True)


@inline
def _one_of_two(words, odd, dtype: tl.constexpr):
    """The first of a word's two numbers of dtype, where odd holds the second."""
    words = words.to(tl.int32, bitcast=True)
    return lower_half(tl.where(odd, words >> 16, words), dtype)


@inline
def hand(pointers, x, inside, step, slots):
    """Write a tile for the next stage, where inside holds, in the layout it has: tl.store would
    first change to one of its own.
    """
    inside = tl.broadcast_to(inside, x.shape)
    if INTERPRETED:
        tl.store(pointers, x, mask=inside)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b32 [$1], $2; "
            "mov.b32 $0, 0; }", "=r,l,r,r",
            [pointers.to(tl.int64), _tagged(x, step, slots), inside.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def hand_gates(pointers, i, f, g, o, heard, step, slots):
    """Write a tile of each gate, as `hand` writes one, if anybody hears it."""
    if INTERPRETED:
        if heard:
            tl.store(pointers, i)
            tl.store(pointers + 1, f)
            tl.store(pointers + 2, g)
            tl.store(pointers + 3, o)
    else:
        i, f = _tagged(i, step, slots), _tagged(f, step, slots)
        g, o = _tagged(g, step, slots), _tagged(o, step, slots)
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $6, 0; "
            "@p st.relaxed.gpu.global.v4.b32 [$1], {$2, $3, $4, $5}; mov.b32 $0, 0; }",
            "=r,l,r,r,r,r,r", [pointers.to(tl.int64), i, f, g, o, heard.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def read(pointers, mask, tag):
    """Words of a ring, as they are by now; this tag where the mask is not, None for all."""
    if mask is None:
        return tl.load(pointers, volatile=True)
    else:
        return tl.load(pointers, mask=mask, other=tag.to(tl.float32, bitcast=True), volatile=True)


@inline
def read_four(pointers, mask, GATE: tl.constexpr, tag):
    """The same of i, f, g, o, which lie GATE apart."""
    return (
        read(pointers, mask, tag),
        read(pointers + GATE, mask, tag),
        read(pointers + 2 * GATE, mask, tag),
        read(pointers + 3 * GATE, mask, tag),
    )


@inline
def wait(
    x, pointers, mask, tag, handed, room_ptr, room, needed, odd=None, dtype: tl.constexpr = None
):
    """The numbers that `read` has read, once all of them are there and there is as much room as
    needed. Returns: also how much room there is. mask: None of a stage that always is handed all;
    handed: 1, or 0 of one that is handed nothing. odd: of such a one, if it has read words of two
    numbers of dtype, where the second is meant.
    """
    if not INTERPRETED:
        spins = 0
        _look(x, tag)
        while _again(_lacks(handed, room, needed), spins):
            spins, room = spins + 1, ask(room_ptr)
            x = _read_again(x, pointers, mask, tag, handed)
            _look(x, tag)
    if odd is None:
        return _untagged(x), room
    else:
        return tl.where(handed > 0, _untagged(x), _one_of_two(x, odd, dtype)), room


@inline
def wait_four(i, f, g, o, pointers, mask, GATE: tl.constexpr, tag, handed, room_ptr, room, needed):
    """The same of what `read_four` has read."""
    if not INTERPRETED:
        spins = 0
        _look_at_four(i, f, g, o, tag)
        while _again(_lacks(handed, room, needed), spins):
            spins, room = spins + 1, ask(room_ptr)
            i = _read_again(i, pointers, mask, tag, handed)
            f = _read_again(f, pointers + GATE, mask, tag, handed)
            g = _read_again(g, pointers + 2 * GATE, mask, tag, handed)
            o = _read_again(o, pointers + 3 * GATE, mask, tag, handed)
            _look_at_four(i, f, g, o, tag)
    return _untagged(i), _untagged(f), _untagged(g), _untagged(o), room


@inline
def _read_again(x, pointers, mask, tag, handed):
    """What a stage has that nothing is handed to, but which waits for room, it keeps."""
    if mask is None:
        return read(pointers, None, tag)
    else:
        # Fenced, or the compiler makes two loops of one.
        handed = fence(handed) > 0
        return tl.where(handed, read(pointers, mask & handed, tag), x)


@inline
def _declare_registers():
    """What `_look` and `_lacks` need, once; and a zero of each lane, for `ask`."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            ".reg .b32 missing, zero; mov.b32 missing, 0; mov.u32 zero, %laneid; "
            "shr.u32 zero, zero, 5; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip


@inline
def _look(words, tag):
    """Keep in mind whether words of this thread lack this tag."""
    tl.inline_asm_elementwise(
        "{ .reg .b32 x; xor.b32 x, $1, $2; or.b32 missing, missing, x; mov.b32 $0, 0; }", "=r,r,r",
        [words.to(tl.int32, bitcast=True), tag], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@inline
def _look_at_four(i, f, g, o, tag):
    _look(i, tag)
    _look(f, tag)
    _look(g, tag)
    _look(o, tag)


@inline
def _lacks(handed, room, needed):
    """Whether this warp has seen words without their tag, if any are handed to it, or has less room
    than needed: 1, else 0, in a form that ptxas knows all threads of the warp agree on.
    """
    return tl.inline_asm_elementwise(
        "{ .reg .pred p, q; and.b32 missing, missing, $1; setp.lt.s32 p, $2, $3; "
        "setp.ne.s32 q, missing, 0; or.pred p, p, q; vote.sync.any.pred p, p, -1; "
        "selp.s32 $0, 1, 0, p; mov.b32 missing, 0; }",
        "=r,r,r,r", [handed, room, needed], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@inline
def _again(lacks, spins):
    """Whether to read again; SPIN_LIMIT times at most, after which it says that it was in vain."""
    if SPIN_LIMIT > 0:
        if (lacks > 0) & (spins == SPIN_LIMIT):
            tl.device_print("fused_lstm: waited in vain for another layer's steps, times", spins)
        return (lacks > 0) & (spins < SPIN_LIMIT)
    else:
        return lacks > 0
