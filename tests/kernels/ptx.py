"""An emulator of PTX: runs what Triton compiled for NVIDIA, on a machine that has no GPU.

Triton's interpreter runs a kernel's Python. This runs the compiled kernel: its inline PTX, its
shared memory and its tensor-core operands, in the order the compiler gave them.

    compiled = bench.static_report.compile_configuration(configuration)
    run(compiled.asm["ptx"], arguments, grid, compiled.metadata.shared)

Launchers run on it unchanged with emulated.Emulated in their kernel's place.

All threads of a program are one numpy array, so they go in lockstep, which hides missing barriers.
These are therefore looked for: an access to shared memory that no barrier orders is an error. So
are an access outside of a tensor or of its alignment, and an instruction that is not in the tables.
Accesses to shared memory that its banks serve one after the other are counted.

    register    an array of bits, one element a thread; bool for a predicate
    mask        the threads that take part, None for all
    front       threads at one instruction; a branch may part them, the same address joins them

Numerics: float32 as numpy has it; what the hardware approximates is exact, a tensor core's sum is
one of float32. Not looked at: races in global memory, which all programs share; the asynchronous
copies, wgmma and clusters, which are no instructions here.
"""

import re
from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np

SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIAL += ["%laneid", "%warpid"]
WIDTH = {"pred": 1, "f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64}
WIDTH |= {f"{kind}{width}": width for kind in "bsu" for width in (8, 16, 32, 64)}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "u16x2": "u16", "s16x2": "s16", "f32x2": "f32"}
WIDTH |= {pair: 2 * WIDTH[one] for pair, one in PACKED.items()}
# Between two tensors, further than any wrong address is off
APART = 1 << 40
# Of a program, after which it is taken to wait for ever
MOST_JUMPS = 1_000_000


class PTXError(Exception):
    """What the emulator found, with the instruction."""


class Immediate:
    """A number in the text, or the address of a name."""

    def __init__(self, value):
        self.value = value
        self.known = {}

    def bits(self, width):
        if width not in self.known:
            value = self.value
            if isinstance(value, float):
                value = int(np.array(value, f"f{width // 8}").view(f"u{width // 8}"))
            dtype = bool if width == 1 else f"u{width // 8}"
            self.known[width] = np.array([value % (1 << width)], dtype)
        return self.known[width]


class Address(NamedTuple):
    base: Any
    offset: int


class Negated(NamedTuple):
    register: int


class Instruction(NamedTuple):
    """One statement. guard: a register, or Negated, or None."""

    text: str
    guard: Any
    name: str
    modifiers: list
    types: list
    operands: list

    def fail(self, reason):
        raise PTXError(f"{reason}: {self.text}")


def numbers(bits, of):
    """Of a register's bits, what an instruction of a type computes with."""
    if of in PACKED:
        return numbers(bits.view(f"u{WIDTH[of] // 16}").reshape(-1, 2), PACKED[of])
    if of == "pred":
        return bits
    if bits.itemsize * 8 != WIDTH[of]:
        bits = bits.astype(f"u{WIDTH[of] // 8}")
    if of == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if of == "f16":
        return bits.view(np.float16).astype(np.float32)
    if of == "tf32":
        return (bits & 0xFFFFE000).view(np.float32)
    return bits.view(f"{'u' if of[0] == 'b' else of[0].replace('s', 'i')}{bits.itemsize}")


def to_bits(x, of):
    """Numbers as bits of a type, to nearest."""
    if of in PACKED:
        x = to_bits(x, PACKED[of]).astype(f"u{WIDTH[of] // 16}")
        return np.ascontiguousarray(x).view(f"u{WIDTH[of] // 8}")[:, 0]
    if of == "bf16":
        bits = np.asarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)
    if of == "tf32":
        return np.asarray(x, np.float32).view(np.uint32) + 0x1000 & 0xFFFFE000
    if of in ("f16", "f32", "f64"):
        return np.asarray(x, f"f{WIDTH[of] // 8}").view(f"u{WIDTH[of] // 8}")
    return x


