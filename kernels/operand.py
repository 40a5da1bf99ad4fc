"""Operands of the products: their dtype, and the powers of two that keep them in its range.

float16 and bfloat16 tensors are multiplied as they are. float32 ones are multiplied in float16:
it has TensorFloat-32's 10 bits of mantissa at half the registers, which is what lets W_hh of 128
units stay on one multiprocessor. What it lacks is TensorFloat-32's range, so every operand is
brought into range by a power of two, which rounds nothing, and the product is multiplied back in
float32: W_hh by one for all (`load_weights`), h_0 and the gates' gradients by one for each
sequence at each step (`to_range`, `gates_to_range`). |h| < 1 needs none.

EXACT is for float32 products as exact as float32's own. An operand is then two float16 numbers,
its rounding and the rest (`split`), 22 bits in all, and a product is three, W x + W x_rest +
W_rest x: the fourth is below the last bit. W_hh takes twice the registers, so it is for half the
units.
"""

import triton.language as tl

from .exchange import largest_of_all
from .layout import INTERPRETED, inline, uniform


@inline
def power_of_two(largest):
    """s with s * largest in [2^14, 2^15), just below float16's end, and 1 / s. Of any float32."""
    # Exponents in place, above 23 bits of mantissa. 268 takes nine bits: modulo 2^32.
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 15 << 23), 254 << 23)
    scale = ((268 << 23) - 2**32 - exponent).to(tl.float32, bitcast=True)
    inverse = (exponent - (14 << 23)).to(tl.float32, bitcast=True)
    return scale, inverse


# What a rest is multiplied by: as large as what it is the rest of, it loses no bits to range.
REST = tl.constexpr(2048.0)


@inline
def split(x):
    """float32 to float16, and REST times what that leaves."""
    rounded = x.to(tl.float16)
    return rounded, ((x - rounded.to(tl.float32)) * REST).to(tl.float16)


@inline
def load_exact_weights(pointers, mask):
    """The weights times a power of two as `split` has them, and the inverse of that power."""
    w = tl.load(pointers, mask=mask, other=0.0)
    size = tl.abs(w)
    scale, inverse = power_of_two(tl.max(tl.where(size < float("inf"), size, 0.0)))
    w, rest = split(w * scale)
    return w, rest, inverse


# float32's sums are multiplied as its weights are. Of weights all below this, by no more than 2^60:
# z times that overflows only where it saturates.
LEAST = tl.constexpr(2.0**-46)


@inline
def load_weights(pointers, mask, factor, DOT: tl.constexpr, LEAST: tl.constexpr = 0.0):
    """The weights times factor and a power of two, in DOT; the inverse of that power, which is that
    of the largest weight or of LEAST; and of float32, whether some are not finite, 1 or 0.
    """
    w = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * factor
    if pointers.dtype.element_ty == DOT:
        return w.to(DOT), 1.0, 0
    else:
        # A fixed power serves where the largest weight is between 1/256 and 256. It takes no second
        # look at float32 weights, for which registers are too few.
        inverse, infinite = 1.0 / 256.0, 0
        w = _to_float16(w * 256.0)
        largest = tl.max((w.to(tl.int16, bitcast=True) & 0x7FFF).to(tl.int32))
        if uniform(((largest < 0x3C00) | (largest >= 0x7C00)).to(tl.int32)) > 0:  # 1, inf, NaN
            w = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * factor
            size = tl.abs(w)
            finite = size < float("inf")
            infinite = tl.max(1 - finite.to(tl.int32))
            largest_size = tl.max(tl.where(finite, size, 0.0))
            scale, inverse = power_of_two(tl.maximum(largest_size, LEAST))
            w = _to_float16(w * scale)
        return w, inverse, infinite


@inline
def _to_float16(x):
    """x.to(tl.float16), of which LLVM's vectoriser would take seconds to see that it is done."""
    if INTERPRETED:
        return x.to(tl.float16)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.float16, is_pure=True, pack=2
        )


@inline
def to_range(h, table):
    """A tile times a power of two for each sequence that brings its largest number to the end of
    float16's range, and the inverse powers, (1, BLOCK_B). table: as `largest_of_all` has it.
    """
    scale, inverse = power_of_two(largest_of_all(tl.abs(h), table))
    return h * scale, inverse


@inline
def largest_gate(di, df, dg, do):
    """The largest gradient of each unit's gates: a tile."""
    return tl.maximum(tl.maximum(tl.abs(di), tl.abs(df)), tl.maximum(tl.abs(dg), tl.abs(do)))


@inline
def gates_to_range(di, df, dg, do, largest):
    """The gates' gradients times a power of two for each sequence, and the inverse powers. largest:
    of each sequence, among all units.

    Gradients of a mean loss are about 1e-6: below float16's range without it.
    """
    scale, inverse = power_of_two(largest)
    return di * scale, df * scale, dg * scale, do * scale, inverse
