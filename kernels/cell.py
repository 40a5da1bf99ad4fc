"""The equations of the LSTM, forward and backward, on tiles.

    z = W_ih x + b_ih + W_hh h + b_hh
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c = f c_prev + i g;   h = o tanh(c)

FAST takes the hardware's tanh: one MUFU instruction where the exact form needs two, so five for a
cell, not ten. Its error of 5e-4 is below the rounding of bfloat16 and about that of float16, whose
kernels use it. sigmoid(z) is then (1 + tanh(z / 2)) / 2, and the kernels hold z / 2 for i, f and
o: those rows of W_hh are halved, exactly, as they are loaded, and the other half of the sum costs
no instruction of its own. EXACT is for float32 whose products are exact too.
"""

import triton.language as tl

from .layout import INTERPRETED, inline

_MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@inline
def _ex2(x):
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@inline
def _rcp(x):
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@inline
def _tanh(x):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@inline
def sigmoid(x):
    """Absolute error 1e-7. Saturates, never overflows."""
    if INTERPRETED:
        e = tl.exp(-tl.abs(x))
        return tl.where(x >= 0, 1.0, e) / (1.0 + e)
    else:
        return _rcp(1.0 + _ex2(_MINUS_LOG2_E * x))


@inline
def tanh(x, FAST: tl.constexpr, EXACT: tl.constexpr):
    """Absolute error 5e-4 if FAST, 1e-7 if EXACT, else 2e-7. Saturates, never overflows."""
    if FAST and not INTERPRETED:
        return _tanh(x)
    elif EXACT:
        # Its last bits are its own, where twice a sigmoid has twice the sigmoid's error.
        if INTERPRETED:
            e = tl.exp(-2.0 * tl.abs(x))
            y = (1.0 - e) / (1.0 + e)
        else:
            e = _ex2(2.0 * _MINUS_LOG2_E * tl.abs(x))
            y = (1.0 - e) * _rcp(1.0 + e)
        return tl.where(x < 0, -y, y)
    else:
        if INTERPRETED:
            return 2.0 * sigmoid(2.0 * x) - 1.0
        else:
            return 2.0 * _rcp(1.0 + _ex2((2 * _MINUS_LOG2_E) * x)) - 1.0


@inline
def gate_sigmoid(z, FAST: tl.constexpr):
    """sigmoid of a gate, given z / 2 if FAST, else z."""
    if FAST:
        return 0.5 * tanh(z, True, False) + 0.5
    else:
        return sigmoid(z)


@inline
def cell_forward(z_i, z_f, z_g, z_o, c, FAST: tl.constexpr, EXACT: tl.constexpr):
    """One step from the gates' sums: the activated gates, then h and c."""
    i = gate_sigmoid(z_i, FAST)
    f = gate_sigmoid(z_f, FAST)
    g = tanh(z_g, FAST, EXACT)
    o = gate_sigmoid(z_o, FAST)
    c = f * c + i * g
    return i, f, g, o, o * tanh(c, FAST, EXACT), c


@inline
def cell_factors(i, f, g, o, c_prev, c, FAST: tl.constexpr, EXACT: tl.constexpr):
    """What one step of backward multiplies dh and dc with, so all of it that can be known before
    either.

    dc += k_c dh;   di, df, dg, do = k_i dc, k_f dc, k_g dc, k_o dh   (of z);   dc_prev = f dc
    """
    tanh_c = tanh(c, FAST, EXACT)
    i_g = i * g
    f_c = f * c_prev
    o_t = o * tanh_c
    k_i = i_g - i_g * i
    k_f = f_c - f_c * f
    k_g = i - i_g * g
    k_o = o_t - o_t * o
    k_c = o - o_t * tanh_c
    return k_i, k_f, k_g, k_o, k_c