def flush(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def wide(x):
    return x.astype(f"{x.dtype.kind}{2 * x.itemsize}")


def multiply_high(m, a, b):
    product = a.astype(object) * b.astype(object) >> 8 * a.itemsize
    return product.astype(a.dtype)


def multiply_add(m, a, b, c):
    """One rounding: float64 holds the product exactly."""
    return a.astype(np.float64) * b + c if a.dtype.kind == "f" else a * b + c


def divide(m, a, b):
    return a / b if a.dtype.kind == "f" else (a - np.fmod(a, b)) // b


def extreme(with_nan, without):
    def of(m, *xs):
        x = reduce(with_nan if "NaN" in m else without, xs)
        return np.maximum(x, 0) if "relu" in m else x

    return of


def shift_left(m, a, n):
    return np.where(n < 8 * a.itemsize, a << (n % (8 * a.itemsize)).astype(a.dtype), 0)


def shift_right(m, a, n):
    most = np.minimum(n, 8 * a.itemsize - 1).astype(a.dtype)
    return np.where((n < 8 * a.itemsize) | (a.dtype.kind == "i"), a >> most, 0)


def extract(m, a, begin, length):
    begin, length = (begin & 255).astype(np.int64), np.minimum(length & 255, 63).astype(np.int64)
    field = a.astype(np.int64) >> np.minimum(begin, 63) & (1 << length) - 1
    sign = field >> np.maximum(length - 1, 0) & 1
    return field - (sign << length) if a.dtype.kind == "i" else field


def permute(m, a, b, selector):
    sources = np.broadcast_arrays(wide(b) << 32 | wide(a), selector)[0]
    sources = np.ascontiguousarray(sources).view(np.uint8).reshape(-1, 8)
    result = 0
    for n in range(4):
        which = np.broadcast_to(selector >> 4 * n & 15, len(sources))
        byte = sources[np.arange(len(sources)), which & 7].astype(np.uint32)
        byte = np.where(which & 8, (byte >> 7) * 255, byte)
        result = result | byte.astype(np.uint32) << 8 * n
    return result


def logic(m, a, b, c, table):
    result = np.zeros_like(a)
    for n in range(8):
        term = (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
        result = result | np.where(table >> n & 1, term, 0).astype(a.dtype)
    return result


def funnel(m, a, b, n):
    n = np.minimum(n, 32) if "clamp" in m else n % 32
    both = wide(b) << 32 | a
    return both << n >> 32 if "l" in m else both >> n


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip
# With u: true where one is NaN
COMPARISONS |= {f"{name}u": COMPARISONS[name] for name in ("eq", "ne", "lt", "le", "gt", "ge")}
COMPARISONS |= {"num": lambda a, b: a == a, "nan": lambda a, b: a != a}
BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def compare(m, a, b, c=None):
    result = COMPARISONS[m[0]](a, b)
    if a.dtype.kind == "f":
        unordered = np.isnan(a) | np.isnan(b)
        result = np.where(unordered, m[0] == "nan" or (m[0][-1] == "u" and len(m[0]) == 3), result)
    return result if c is None else BOOLEAN[m[1]](result, c)


ROUND = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


# Sources of each: t the type itself, w twice as wide, u 32 bits, p a predicate, s the second type.
# What follows a question mark may be left out.
# Then the modifiers that are understood, and the result where it is not t.
NUMBERS = {
    "add": (lambda m, a, b: a + b, "tt", "rn ftz", "t"),
    "sub": (lambda m, a, b: a - b, "tt", "rn ftz", "t"),
    "mul": (lambda m, a, b: a * b, "tt", "rn ftz lo", "t"),
    "mul.wide": (lambda m, a, b: wide(a) * wide(b), "tt", "wide", "w"),
    # Of 16 bits, into float32
    "add.mixed": (lambda m, a, b: a + b, "st", "rn ftz", "t"),
    "sub.mixed": (lambda m, a, b: a - b, "st", "rn ftz", "t"),
    "fma.mixed": (multiply_add, "sst", "rn ftz", "t"),
    "mul.hi": (multiply_high, "tt", "hi", "t"),
    "mad": (multiply_add, "ttt", "lo", "t"),
    "mad.wide": (lambda m, a, b, c: wide(a) * wide(b) + c, "ttw", "wide", "w"),
    "fma": (multiply_add, "ttt", "rn ftz", "t"),
    "div": (divide, "tt", "rn full approx ftz", "t"),
    "rem": (lambda m, a, b: np.fmod(a, b), "tt", "", "t"),
    "neg": (lambda m, a: -a, "t", "ftz", "t"),
    "abs": (lambda m, a: np.abs(a), "t", "ftz", "t"),
    "min": (extreme(np.minimum, np.fmin), "tt?t", "NaN relu ftz", "t"),
    "max": (extreme(np.maximum, np.fmax), "tt?t", "NaN relu ftz", "t"),
    "and": (lambda m, a, b: a & b, "tt", "", "t"),
    "or": (lambda m, a, b: a | b, "tt", "", "t"),
    "xor": (lambda m, a, b: a ^ b, "tt", "", "t"),
    "not": (lambda m, a: ~a, "t", "", "t"),
    "shl": (shift_left, "tu", "", "t"),
    "shr": (shift_right, "tu", "", "t"),
    "shf": (funnel, "ttu", "l r wrap clamp", "t"),
    "bfe": (extract, "tuu", "", "t"),
    "prmt": (permute, "ttu", "", "t"),
    "lop3": (logic, "tttu", "", "t"),
    "selp": (lambda m, a, b, p: np.where(p, a, b), "ttp", "", "t"),
    "slct": (lambda m, a, b, c: np.where(c >= 0, a, b), "tts", "ftz", "t"),
    "setp": (compare, "tt?p", " ".join([*COMPARISONS, *BOOLEAN, "ftz"]), "p"),
    "ex2": (lambda m, a: np.exp2(a), "t", "approx ftz", "t"),
    "lg2": (lambda m, a: np.log2(a), "t", "approx ftz", "t"),
    "rcp": (lambda m, a: 1 / a, "t", "approx rn ftz", "t"),
    "sqrt": (lambda m, a: np.sqrt(a), "t", "approx rn ftz", "t"),
    "rsqrt": (lambda m, a: 1 / np.sqrt(a), "t", "approx ftz", "t"),
    "tanh": (lambda m, a: np.tanh(a), "t", "approx", "t"),
    "cvta": (lambda m, a: a, "t", "to global", "t"),
}


def compute(program, at, mask):
    """An instruction of NUMBERS."""
    function, sources, _, result = NUMBERS[at.name]
    of = at.types[0]
    kinds = {"t": of, "u": "u32", "p": "pred", "s": at.types[-1]}
    if "w" in sources + result:
        kinds["w"] = f"{of[0]}{2 * WIDTH[of]}"
    values = [
        numbers(program.bits(x, kinds[k]), kinds[k])
        for x, k in zip(at.operands[1:], sources.replace("?", ""), strict=False)
    ]
    flushed = "ftz" in at.modifiers and of == "f32"
    if flushed:
        values = [flush(x) if x.dtype == np.float32 else x for x in values]
    x = function(at.modifiers, *values)
    if flushed and result == "t":
        x = flush(x)
    to = at.operands[0]
    if isinstance(to, tuple):
        program.write(to[1], ~x, mask)
        to = to[0]
    program.write(to, to_bits(x, kinds[result]), mask)


def convert(program, at, mask):
    """cvt; of two numbers for a packed type, the upper first."""
    to, of = at.types
    values = [numbers(program.bits(x, of), of) for x in at.operands[1:]]
    if to in PACKED:
        lower, upper = np.broadcast_arrays(*values[::-1])
        x = np.stack([lower, upper], axis=-1)
    else:
        (x,) = values
        if "ftz" in at.modifiers:
            x = flush(x)
        for rounding in ROUND.keys() & set(at.modifiers):
            x = ROUND[rounding](x)
        if to[0] in "su" and x.dtype.kind == "f":
            limits = np.iinfo(f"{to[0].replace('s', 'i')}{WIDTH[to] // 8}")
            x = np.nan_to_num(x.astype(np.float64), nan=0).clip(limits.min, limits.max)
            # The largest of 64 bits is rounded up to what no longer fits.
            x = np.where(x >= limits.max, limits.max, x.astype(limits.dtype))
        elif to[0] in "su":
            x = x.astype(f"{to[0].replace('s', 'i')}{WIDTH[to] // 8}")
    program.write(at.operands[0], to_bits(x, to), mask)


def move(program, at, mask):
    """mov, also between one register and the parts of it."""
    to, source = at.operands
    if isinstance(source, list):
        parts = [program.bits(x, f"b{WIDTH[at.types[0]] // len(source)}") for x in source]
        bits = np.stack(np.broadcast_arrays(*parts), axis=-1).view(f"u{WIDTH[at.types[0]] // 8}")
        program.write(to, bits[:, 0], mask)
    elif isinstance(to, list):
        width = WIDTH[at.types[0]] // 8 // len(to)
        bits = program.bits(source, at.types[0]).copy().view(f"u{width}").reshape(-1, len(to))
        for n, register in enumerate(to):
            program.write(register, bits[:, n], mask)
    else:
        program.write(to, program.bits(source, at.types[0]), mask)


def as_list(x):
    return x if isinstance(x, list) else [x]


def active(mask, threads):
    return np.arange(threads) if mask is None else np.flatnonzero(mask)


def load(program, at, mask):
    if "param" in at.modifiers:
        base, dtype = at.operands[1].base, f"u{WIDTH[at.types[0]] // 8}"
        if isinstance(base, str):
            value = program.parameters[base]
        else:
            # One of several, whose addresses are their places
            value = np.array(list(program.parameters.values()))[program.full(base, "b64")]
        program.write(at.operands[0], np.array(value, "i8").astype(dtype), mask)
        return
    registers, of = as_list(at.operands[0]), at.types[0]
    threads = active(mask, program.threads)
    size = WIDTH[of] // 8
    data = program.read(at, at.operands[1], threads, len(registers) * size)
    values = numbers(data.view(f"u{size}"), of if of[0] in "su" else f"b{WIDTH[of]}")
    for n, register in enumerate(registers):
        whole = np.zeros(program.threads, values.dtype)
        whole[threads] = values[:, n]
        program.write(register, whole, mask)


def store(program, at, mask):
    threads = active(mask, program.threads)
    width = f"b{WIDTH[at.types[0]]}"
    parts = [
        np.broadcast_to(numbers(program.bits(x, width), width), program.threads)[threads]
        for x in as_list(at.operands[1])
    ]
    data = np.ascontiguousarray(np.stack(parts, axis=-1)).view(np.uint8)
    program.modify(at, at.operands[0], threads, data)


class Shared:
    """Shared memory, and who has touched each byte since the last barrier of all threads.

    Of readers the first and the last by number, and when: an epoch of a warp ends where its threads
    meet.
    """

    def __init__(self, size, warps):
        # NaN in every type, so that what nobody wrote shows.
        self.data = np.full(size, 255, np.uint8)
        self.epoch = np.zeros(warps, np.int64)
        self.conflicts = 0
        self.barrier()

    def barrier(self):
        size = len(self.data)
        self.writer, self.last = np.full(size, -1), np.full(size, -1)
        self.first = np.full(size, 1 << 30)
        self.written, self.read = np.full(size, -1), np.full(size, -1)

    def _unordered(self, others, then, threads):
        same = others // 32 == threads // 32
        return (others != threads) & (~same | (then >= self.epoch[threads // 32]))

    def _count_conflicts(self, threads, offsets):
        """Accesses beyond the first for each 128 bytes that a warp moves: those of so many lanes go
        together, if they are of different banks or of the same numbers.
        """
        width = max(4, offsets.shape[1])
        lanes, banks = 128 // width, 128 // width
        group, place = threads // lanes, offsets[:, 0] // width
        group, place = np.unique(np.stack((group, place)), axis=1)
        uses = np.zeros((group.max(initial=0) + 1, banks), np.int64)
        np.add.at(uses, (group, place % banks), 1)
        self.conflicts += int(np.maximum(uses.max(1) - 1, 0).sum())

    def reads(self, at, threads, offsets):
        self._count_conflicts(threads, offsets)
        threads = threads[:, None]
        writer = self.writer[offsets]
        if ((writer >= 0) & self._unordered(writer, self.written[offsets], threads)).any():
            at.fail("race: shared memory is read with no barrier after another thread's write")
        np.minimum.at(self.first, offsets, threads)
        np.maximum.at(self.last, offsets, threads)
        np.maximum.at(self.read, offsets, self.epoch[threads // 32])

    def writes(self, at, threads, offsets):
        self._count_conflicts(threads, offsets)
        threads = threads[:, None]
        writer, first, last = self.writer[offsets], self.first[offsets], self.last[offsets]
        if ((writer >= 0) & self._unordered(writer, self.written[offsets], threads)).any():
            at.fail("race: shared memory is written with no barrier after another thread's write")
        read = self.read[offsets]
        late = self._unordered(first, read, threads) | self._unordered(last, read, threads)
        if ((last >= 0) & late).any():
            at.fail("race: shared memory is written with no barrier after another thread's read")
        self.writer[offsets] = threads
        self.written[offsets] = self.epoch[threads // 32]


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


class Kernel(NamedTuple):
    """A parsed kernel. registers: widths in bits; special: registers of SPECIAL."""

    code: list
    registers: list
    special: dict
    parameters: list
    threads: int
    static_bytes: int


class Program:
    """One program of a grid."""

    def __init__(self, kernel, parameters, tensors, index, grid, shared_bytes):
        self.code, self.threads = kernel.code, kernel.threads
        self.parameters = dict(zip(kernel.parameters, parameters, strict=True))
        self.tensors = tensors
        # As shared memory: NaN until it is written.
        self.registers = [
            np.full(self.threads, *((False, bool) if w == 1 else (2**w - 1, f"u{w // 8}")))
            for w in kernel.registers
        ]
        thread = np.arange(self.threads)
        given = {"%laneid": thread % 32, "%warpid": thread // 32, "%tid.x": thread}
        given |= {"%tid.y": 0, "%tid.z": 0, "%ntid.x": self.threads, "%ntid.y": 1, "%ntid.z": 1}
        given |= {f"%ctaid.{axis}": i for axis, i in zip("xyz", index, strict=True)}
        given |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", grid, strict=True)}
        for name, register in kernel.special.items():
            self.registers[register][:] = given[name]
        self.shared = Shared(kernel.static_bytes + shared_bytes, self.threads // 32)

    def bits(self, operand, of):
        if isinstance(operand, int):
            return self.registers[operand]
        if isinstance(operand, Negated):
            return ~self.registers[operand.register]
        return operand.bits(WIDTH[of])

    def full(self, operand, of):
        return np.broadcast_to(self.bits(operand, of), self.threads)

    def write(self, register, bits, mask):
        if register is None:
            return
        if mask is None:
            self.registers[register][:] = bits
        else:
            np.copyto(self.registers[register], bits, where=mask, casting="unsafe")

    def _bytes(self, at, address, threads, size):
        """Where in which memory: pairs of a tensor's bytes, the threads' places among `threads`,
        and their offsets, one for each byte.
        """
        base = self.full(address.base, "b64")[threads]
        base = base.astype(np.int64) + address.offset
        if (base % size).any():
            at.fail(f"an address is not aligned to {size} bytes")
        if {"shared", "shared::cta"} & set(at.modifiers):
            memories = [(self.shared.data, 0, np.ones(len(base), bool))]
        elif "global" in at.modifiers:
            memories = []
            for region in np.unique(base // APART):
                if region not in self.tensors:
                    at.fail("an address is in no tensor")
                memories.append((*self.tensors[region], base // APART == region))
        else:
            at.fail("unknown memory")
        for memory, begin, here in memories:
            offsets = base[here] - begin
            if len(offsets) and (offsets.min() < 0 or offsets.max() + size > len(memory)):
                worst = offsets.min() if offsets.min() < 0 else offsets.max()
                at.fail(f"out of bounds: byte {worst} and on of {len(memory)}, {size} bytes")
            yield memory, here, offsets[:, None] + np.arange(size)

    def read(self, at, address, threads, size):
        data = np.empty((len(threads), size), np.uint8)
        for memory, here, offsets in self._bytes(at, address, threads, size):
            if memory is self.shared.data:
                self.shared.reads(at, threads[here], offsets)
            data[here] = memory[offsets]
        return data

    def modify(self, at, address, threads, data):
        for memory, here, offsets in self._bytes(at, address, threads, data.shape[1]):
            if memory is self.shared.data:
                self.shared.writes(at, threads[here], offsets)
            memory[offsets] = data[here]
            if (memory[offsets] != data[here]).any():
                at.fail("race: two threads write different values to the same byte")

    def steps(self):
        """Run; yields at every jump back, where others may have a turn."""
        fronts = {0: np.ones(self.threads, bool)}
        waiting = {}
        jumps = 0
        while fronts or waiting:
            if not fronts:
                (pc,) = waiting
                fronts = {pc + 1: waiting.pop(pc)}
                self._barrier(self.code[pc], fronts[pc + 1])
            # Who is behind goes first, until he is where others are.
            pc = min(fronts)
            threads = fronts.pop(pc)
            following = min(fronts, default=len(self.code))
            mask = None if threads.all() else threads
            while pc < following:
                at = self.code[pc]
                here = mask
                if at.guard is not None:
                    here = self.bits(at.guard, "pred")
                    here = here.copy() if mask is None else here & mask
                    here = None if here.all() else here
                if at.name not in CONTROL:
                    function = compute if at.name in NUMBERS else OTHERS[at.name][0]
                    if function is not None and (here is None or here.any()):
                        function(self, at, here)
                    pc += 1
                    continue
                here = np.ones(self.threads, bool) if here is None else here
                if at.name == "bra":
                    if (target := at.operands[0]) <= pc and here.any():
                        jumps += 1
                        if jumps > MOST_JUMPS:
                            at.fail("the program does not end")
                        yield
                    _join(fronts, target, here)
                elif at.name == "bar":
                    if waiting.keys() - {pc}:
                        at.fail("threads wait at different barriers")
                    _join(waiting, pc, here)
                _join(fronts, pc + 1, threads & ~here)
                break
            else:
                _join(fronts, pc, threads)

    def _barrier(self, at, threads):
        # A name of the barrier alone, or after a result; a count is of some threads only.
        if "red" in at.modifiers:
            value = self.full(at.operands[-1], "pred")[threads]
            kinds = {"popc": value.sum(), "and": value.all(), "or": value.any()}
            self.write(at.operands[0], kinds[(kinds.keys() & set(at.modifiers)).pop()], threads)
        elif len(at.operands) > 1:
            at.fail("a barrier of some threads is unknown")
        self.shared.barrier()


def _join(fronts, pc, threads):
    if threads.any():
        fronts[pc] = fronts[pc] | threads if pc in fronts else threads


def run(ptx, arguments, grid, shared_bytes=0, together=False):
    """Run a kernel over a grid.

    Args: arguments: of the kernel, in its order: contiguous numpy arrays, which it changes, at
        addresses aligned as their own are modulo 16; numbers; None for what was compiled in.
        shared_bytes: compiled.metadata.shared; together: programs take turns, as those have to that
        wait for each other, else one after the other.
    Returns: accesses to shared memory that its banks made of one, beyond the first.
    Raises: PTXError.
    """
    kernel = parse(ptx)
    given = [x for x in arguments if x is not None]
    # Triton has two more pointers, of scratch memory that none of our kernels has.
    more = len(kernel.parameters) - len(given)
    if not 0 <= more <= 2:
        raise PTXError(f"{len(given)} arguments given, {len(kernel.parameters)} needed")
    tensors, parameters = {}, []
    for n, x in enumerate(given, 1):
        if isinstance(x, np.ndarray):
            begin = n * APART + APART // 2 + x.ctypes.data % 16
            tensors[begin // APART] = x.reshape(-1).view(np.uint8), begin
            assert np.shares_memory(tensors[n][0], x) or not x.size
            x = begin
        parameters.append(x)
    parameters += [0] * more
    grid = (*grid, 1, 1)[:3]
    programs = (
        Program(kernel, parameters, tensors, index[::-1], grid, shared_bytes)
        for index in np.ndindex(*grid[::-1])
    )
    conflicts = 0
    with np.errstate(all="ignore"):
        for some in [list(programs)] if together else ([program] for program in programs):
            left = [program.steps() for program in some]
            while left:
                left = [steps for steps in left if next(steps, steps) is not steps]
            conflicts += sum(program.shared.conflicts for program in some)
    return conflicts


NAME = r"[%$\w][\w$.]*"


class Parser:
    """Of a function's body; names are those of the innermost block that has them."""

    def __init__(self):
        self.scopes = [{}]
        self.code, self.registers, self.special, self.jumps = [], [], {}, []
        self.static_bytes, self.dynamic = 0, []

    def declare(self, name, width):
        self.scopes[-1][name] = len(self.registers)
        self.registers.append(width)

    def find(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def share(self, statement):
        """Shared memory with a name. Of a size that the launch gives, it begins after the rest."""
        align, width, name, count = re.search(
            rf"\.align\s+(\d+)\s+\.b(\d+)\s+({NAME})\s*\[\s*(\d*)\s*\]", statement
        ).groups()
        begin = -(-self.static_bytes // int(align)) * int(align)
        self.scopes[-1][name] = Immediate(begin)
        if count:
            self.static_bytes = begin + int(count) * int(width) // 8
        else:
            self.dynamic.append((self.scopes[-1][name], int(align)))

    def body(self, text):
        statement = re.compile(
            rf"\s*(?:(?P<open>{{)|(?P<close>}})|(?P<label>{NAME})\s*:(?!:)|(?P<rest>[^;]*);)"
        )
        at = 0
        while found := statement.match(text, at):
            at = found.end()
            if found["open"]:
                self.scopes.append({})
            elif found["close"]:
                self.scopes.pop()
            elif found["label"]:
                self.scopes[-1][found["label"]] = len(self.code)
            elif found["rest"].strip():
                self.statement(" ".join(found["rest"].split()))
        if text[at:].strip():
            raise PTXError(f"what is this: {text[at:].strip()[:80]}")

    def statement(self, text):
        if text.startswith(".reg"):
            width = WIDTH[text.split()[1][1:]]
            for name in text.split(None, 2)[2].split(","):
                name, count = re.fullmatch(rf"\s*({NAME})(?:<(\d+)>)?\s*", name).groups()
                for each in [name] if count is None else [f"{name}{n}" for n in range(int(count))]:
                    self.declare(each, width)
        elif text.startswith(".shared"):
            self.share(text)
        elif not text.startswith(".pragma"):
            self.instruction(text)

    def instruction(self, text):
        guard, negated, operation, operands = re.fullmatch(
            rf"(?:@(!?)({NAME})\s+)?([\w.:]+)\s*(.*)", text
        ).group(2, 1, 3, 4)
        if guard is not None:
            guard = self.find(guard)
            guard = Negated(guard) if negated else guard
        name, *parts = operation.split(".")
        types = [x for x in parts if x in WIDTH]
        modifiers = [x for x in parts if x not in WIDTH]
        for longer in ("wide", "hi", "warp"):
            if longer in modifiers and f"{name}.{longer}" in NUMBERS | OTHERS:
                name = f"{name}.{longer}"
        name = "bar" if name == "barrier" else name
        if len(types) == 2 and f"{name}.mixed" in NUMBERS:
            name += ".mixed"
        table = NUMBERS if name in NUMBERS else OTHERS
        understood = table[name][2 if name in NUMBERS else 1].split() if name in table else []
        known = name in table and set(modifiers) <= set(understood)
        operands = [self.operand(x) for x in re.split(r",(?![^{]*})", operands) if x.strip()]
        if known and name in NUMBERS:
            sources = NUMBERS[name][1]
            counts = len(sources.split("?")[0]), len(sources.replace("?", ""))
            known = len(types) == 1 + ("s" in sources) and len(operands) - 1 in counts
        if not known:
            raise PTXError(f"unknown instruction: {text}")
        if name == "bra":
            self.jumps.append((len(self.code), text.split()[-1], tuple(self.scopes)))
        self.code.append(Instruction(text, guard, name, modifiers, types, operands))

    def operand(self, text):
        text = text.strip()
        if text[0] == "{":
            return [self.operand(x) for x in text[1:-1].split(",")]
        if text[0] == "[":
            inner = re.fullmatch(r"([^+]*?)\s*(?:\+\s*(-?\w+)\s*)?", text[1:-1].strip())
            base, offset = inner.groups()
            base = base if "_param_" in base else self.operand(base)
            return Address(base, int(offset or "0", 0))
        if "|" in text:
            return tuple(self.operand(x) for x in text.split("|"))
        if text[0] == "!":
            return Negated(self.find(text[1:]))
        if text == "_":
            return None
        if (known := self.find(text)) is not None:
            return known
        if text in SPECIAL:
            width = self.scopes[0][text] = len(self.registers)
            self.registers.append(32)
            self.special[text] = width
            return width
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}|-?0[xX]\w+|-?\d+U?", text):
            digits = text.rstrip("U")
            return Immediate(int(digits[2:], 16) if digits[1:2] in [*"fFdD"] else int(digits, 0))
        if re.fullmatch(r"-?\d+\.\d*(e-?\d+)?", text):
            return Immediate(float(text))
        if parameter := re.fullmatch(r"\w+_param_(\d+)", text):
            return Immediate(int(parameter[1]))
        return Immediate(text)


@cache
def parse(ptx):
    """The kernel of a module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*\.(loc|file)\b[^\n]*", "", ptx, flags=re.S | re.M)
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*?)\{", text, re.S)
    end, depth = entry.end(), 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    parser = Parser()
    for statement in re.findall(r"[^;{}]*\.shared\b[^;]*;", text[: entry.start()]):
        parser.share(statement)
    parser.body(text[entry.end() : end - 1])
    for at, label, scopes in parser.jumps:
        (target,) = [scope[label] for scope in scopes if label in scope][-1:]
        parser.code[at].operands[:] = [target]
    for name, align in parser.dynamic:
        name.value = -(-parser.static_bytes // align) * align
        parser.static_bytes = name.value
    return Kernel(
        parser.code,
        parser.registers,
        parser.special,
        re.findall(r"(\w+_param_\d+)", entry[1]),
        int(re.search(r"\.reqntid\s+(\d+)", entry[2])[1]),
        parser.static_bytes,
    )
