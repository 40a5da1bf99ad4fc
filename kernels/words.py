"""Words that slices exchange through memory: h, or parts of dh, each with the step that wrote it.

Nobody waits at a barrier. A number travels with a tag that says which step wrote it (`tag`), and
who needs the number reads until it has that step's. A part of dh is a word of 32 bits, of which the
lowest two, far below what the sum keeps, are the tag; h is rounded to the operand's 16 bits, of
which one is to spare. Either is one access, so tag and number belong together, and no order between
words is needed. One trip through the second cache does it, where a counter takes three, and a
fence.

There are two buffers, by the parity of the step. Of step t the slices write one while some still
read the other, and why nobody overwrites what is still to be read: a slice writes words of step
t + 2 after all its threads have read all words of step t + 1, of all slices; each of these was
written after all threads of its slice had read all words of step t, which is what is overwritten.
Both times "after all threads" is the barrier of the program between its reading and its writing,
without which it cannot exchange what it multiplies. A slice therefore has to read the words of all
slices in every step. Tags count the writes of a buffer, modulo 4, those of h modulo 2. Read again,
a word is never older than before, so it is enough that they differ from one write to the next, and
from the zeros before the first. The buffers are zeroed before each launch, also by a CUDA graph
that replays it, so that nothing of an earlier launch can be taken for this one's.
tests/kernels/test_exchange.py goes through every order in which a few programs can do this.
"""

import os

import triton
import triton.language as tl

from .layout import INTERPRETED, inline, split_words

# For debugging: how often a word is read in vain before its reader says so and goes on with what is
# there; 0, which costs nothing, for ever.
SPIN_LIMIT = tl.constexpr(int(os.environ.get("FUSED_LSTM_SPIN_LIMIT", "0")))


@inline
def tag(t):
    """Of the words that step t reads, from buffer t % 2; those before the first step have none, 0.

    Step t writes what step t + 1 reads.
    """
    return (t + 1) // 2 % 4


