"""The equations of the LSTM, forward and backward, on tiles.

    z = W_ih x + b_ih + W_hh h + b_hh
    i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
    c = f c_prev + i g;   h = o tanh(c)

What a cell costs is MUFU instructions, 4 lanes a clock and quarter of a multiprocessor:

    FAST    5   the hardware's tanh. Its error of 5e-4 is below the rounding of bfloat16 and about
                that of float16, whose kernels use it. sigmoid(z) is (1 + tanh(z / 2)) / 2, and the
                kernels hold z / 2 for i, f and o: those rows of W_hh are halved, exactly, as they
                are loaded, and the other half of the sum costs no instruction of its own.
    float32 8   an exponential each, and a reciprocal for o, for tanh(c) and for all others: of the
                product of the denominators of i, f and g.
    EXACT  10   an exponential and a reciprocal each, for float32 whose products are exact too.
"""

import triton.language as tl

from .layout import INTERPRETED, choose, inline

_MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@inline
def _ex2(x):
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@inline
def _rcp(x):
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@inline
def _tanh(x):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@inline
def _one_over_denominator(x):
    """1 / (1 + 2^x): sigmoid of -x log 2. Saturates, never overflows."""
    if INTERPRETED:
        e = _ex2(-tl.abs(x))
        return tl.where(x <= 0, 1.0, e) / (1.0 + e)
    else:
        return _rcp(1.0 + _ex2(x))


@inline
def tanh(x, FAST: tl.constexpr, EXACT: tl.constexpr):
    """Absolute error 5e-4 if FAST, 2e-7 if EXACT, else 4e-7. Saturates, never overflows."""
    if FAST and not INTERPRETED:
        return _tanh(x)
    elif EXACT:
        # Its last bits are its own, where twice a sigmoid has twice the sigmoid's error.
        e = _ex2(tl.abs(x) * (2.0 * _MINUS_LOG2_E))
        y = (1.0 - e) * _rcp(1.0 + e)
        return tl.where(x < 0, -y, y)
    else:
        return 2.0 * _one_over_denominator(x * (2.0 * _MINUS_LOG2_E)) - 1.0


@inline
def gate_sigmoid(z, FAST: tl.constexpr):
    """sigmoid of a gate, given z / 2 if FAST, else z. Absolute error 2.5e-4 if FAST, else 2e-7."""
    if FAST:
        return 0.5 * tanh(z, True, False) + 0.5
    else:
        return _one_over_denominator(z * _MINUS_LOG2_E)


@inline
def _denominator(x):
    """1 + 2^x, but at most 2^42; of a NaN a NaN."""
    return 1.0 + _ex2(tl.minimum(x, 42.0, propagate_nan=tl.PropagateNan.ALL))


@inline
def _cell_float32(z_i, z_f, z_g, z_o, c, k):
    """The cell of sums that times k are -z log2 e. Absolute errors: 4e-7, of g 7e-7.

    The product of three denominators must not overflow, so each is cut. What the cut leaves of i
    and f is taken away: where all three are saturated they are exactly 0 or 1, and pass on no
    gradient, however large the weights. o shares nothing with c: its NaN is not c's.
    """
    n_i = _denominator(z_i * k)
    n_f = _denominator(z_f * k)
    n_g = _denominator(z_g * (2.0 * k))
    o = _one_over_denominator(z_o * k)
    n_ig = n_i * n_g
    r = _rcp(n_ig * n_f)
    f = r * n_ig - 2.0**-42
    r_ig = r * n_f
    i = r_ig * n_g - 2.0**-42
    g = 2.0 * (r_ig * n_i) - 1.0
    c = f * c + i * g
    return i, f, g, o, o * tanh(c, False, False), c


@inline
def cell_forward(z_i, z_f, z_g, z_o, c, FAST: tl.constexpr, EXACT: tl.constexpr, unit=1.0):
    """One step from the gates' sums: the activated gates, then h and c.

    unit: of float32, what the sums are multiples of.
    """
    if FAST or EXACT:
        i = gate_sigmoid(z_i, FAST)
        f = gate_sigmoid(z_f, FAST)
        g = tanh(z_g, FAST, EXACT)
        o = gate_sigmoid(z_o, FAST)
        c = f * c + i * g
        return i, f, g, o, o * tanh(c, FAST, EXACT), c
    else:
        return _cell_float32(z_i, z_f, z_g, z_o, c, _MINUS_LOG2_E * unit)


@inline
def take_step(
    z_i, z_f, z_g, z_o, h_prev, c_prev, active, FAST: tl.constexpr, EXACT: tl.constexpr, unit=1.0
):
    """The activated gates, h and c. active: which sequences take the step, None for all; the others
    keep their states; unit: as `cell_forward` has it.
    """
    i, f, g, o, h, c = cell_forward(z_i, z_f, z_g, z_o, c_prev, FAST, EXACT, unit)
    if active is not None:
        h = choose(active, h, h_prev)
        c = choose(active, c, c_prev)
    return i, f, g, o, h, c


@inline
def cell_factors(i, f, g, o, c_prev, tanh_c):
    """What one step of backward multiplies dh and dc with, so all of it that can be known before
    either. tanh_c: of the c that the step left.

    dc += k_c dh;   di, df, dg, do = k_i dc, k_f dc, k_g dc, k_o dh   (of z);   dc_prev = f dc
    """
    i_g = i * g
    f_c = f * c_prev
    o_t = o * tanh_c
    k_i = i_g - i_g * i
    k_f = f_c - f_c * f
    k_g = i - i_g * g
    k_o = o_t - o_t * o
    k_c = o - o_t * tanh_c
    return k_i, k_f, k_g, k_o, k_c
