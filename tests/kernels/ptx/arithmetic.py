"""Instructions that compute: types, and functions of the numbers of a thread."""

from functools import reduce

import numpy as np

WIDTH = {"pred": 1, "f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64}
WIDTH |= {f"{kind}{width}": width for kind in "bsu" for width in (8, 16, 32, 64)}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "u16x2": "u16", "s16x2": "s16", "f32x2": "f32"}
WIDTH |= {pair: 2 * WIDTH[one] for pair, one in PACKED.items()}


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