@inline
def write_words(pointers, x, live, t):
    """Write float32 numbers of the first `live` sequences, which are the fastest dimension, for the
    step after t, as a product leaves them: tl.store would first change to a layout of its own. An
    infinity may come out of it as a NaN.
    """
    word = (x.to(tl.int32, bitcast=True) & ~3) | tag(t + 1)
    alive = tl.broadcast_to(tl.arange(0, x.shape[2])[None, None, :] < live, x.shape)
    if INTERPRETED:
        tl.store(pointers, word.to(tl.float32, bitcast=True), mask=alive)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b32 [$1], $2; "
            "mov.b32 $0, 0; }", "=r,l,r,r",
            [pointers.to(tl.int64), word, alive.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def write_h(pointers, h, t):
    """Write h, of 16 bits, for the step after t. A NaN comes out of its rounding with all ones."""
    word = ((h.to(tl.int16, bitcast=True) & ~_TAGS) | tag(t + 1) % 2 * _TAGS).to(tl.int16)
    if INTERPRETED:
        tl.store(pointers, word)
    else:
        tl.inline_asm_elementwise(
            "st.relaxed.gpu.global.b16 [$1], $2; mov.b32 $0, 0;", "=r,l,h",
            [pointers.to(tl.int64), word], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@inline
def _stale(word, t):
    """Whether a word is not the one that step t reads: 1, else 0."""
    if word.dtype == tl.int16:
        return ((word.to(tl.int32) & _TAGS) != tag(t) % 2 * _TAGS).to(tl.int32)
    else:
        return (((word.to(tl.int32, bitcast=True) ^ tag(t)) & 3) != 0).to(tl.int32)


@triton.constexpr_function
def _stale_ptx(words, expected):
    """PTX that has predicate p say whether a tag among words is not that of `expected`: four chains
    side by side, since one would take 4 cycles a word.
    """
    lines = [f"mov.b32 x{n}, 0;" for n in range(4)]
    # The table of x or (word xor expected)
    lines += [f"lop3.b32 x{n % 4}, {w}, {expected}, x{n % 4}, 0xBE;" for n, w in enumerate(words)]
    lines.append("or.b32 x0, x0, x1; or.b32 x2, x2, x3; or.b32 x0, x0, x2;")
    return " ".join(lines) + " and.b32 x0, x0, 3; setp.ne.b32 p, x0, 0;"


# Of h, 16 bits: |h| is at most 1, so that the highest bit of its exponent is 0 but in a NaN, and is
# where the tag travels. What it leaves of a NaN is a number above 1, which is made a NaN again. One
# bit is enough for a tag: they alternate, and the first is not that of the zeros before.
_TAGS = tl.constexpr(0x4000)


@triton.constexpr_function
def _beyond_one(dtype):
    """What added to |h| carries into the tag's bit if it is above 1: of 16 bits."""
    return _TAGS.value - 1 - (0x3C00 if dtype == tl.float16 else 0x3F80)


@triton.constexpr_function
def _read_four(count, dtype):
    """PTX that reads four of dtype from each of `count` pointers, again and again until all tags
    are right. All reads are on their way together. Results are words of two, without tags.
    """
    words = [f"${n}" for n in range(2 * count)]
    both, beyond = 0x10001 * _TAGS.value, 0x10001 * _beyond_one(dtype)
    lines = [f"{{ .reg .pred p; .reg .b32 x<5>; .reg .b16 h<{4 * count}>; again_${{:uid}}:"]
    for j in range(count):
        four = ", ".join(f"h{4 * j + q}" for q in range(4))
        lines.append(f"ld.relaxed.gpu.global.v4.b16 {{{four}}}, [${2 * count + j}];")
    for n in range(2 * count):
        pair = n % count * 4 + n // count * 2
        lines.append(f"mov.b32 ${n}, {{h{pair}, h{pair + 1}}}; xor.b32 ${n}, ${n}, ${3 * count};")

    def any_of(to_test):
        """Predicate p: whether a tag's bit is set in any of what this makes of the words."""
        made = [f"mov.b32 x{n}, 0;" for n in range(4)]
        made += [f"{to_test(word)} or.b32 x{n % 4}, x{n % 4}, x4;" for n, word in enumerate(words)]
        made.append("or.b32 x0, x0, x1; or.b32 x2, x2, x3; or.b32 x0, x0, x2;")
        return " ".join(made) + f" and.b32 x0, x0, {both}; setp.ne.b32 p, x0, 0;"

    lines.append(any_of(lambda word: f"mov.b32 x4, {word};") + " @p bra again_${:uid};")
    lines.append(any_of(lambda word: f"add.u32 x4, {word}, {beyond};") + " @!p bra all_${:uid};")
    for word in words:
        lines.append(f"add.u32 x4, {word}, {beyond}; and.b32 x4, x4, {both}; shr.u32 x4, x4, 14;")
        lines.append(f"mul.lo.u32 x4, x4, 0x7FFF; or.b32 {word}, {word}, x4;")
    return " ".join(lines) + " all_${:uid}: }"


@triton.constexpr_function
def _read_four_constraints(count):
    return ",".join(["=&r"] * (2 * count) + ["l"] * count + ["r"] * count)


@triton.constexpr_function
def _sum(count, stride):
    """PTX that, of a live sequence, reads `count` numbers, `stride` bytes apart, again and again
    until all tags are right, and adds them as `_sum_of` does; else 0.
    """
    words = [f"w{n}" for n in range(count)]
    lines = [
        f"{{ .reg .pred p; .reg .b32 x<4>, w<{count}>; .reg .f32 f<5>; mov.b32 $0, 0; "
        "setp.eq.s32 p, $3, 0; @p bra none_${:uid}; again_${:uid}:"
    ]
    lines += [f"ld.relaxed.gpu.global.b32 {w}, [$1 + {n * stride}];" for n, w in enumerate(words)]
    lines.append(_stale_ptx(words, "$2") + " @p bra again_${:uid};")
    for n, w in enumerate(words):
        if n < 4:
            lines.append(f"mov.b32 f{n}, {w};")
        else:
            lines.append(f"mov.b32 f4, {w}; add.f32 f{n % 4}, f{n % 4}, f4;")
    return (
        " ".join(lines)
        + " add.f32 f0, f0, f1; add.f32 f2, f2, f3; add.f32 $0, f0, f2; none_${:uid}: }"
    )


@inline
def h_offsets(unit, sequence, BLOCK_B: tl.constexpr):
    """Where the exchange of a tile has h: (units / 32, BLOCK_B / 8, v, 8 sequences, c, 4 units).

    Of 32 units lane c multiplies eight, in two accesses.
    """
    slow = (unit // 32 * (BLOCK_B // 8) + sequence // 8) * 2 + unit % 8 // 4
    return slow * 128 + sequence % 8 * 16 + unit % 32 // 8 * 4 + unit % 4


@inline
def load_h(
    h_ptr, live, t, S: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr, DOT: tl.constexpr, MEET: tl.constexpr,
):  # fmt: skip
    """h of a tile as operand B: (num_warps, columns, BLOCK_B), of each warp its columns' units.

    live: sequences that there are; where a tile has more, the last one's again, which takes no
    bandwidth. S: slices; MEET: wait for those of step t.
    """
    J: tl.constexpr = BLOCK_B // 8
    i = tl.arange(0, BLOCK_K * BLOCK_B // 4)
    slow = i // (32 * PARTS)  # rest, j, v
    group = slow // (2 * J) * PARTS + i // 32 % PARTS
    c = i % 4
    if 16 * S < BLOCK_K:
        # Units that no slice has are multiplied by zeros, but nobody writes their words: the first
        # slice's instead.
        missing = group * 2 + c // 2 >= S
        group = tl.where(missing, 0, group)
        c = tl.where(missing, c % 2, c)
    sequence = tl.minimum(slow // 2 % J * 8 + i // 4 % 8, live - 1)
    begin = sequence // 8 * 256 + sequence % 8 * 16
    pointers = h_ptr + (group * (2 * J) + slow % 2) * 128 + begin + c * 4
    COUNT: tl.constexpr = min(8, 2 * J * BLOCK_K // (32 * PARTS))
    w_0, w_1 = _two_words(pointers, t, COUNT, MEET, DOT)
    x = tl.reshape(tl.join(w_0, w_1), (BLOCK_K // (32 * PARTS), J, 2, PARTS, 8, 4, 2))
    e_0, e_1 = split_words(tl.permute(x, (3, 0, 2, 5, 6, 1, 4)))  # w rest v c pair j r
    x = tl.permute(tl.join(e_0, e_1), (0, 1, 2, 3, 4, 7, 5, 6)).to(DOT, bitcast=True)
    return tl.reshape(x, (PARTS, BLOCK_K // PARTS, BLOCK_B))


@inline
def _two_words(pointers, t, COUNT: tl.constexpr, MEET: tl.constexpr, DOT: tl.constexpr):
    """Four neighbouring numbers from each pointer, two in a word. COUNT: pointers of a thread at
    once.
    """
    if MEET and SPIN_LIMIT == 0 and not INTERPRETED:
        tags = tl.zeros(pointers.shape, tl.int32) + tag(t) % 2 * (0x10001 * _TAGS)
        # Pure, or Triton reads once more, in another layout, for nothing. The tag is another one in
        # each step, so it does not leave the loop.
        return tl.inline_asm_elementwise(
            _read_four(COUNT, DOT), _read_four_constraints(COUNT), [pointers.to(tl.int64), tags],
            dtype=(tl.int32, tl.int32), is_pure=True, pack=COUNT,
        )  # fmt: skip
    else:
        if MEET:
            _spin(pointers, t)
            _spin(pointers + 1, t)
            _spin(pointers + 2, t)
            _spin(pointers + 3, t)
        return (
            _untagged(pointers, DOT) & 0xFFFF | _untagged(pointers + 1, DOT) << 16,
            _untagged(pointers + 2, DOT) & 0xFFFF | _untagged(pointers + 3, DOT) << 16,
        )


@inline
def _untagged(pointers, DOT: tl.constexpr):
    """As the PTX above has it."""
    h = tl.load(pointers, cache_modifier=".cg").to(tl.int32) & ~_TAGS
    return tl.where(((h + _beyond_one(DOT)) & _TAGS) != 0, h | 0x7FFF, h)


@inline
def _spin(pointers, t):
    """Read until the words are those of step t, SPIN_LIMIT times at most, then say that they are
    not. The interpreter runs nobody else meanwhile, unless a test does (tests/kernels/meeting.py).
    """
    spins = 0
    stale = tl.max(_stale(tl.load(pointers, volatile=True), t).ravel(), axis=0)
    while (stale > 0) & (spins < SPIN_LIMIT):
        spins += 1
        stale = tl.max(_stale(tl.load(pointers, volatile=True), t).ravel(), axis=0)
    if stale > 0:
        tl.device_print("fused_lstm: waited in vain for the words of step", t)


@inline
def part_offsets(
    NUM_WARPS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_B: tl.constexpr, S: tl.constexpr
):
    """Where a slice's parts of dh go: (num_warps, rows of a warp, BLOCK_B), 16 rows to each owner.

    In memory (owners, writers, BLOCK_B, 16); some owners have no units, so that none is left out.
    """
    # A sum of a number for each dimension, of which a thread's registers differ by constants.
    warp = tl.arange(0, NUM_WARPS)[:, None, None, None] * BLOCKS
    owner = (warp + tl.arange(0, BLOCKS)[None, :, None, None]) * (S * 16 * BLOCK_B)
    row = tl.arange(0, 16)[None, None, :, None]
    offs = owner + row + tl.arange(0, BLOCK_B)[None, None, None, :] * 16
    return tl.reshape(offs, (NUM_WARPS, 16 * BLOCKS, BLOCK_B))


@triton.constexpr_function
def _sums(slices, size, warps):
    """Sums that a number's parts are added in: two where there are as many threads for each."""
    return 2 if 32 * warps >= 2 * size and slices % 2 == 0 else 1


@triton.constexpr_function
def sums_bytes(slices, size, warps):
    """Shared memory of `sum_parts`."""
    return 8 * size if _sums(slices, size, warps) == 2 else 0


@triton.constexpr_function
def _add_halves(size):
    """PTX that adds two float32 numbers of shared memory, `size` of them apart."""
    return (
        f"{{ .reg .f32 x; ld.shared.f32 $0, [$1]; ld.shared.f32 x, [$1 + {4 * size}]; "
        "add.f32 $0, $0, x; }"
    )


@inline
def sum_parts(
    part_ptr, live, t, table, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, S: tl.constexpr,
    PARTS: tl.constexpr, MEET: tl.constexpr,
):  # fmt: skip
    """dh of this slice, of the parts of all: a tile, of the first `live` sequences. Every fourth of
    the parts in their order, then the four sums, (0 + 1) + (2 + 3); where there are two threads for
    each number, so the first half of them, and the second, and then both. MEET: wait for those of
    step t; table: `sums_bytes`.
    """
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    SUMS: tl.constexpr = _sums(S, SIZE, PARTS)
    offs = tl.arange(0, BLOCK_B)[:, None] * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    if MEET and SPIN_LIMIT == 0 and not INTERPRETED:
        if SUMS == 1:
            return _sum_when_there(part_ptr + offs, offs < live * BLOCK_H, t, S, SIZE)
        else:
            # Of a tile half of the threads would have what the others have, and read it again.
            i = tl.arange(0, 2 * SIZE)
            half_ptr = part_ptr + i // SIZE * (S // 2 * SIZE) + i % SIZE
            half = _sum_when_there(half_ptr, i % SIZE < live * BLOCK_H, t, S // 2, SIZE)
            tl.inline_asm_elementwise(
                "st.shared.b32 [$1], $2; mov.b32 $0, 0;", "=r,r,f", [table + i * 4, half],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
            tl.debug_barrier()
            return tl.inline_asm_elementwise(
                _add_halves(SIZE), "=&f,r", [table + offs * 4], dtype=tl.float32, is_pure=False,
                pack=1,
            )  # fmt: skip
    else:
        # Of sequences that are not there the last one's: nobody writes theirs.
        part_ptr += tl.minimum(offs, (live - 1) * BLOCK_H + offs % BLOCK_H)
        if MEET:
            for writer in tl.static_range(S):
                _spin(part_ptr + writer * SIZE, t)
        dh = _sum_of(part_ptr, SIZE, S // SUMS)
        if SUMS == 2:
            dh += _sum_of(part_ptr + S // 2 * SIZE, SIZE, S // 2)
        return dh


@inline
def _sum_when_there(pointers, alive, t, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """`_sum_of`, once the tags are those of step t; zeros where it is not alive."""
    tags = tl.zeros(pointers.shape, tl.int32) + tag(t)
    return tl.inline_asm_elementwise(
        _sum(COUNT, 4 * SIZE), "=&f,l,r,r", [pointers.to(tl.int64), tags, alive.to(tl.int32)],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@inline
def _sum_of(part_ptr, SIZE: tl.constexpr, COUNT: tl.constexpr):
    a = _every_fourth(part_ptr, SIZE, COUNT, 0) + _every_fourth(part_ptr, SIZE, COUNT, 1)
    return a + (_every_fourth(part_ptr, SIZE, COUNT, 2) + _every_fourth(part_ptr, SIZE, COUNT, 3))


@inline
def _every_fourth(part_ptr, SIZE: tl.constexpr, S: tl.constexpr, first: tl.constexpr):
    """The sum of parts first, first + 4, ..."""
    dh = tl.load(part_ptr + first * SIZE, cache_modifier=".cg")
    for writer in tl.static_range(first + 4, S, 4):
        dh += tl.load(part_ptr + writer * SIZE, cache_modifier=".cg")
    return dh
