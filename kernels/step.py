"""One step of one layer in one launch, of any sizes: both products and the cell.

    z = W_ih x + b_ih + W_hh h_0 + b_hh;   h_1, c_1 = cell(z, c_0)

A program owns a tile of sequences by units with all four gates of each, so the cell runs on what
its products leave in registers and z never sees memory. Nothing stays on chip between two steps,
since the caller holds the state: each launch reads all weights, (I + H) 4 H numbers, which come
from L2 where they fit. That and a launch bound it for few sequences.
"""

import triton
import triton.language as tl

from .cell import cell_factors, cell_forward, tanh
from .launching import launch
from .layout import INTERPRETED, inline


@inline
def add_product(
    z_i, z_f, z_g, z_o, x_ptr, stride_x, weight_ptr, row, unit, B, H, K,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z += x W^T for each gate. x (B, K), rows stride_x apart; weight (4, H, K)."""
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        mask = (row < B)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + row[:, None] * stride_x + k[None, :], mask=mask, other=0.0)
        mask = (k < K)[:, None] & (unit < H)[None, :]
        pointers = weight_ptr + unit[None, :] * K + k[:, None]  # of W^T: (BLOCK_K, BLOCK_H)
        z_i = _dot(x, tl.load(pointers, mask=mask, other=0.0), z_i, PRECISION)
        pointers += H * K
        z_f = _dot(x, tl.load(pointers, mask=mask, other=0.0), z_f, PRECISION)
        pointers += H * K
        z_g = _dot(x, tl.load(pointers, mask=mask, other=0.0), z_g, PRECISION)
        pointers += H * K
        z_o = _dot(x, tl.load(pointers, mask=mask, other=0.0), z_o, PRECISION)
    return z_i, z_f, z_g, z_o


@inline
def _dot(x, w, z, PRECISION: tl.constexpr):
    if INTERPRETED:
        return z + tl.dot(x.to(tl.float32), w.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(x, w, z, input_precision=PRECISION)


@triton.jit(do_not_specialize=["B"])
def lstm_step_kernel(
    input_ptr, weight_ih_ptr, weight_hh_ptr, bias_ih_ptr, bias_hh_ptr, h_0_ptr, c_0_ptr,
    h_1_ptr, c_1_ptr, output_ptr, gates_ptr,
    B, I, H, stride_input, stride_h_0, stride_c_0,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_B sequences by BLOCK_H units of one step.

    Shapes: input (B, I); weight_ih (4, H, I); weight_hh (4, H, H); biases (4, H) or both None;
        h_0, c_0 (B, H), or both None for zeros; h_1, c_1 (B, H); output (B, H), None
        where h_1 is not wanted twice; gates (B, 4, H), i, f, g, o after activation, None where no
        gradient is wanted. One dtype, all contiguous save input, h_0 and
        c_0, whose rows are their stride apart.
    Numerics: products accumulate and the cell runs in float32; PRECISION: of float32 products,
        "tf32" or "ieee".
    """
    dtype: tl.constexpr = h_1_ptr.dtype.element_ty
    FAST: tl.constexpr = dtype != tl.float32
    row, unit = _rows_and_units(BLOCK_B, BLOCK_H)
    z_i = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    z_f, z_g, z_o = z_i, z_i, z_i
    z_i, z_f, z_g, z_o = add_product(
        z_i, z_f, z_g, z_o, input_ptr, stride_input, weight_ih_ptr, row, unit, B, H, I,
        BLOCK_K, PRECISION,
    )  # fmt: skip
    c = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    mask = (row < B)[:, None] & (unit < H)[None, :]
    if h_0_ptr is not None:
        z_i, z_f, z_g, z_o = add_product(
            z_i, z_f, z_g, z_o, h_0_ptr, stride_h_0, weight_hh_ptr, row, unit, B, H, H,
            BLOCK_K, PRECISION,
        )  # fmt: skip
        pointers = c_0_ptr + row[:, None] * stride_c_0 + unit[None, :]
        c = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    if bias_ih_ptr is not None:
        z_i += _bias(bias_ih_ptr, bias_hh_ptr, unit, H)
        z_f += _bias(bias_ih_ptr + H, bias_hh_ptr + H, unit, H)
        z_g += _bias(bias_ih_ptr + 2 * H, bias_hh_ptr + 2 * H, unit, H)
        z_o += _bias(bias_ih_ptr + 3 * H, bias_hh_ptr + 3 * H, unit, H)
    if FAST:
        # gate_sigmoid takes halves
        z_i, z_f, z_o = 0.5 * z_i, 0.5 * z_f, 0.5 * z_o
    i, f, g, o, h, c = cell_forward(z_i, z_f, z_g, z_o, c, FAST, PRECISION == "ieee")
    offs = row[:, None] * H + unit[None, :]
    tl.store(h_1_ptr + offs, h.to(dtype), mask=mask)
    tl.store(c_1_ptr + offs, c.to(dtype), mask=mask)
    if output_ptr is not None:
        tl.store(output_ptr + offs, h.to(dtype), mask=mask)
    if gates_ptr is not None:
        gates_ptr += row[:, None] * (4 * H) + unit[None, :]
        tl.store(gates_ptr, i.to(dtype), mask=mask)
        tl.store(gates_ptr + H, f.to(dtype), mask=mask)
        tl.store(gates_ptr + 2 * H, g.to(dtype), mask=mask)
        tl.store(gates_ptr + 3 * H, o.to(dtype), mask=mask)


@inline
def _bias(bias_ih_ptr, bias_hh_ptr, unit, H):
    """Both biases of a gate, (1, BLOCK_H)."""
    bias_ih = tl.load(bias_ih_ptr + unit, mask=unit < H, other=0.0).to(tl.float32)
    bias_hh = tl.load(bias_hh_ptr + unit, mask=unit < H, other=0.0).to(tl.float32)
    return (bias_ih + bias_hh)[None, :]


@triton.jit(do_not_specialize=["B"])
def lstm_step_backward_kernel(
    gates_ptr, c_0_ptr, c_1_ptr, grad_h_1_ptr, grad_c_1_ptr,
    grad_gates_ptr, grad_c_0_ptr,
    B, H, stride_c_0, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """BLOCK_B sequences by BLOCK_H units of one step.

    Shapes: as lstm_step_kernel has them; grad_gates (B, 4, H), of z; c_0, grad_h_1 and grad_c_1 may
        be None, for zeros, grad_c_0 where it is not wanted.
    """
    dtype: tl.constexpr = grad_gates_ptr.dtype.element_ty
    FAST: tl.constexpr = dtype != tl.float32
    row, unit = _rows_and_units(BLOCK_B, BLOCK_H)
    row, unit = row[:, None], unit[None, :]
    mask = (row < B) & (unit < H)
    offs = row * H + unit
    gates_ptr += row * (4 * H) + unit
    i = tl.load(gates_ptr, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(gates_ptr + H, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gates_ptr + 2 * H, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(gates_ptr + 3 * H, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_1_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    zeros = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    c_prev, dh, dc = zeros, zeros, zeros
    if c_0_ptr is not None:
        c_prev = tl.load(c_0_ptr + row * stride_c_0 + unit, mask=mask, other=0.0).to(tl.float32)
    if grad_h_1_ptr is not None:
        dh = tl.load(grad_h_1_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if grad_c_1_ptr is not None:
        dc = tl.load(grad_c_1_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    k_i, k_f, k_g, k_o, k_c = cell_factors(i, f, g, o, c_prev, tanh(c, FAST, not FAST))
    dc += k_c * dh
    grad_gates_ptr += row * (4 * H) + unit
    tl.store(grad_gates_ptr, (k_i * dc).to(dtype), mask=mask)
    tl.store(grad_gates_ptr + H, (k_f * dc).to(dtype), mask=mask)
    tl.store(grad_gates_ptr + 2 * H, (k_g * dc).to(dtype), mask=mask)
    tl.store(grad_gates_ptr + 3 * H, (k_o * dh).to(dtype), mask=mask)
    if grad_c_0_ptr is not None:
        tl.store(grad_c_0_ptr + offs, (f * dc).to(dtype), mask=mask)


@inline
def _rows_and_units(BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """Sequences of this program, in 64 bits, and its units: weights have fewer than 2^31 numbers
    (config.MAX_STEP_SIZE).
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    return row, tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)


def lstm_step(
    input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, h_1, c_1, output, gates, tile
):  # fmt: skip
    """Launch lstm_step_kernel, whose docstring has the shapes. tile: config.step_tile(...)."""
    (B, H), I = h_1.shape, input.shape[1]
    strides = [0 if x is None else x.stride(0) for x in (input, h_0, c_0)]
    launch(
        lstm_step_kernel, _grid(B, H, tile),
        input, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, h_1, c_1, output, gates,
        B, I, H, *strides, **tile,
    )  # fmt: skip


def lstm_step_backward(gates, c_0, c_1, grad_h_1, grad_c_1, grad_gates, grad_c_0, tile):
    """Launch lstm_step_backward_kernel, whose docstring has the shapes. tile: as forward had it."""
    B, H = c_1.shape
    launch(
        lstm_step_backward_kernel, _grid(B, H, tile),
        gates, c_0, c_1, grad_h_1, grad_c_1, grad_gates, grad_c_0,
        B, H, 0 if c_0 is None else c_0.stride(0), tile["BLOCK_B"], tile["BLOCK_H"],
        num_warps=tile["num_warps"],
    )  # fmt: skip


def _grid(B, H, tile):
    return -(-B // tile["BLOCK_B"]), -(-H // tile["BLOCK_H"]), 1
