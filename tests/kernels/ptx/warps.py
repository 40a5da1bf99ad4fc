"""Instructions of a warp as one, shuffles, votes and products, and the table of all that are more
than a function of numbers.
"""

import numpy as np

from .arithmetic import ROUND, convert, move, numbers, to_bits
from .memory import active, load, store


def by_warp(bits):
    return bits.reshape(-1, 32)


def whole_warps(program, at, mask):
    """Of an instruction that a warp executes as one: whether each warp does."""
    if mask is None:
        return np.ones(program.threads // 32, bool)
    warps = by_warp(mask)
    if (warps.any(1) != warps.all(1)).any():
        at.fail("not all threads of a warp execute it")
    return warps.all(1)


def meet(program, at, mask, members=-1):
    """The threads of a warp meet: what they did to shared memory before is in order."""
    warps = whole_warps(program, at, mask)
    if members != -1 and (program.bits(members, "b32") != 0xFFFFFFFF).any():
        at.fail("only for all threads of a warp")
    program.shared.epoch[warps] += 1


def warp_barrier(program, at, mask):
    meet(program, at, mask, at.operands[0])


def shuffle(program, at, mask):
    to, source, b, c, members = at.operands
    meet(program, at, mask, members)
    source = by_warp(program.full(source, "b32"))
    b = by_warp(program.full(b, "b32")).astype(np.int64) & 31
    c = by_warp(program.full(c, "b32")).astype(np.int64)
    lane, segment, clamp = np.arange(32)[None, :], c >> 8 & 31, c & 31
    least = lane & segment
    most = least | clamp & ~segment
    (mode,) = {"up", "down", "bfly", "idx"} & set(at.modifiers)
    which = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | b & ~segment}[mode]
    valid = which >= most if mode == "up" else which <= most
    result = np.take_along_axis(source, np.where(valid, which, lane), axis=1)
    to = to if isinstance(to, tuple) else (to, None)
    program.write(to[0], result.ravel(), mask)
    program.write(to[1], valid.ravel(), mask)


def vote(program, at, mask):
    to, source, members = at.operands
    meet(program, at, mask, members)
    votes = by_warp(program.full(source, "pred"))
    if "ballot" in at.modifiers:
        result = (votes << np.arange(32, dtype=np.uint64)).sum(1)
    else:
        (mode,) = {"any", "all", "uni"} & set(at.modifiers)
        result = votes.any(1) if mode == "any" else votes.all(1)
        if mode == "uni":
            result |= ~votes.any(1)
    program.write(to, np.repeat(result, 32), mask)


REDUCTIONS = {
    "max": np.fmax, "min": np.fmin, "add": np.add,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def reduce_warp(program, at, mask):
    to, source, members = at.operands
    meet(program, at, mask, members)
    values = by_warp(numbers(program.full(source, at.types[0]), at.types[0]))
    (mode,) = REDUCTIONS.keys() & set(at.modifiers)
    x = REDUCTIONS[mode].reduce(values, axis=1)
    if "NaN" in at.modifiers:
        x = np.where(np.isnan(values).any(1), np.nan, x)
    program.write(to, to_bits(np.repeat(x, 32), at.types[0]), mask)


def multiply(program, at, mask):
    """mma.sync.m16n8k16, m16n8k8: fragments as the PTX ISA has them.

    Lane 4 g + t of a warp has rows g and g + 8 of A, column g of B, and of K numbers t (of a
    register: two of 16 bits, one of 32) and those half of K further.
    """
    whole_warps(program, at, mask)
    to, a, b, c = at.operands
    dtype = at.types[1]
    packed = {"f16": "f16x2", "bf16": "bf16x2", "tf32": "tf32"}[dtype]
    a, b = ([numbers(program.bits(x, "b32"), packed) for x in xs] for xs in (a, b))
    a = np.stack(a).reshape(2, 2, -1, 8, 4, a[0].size // program.threads)  # k half warp g t e
    b = np.stack(b).reshape(2, -1, 8, 4, b[0].size // program.threads)  # k warp g t e
    columns = 8 * a.shape[-1]
    a = a.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, columns)
    b = b.transpose(1, 0, 3, 4, 2).reshape(-1, columns, 8)
    product = np.matmul(a, b).reshape(-1, 2, 8, 4, 2)  # warp half g t e
    for n, (register, addend) in enumerate(zip(to, c, strict=True)):
        part = product[:, n // 2, :, :, n % 2].ravel()
        x = part + numbers(program.bits(addend, "f32"), "f32")
        program.write(register, to_bits(x, "f32"), mask)


def _rows(at, program, mask, count):
    """The threads that give addresses of 8 by 8 matrices: 8 for each of `count`."""
    warps = np.flatnonzero(whole_warps(program, at, mask))
    return (warps[:, None] * 32 + np.arange(8 * count)).ravel()


def load_matrix(program, at, mask):
    """ldmatrix: lane 4 g + t gets numbers 2 t and 2 t + 1 of row g."""
    registers = at.operands[0]
    threads = _rows(at, program, mask, len(registers))
    data = program.read(at, at.operands[1], threads, 16).view(np.uint16)
    data = data.reshape(-1, len(registers), 8, 8)
    if "trans" in at.modifiers:
        data = data.swapaxes(2, 3)
    data = np.ascontiguousarray(data).view(np.uint32)  # warp matrix g t
    for n, register in enumerate(registers):
        whole = np.zeros(program.threads, np.uint32)
        whole[active(mask, program.threads)] = data[:, n].ravel()
        program.write(register, whole, mask)


def store_matrix(program, at, mask):
    """stmatrix, the reverse of ldmatrix."""
    registers = at.operands[1]
    threads = _rows(at, program, mask, len(registers))
    data = np.stack([program.bits(x, "b32") for x in registers])[:, active(mask, program.threads)]
    data = data.reshape(len(registers), -1, 8, 4).swapaxes(0, 1)
    data = np.ascontiguousarray(data).view(np.uint16)  # warp matrix row column
    if "trans" in at.modifiers:
        data = data.swapaxes(2, 3)
    data = np.ascontiguousarray(data).reshape(-1, 8).view(np.uint8)
    program.modify(at, at.operands[0], threads, data)


MEMORY = "global shared shared::cta volatile relaxed gpu cta sys weak v2 v4 ca cg cs lu cv wb wt"
MATRIX = "sync aligned m8n8 x1 x2 x4 trans shared shared::cta"
# Instructions that are more than a function of numbers; the modifiers that are understood
OTHERS = {
    "cvt": (convert, "rn rna ftz " + " ".join(ROUND)),
    "mov": (move, ""),
    "ld": (load, MEMORY + " param nc acquire L1::evict_first L1::evict_last"),
    "st": (store, MEMORY + " release L1::evict_first L1::evict_last"),
    "fence": (None, "sc acq_rel gpu cta sys"),
    "membar": (None, "gl cta sys"),
    "shfl": (shuffle, "sync up down bfly idx"),
    "vote": (vote, "sync any all uni ballot"),
    "redux": (reduce_warp, "sync NaN " + " ".join(REDUCTIONS)),
    "mma": (multiply, "sync aligned m16n8k16 m16n8k8 row col"),
    "ldmatrix": (load_matrix, MATRIX),
    "stmatrix": (store_matrix, MATRIX),
    "bra": (None, "uni"),
    "ret": (None, "uni"),
    "exit": (None, ""),
    "bar": (None, "cta sync aligned red popc and or"),
    "bar.warp": (warp_barrier, "warp sync"),
}
CONTROL = ("bra", "ret", "exit", "bar")
