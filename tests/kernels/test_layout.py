"""The orders of layout.py: none loses, repeats or moves a number, and products add up."""

import pytest
import torch
import triton
import triton.language as tl

from lstm.kernels import backward, forward
from lstm.kernels.exchange import (
    exchange_gates,
    exchange_units,
    gates_bytes,
    shared_memory,
    to_operand,
    units_bytes,
)
from lstm.kernels.layout import (
    from_gates,
    from_tile,
    operand_indices,
    pack,
    pair_indices,
    pairs_to_tile,
    product,
    tile_indices,
    to_gates,
    to_tile,
    unpack,
)

TILES = [(32, 8), (32, 32), (64, 16), (128, 8), (64, 4), (128, 2)]  # BLOCK_H, BLOCK_B
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# BLOCK_H, VEC: all that config.tile gives
OPERANDS = [(BLOCK_H, VEC) for BLOCK_H in (32, 64, 128) for VEC in (1, 2, 4, 8)]


@triton.jit
def indices_kernel(
    unit_ptr, sequence_ptr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, H: tl.constexpr
):
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    shape: tl.constexpr = (unit + sequence).shape
    offs = tl.arange(0, shape[0])[:, None] * shape[1] + tl.arange(0, shape[1])[None, :]
    tl.store(unit_ptr + offs, tl.broadcast_to(unit, shape))
    tl.store(sequence_ptr + offs, tl.broadcast_to(sequence, shape))


@triton.jit
def tile_kernel(
    x_ptr, tile_ptr, packed_ptr, unpacked_ptr, y_ptr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """x (BLOCK_B, BLOCK_H) through a tile to y, and to private order and back. H: odd or even."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    unit, sequence = tile_indices(BLOCK_H, BLOCK_B, H)
    x = to_tile(tl.load(x_ptr + sequence * BLOCK_H + unit), BLOCK_H, BLOCK_B)
    offs = tl.arange(0, BLOCK_H)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    tl.store(tile_ptr + offs, x)
    tl.store(packed_ptr + tl.arange(0, BLOCK_H * BLOCK_B), pack(x, dtype))
    tl.store(unpacked_ptr + offs, unpack(pack(x, dtype), BLOCK_H, BLOCK_B, dtype))
    tl.store(y_ptr + sequence * BLOCK_H + unit, from_tile(x, dtype, unit + sequence))


@triton.jit
def operands_kernel(
    out_ptr, BLOCK_H: tl.constexpr, VEC: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    block, wr, half, group, k = operand_indices(
        BLOCK_H // 16, BLOCK_H, VEC, max(VEC, 2), GROUPS, 4 // GROUPS
    )
    SIZE: tl.constexpr = 4 * BLOCK_H * BLOCK_H
    offs = tl.arange(0, SIZE)
    tl.store(out_ptr + offs, block)
    tl.store(out_ptr + SIZE + offs, wr)
    tl.store(out_ptr + 2 * SIZE + offs, half)
    tl.store(out_ptr + 3 * SIZE + offs, group)
    tl.store(out_ptr + 4 * SIZE + offs, k)


@triton.jit
def pairs_kernel(
    x_ptr, packed_ptr, tile_ptr, unpacked_ptr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr
):
    """x (BLOCK_B, BLOCK_H) and the same in private order to tiles, both read as words of two."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_ptr = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    packed_ptr = packed_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    unit, sequence = pair_indices(BLOCK_H, BLOCK_B)
    words = tl.load(x_ptr + sequence * (BLOCK_H // 2) + unit // 2)
    offs = tl.arange(0, BLOCK_H)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    tl.store(tile_ptr + offs, pairs_to_tile(words, BLOCK_H, BLOCK_B, dtype))
    words = tl.load(packed_ptr + tl.arange(0, BLOCK_H * BLOCK_B // 2))
    tl.store(unpacked_ptr + offs, unpack(words, BLOCK_H, BLOCK_B, dtype))


@triton.jit
def forward_product_kernel(
    weight_ptr, h_ptr, z_ptr, out_ptr,
    BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """z + weight (4, BLOCK_H, BLOCK_H) times h (BLOCK_H, BLOCK_B), as lstm_forward_kernel does."""
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    w, _ = forward.load_matrix(weight_ptr, None, tl.float16, BLOCK_H, BLOCK_H, BLOCK_B, VEC)
    offs = tl.arange(0, BLOCK_H)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    words = exchange_units(tl.load(h_ptr + offs), shared_memory(units_bytes(BLOCK_H, BLOCK_B)), 0)
    z_i = tl.load(z_ptr + offs)
    z_f = tl.load(z_ptr + SIZE + offs)
    z_g = tl.load(z_ptr + 2 * SIZE + offs)
    z_o = tl.load(z_ptr + 3 * SIZE + offs)
    operand = to_operand(words, BLOCK_H, BLOCK_B, tl.float16)
    if BLOCK_B >= 4:
        z = from_gates(z_i, z_f, z_g, z_o)
        i, f, g, o = to_gates(product(w, operand, z), BLOCK_B)
    else:
        i, f, g, o = to_gates(product(w, operand), BLOCK_B)
        i, f, g, o = z_i + i, z_f + f, z_g + g, z_o + o
    tl.store(out_ptr + offs, i)
    tl.store(out_ptr + SIZE + offs, f)
    tl.store(out_ptr + 2 * SIZE + offs, g)
    tl.store(out_ptr + 3 * SIZE + offs, o)


@triton.jit
def backward_product_kernel(
    weight_t_ptr, d_ptr, out_ptr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr, VEC: tl.constexpr
):
    """weight_t (BLOCK_H, 4, BLOCK_H) times d (4, BLOCK_H, BLOCK_B), as lstm_backward_kernel."""
    SIZE: tl.constexpr = BLOCK_H * BLOCK_B
    w, _, _ = backward.load_matrices(weight_t_ptr, tl.float16, BLOCK_H, BLOCK_H, BLOCK_B, VEC)
    offs = tl.arange(0, BLOCK_H)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    words = exchange_gates(
        tl.load(d_ptr + offs),
        tl.load(d_ptr + SIZE + offs),
        tl.load(d_ptr + 2 * SIZE + offs),
        tl.load(d_ptr + 3 * SIZE + offs),
        shared_memory(gates_bytes(BLOCK_H, BLOCK_B)),
    )
    tl.store(out_ptr + offs, backward.gates_product(w, words, BLOCK_H, BLOCK_B, tl.float16))


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize(("BLOCK_H", "BLOCK_B"), TILES)
def test_tile_indices_name_every_cell_once(BLOCK_H, BLOCK_B, odd, device):
    unit = torch.zeros(BLOCK_B * BLOCK_H, dtype=torch.int32, device=device)
    sequence = torch.zeros_like(unit)
    indices_kernel[(1,)](unit, sequence, BLOCK_H, BLOCK_B, BLOCK_H - odd, num_warps=BLOCK_H // 16)
    assert unit.max() < BLOCK_H and sequence.max() < BLOCK_B
    cells = (sequence * BLOCK_H + unit).flatten().sort().values
    assert torch.equal(cells.cpu(), torch.arange(BLOCK_H * BLOCK_B, dtype=torch.int32))
    if not odd:
        # Neighbours in memory order are pairs of units of one sequence, so of memory itself.
        pairs = unit.view(-1, 2)
        assert torch.equal(pairs[:, 1], pairs[:, 0] + 1)


@pytest.mark.parametrize(("BLOCK_H", "BLOCK_B"), TILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [0, 1])
def test_tiles_go_to_memory_and_private_order_and_back(BLOCK_H, BLOCK_B, dtype, odd, device):
    x = torch.randn(BLOCK_B, BLOCK_H, device=device).to(dtype)
    tile, unpacked = torch.empty(2, BLOCK_H, BLOCK_B, device=device)
    packed, y = torch.empty(BLOCK_H * BLOCK_B, device=device, dtype=dtype), torch.empty_like(x)
    tile_kernel[(1,)](
        x, tile, packed, unpacked, y, BLOCK_H, BLOCK_B, BLOCK_H - odd, num_warps=BLOCK_H // 16
    )
    assert torch.equal(tile, x.t().float())
    assert torch.equal(unpacked, tile)
    assert torch.equal(y, x)
    assert torch.equal(packed.sort().values, x.flatten().sort().values)


@pytest.mark.parametrize(("BLOCK_H", "BLOCK_B"), [tile for tile in TILES if tile[1] > 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_words_of_two_numbers_are_the_same_tile(BLOCK_H, BLOCK_B, dtype, device):
    x = torch.randn(BLOCK_B, BLOCK_H, device=device).to(dtype)
    tile, unpacked, other = torch.empty(3, BLOCK_H, BLOCK_B, device=device)
    packed = torch.empty(BLOCK_H * BLOCK_B, device=device, dtype=dtype)
    warps = BLOCK_H // 16
    tile_kernel[(1,)](
        x, other, packed, other, x.clone(), BLOCK_H, BLOCK_B, BLOCK_H, num_warps=warps
    )
    pairs_kernel[(1,)](x, packed, tile, unpacked, BLOCK_H, BLOCK_B, num_warps=warps)
    assert torch.equal(tile, x.t().float())
    assert torch.equal(unpacked, tile)


@pytest.mark.parametrize(("BLOCK_H", "BLOCK_B"), TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_private_order_is_runs_of_one_thread_after_another(BLOCK_H, BLOCK_B, dtype, device):
    run = min(BLOCK_B // 2, 16 // dtype.itemsize)
    packed = torch.zeros(2, BLOCK_H * BLOCK_B, device=device, dtype=dtype)
    other = torch.zeros(4, BLOCK_H * BLOCK_B, device=device)
    for row, (units, sequences) in enumerate([(1, 0), (0, 1)]):
        x = units * torch.arange(BLOCK_H) + sequences * torch.arange(BLOCK_B)[:, None]
        x = x.to(device, dtype)
        tile_kernel[(1,)](
            x, other[0], packed[row], other[1], x.clone(), BLOCK_H, BLOCK_B, BLOCK_H,
            num_warps=BLOCK_H // 16,
        )  # fmt: skip
    unit, sequence = packed.int().view(2, -1, run)
    c = {2: 2 * sequence + unit % 2, 4: sequence}.get(BLOCK_B, sequence // 2 % 4)
    thread = unit // 2 * 4 + c  # warp, r, c
    assert torch.equal(thread, thread[:, :1].expand_as(thread))
    expected = torch.arange(2 * BLOCK_H, dtype=torch.int32).repeat(BLOCK_B // 2 // run)
    assert torch.equal(thread[:, 0].cpu(), expected)


@pytest.mark.parametrize("GROUPS", [1, 2])
@pytest.mark.parametrize(("BLOCK_H", "VEC"), OPERANDS)
def test_operand_indices_name_every_weight_once(BLOCK_H, VEC, GROUPS, device):
    size = 4 * BLOCK_H * BLOCK_H
    out = torch.zeros(5, size, dtype=torch.int32, device=device)
    operands_kernel[(1,)](out, BLOCK_H, VEC, GROUPS, num_warps=BLOCK_H // 16)
    block, wr, half, group, k = out.cpu()
    ends = {"block": 4 // GROUPS, "wr": BLOCK_H // 2, "half": 2, "group": GROUPS, "k": BLOCK_H}
    number = torch.zeros_like(k)
    for (name, end), index in zip(ends.items(), (block, wr, half, group, k), strict=True):
        assert (index.min(), index.max()) == (0, end - 1), name
        number = number * end + index
    assert torch.equal(number.sort().values, torch.arange(size, dtype=torch.int32))
    # What a thread reads at once is VEC columns of one row, aligned.
    columns = k.view(-1, VEC)
    assert torch.equal(columns, columns[:, :1] + torch.arange(VEC, dtype=torch.int32))
    assert not (columns[:, 0] % VEC).any()
    for index in (block, wr, half, group):
        assert torch.equal(index.view(-1, VEC), index.view(-1, VEC)[:, :1].expand(-1, VEC))


def integers(*size, device):
    """Small enough for exact products and sums in float16 operands."""
    return torch.randint(-4, 5, size, device=device).half()


# Also of fewer sequences than eight, of which a thread has half as many weights side by side
PRODUCTS = [(*operand, 8) for operand in OPERANDS] + [
    (BLOCK_H, VEC, BLOCK_B) for BLOCK_H, VEC in OPERANDS for BLOCK_B in (4, 2) if 8 * VEC <= BLOCK_H
]


@pytest.mark.parametrize(("BLOCK_H", "VEC", "BLOCK_B"), PRODUCTS)
def test_forward_product(BLOCK_H, VEC, BLOCK_B, device):
    weight = integers(4, BLOCK_H, BLOCK_H, device=device)
    h = integers(BLOCK_H, BLOCK_B, device=device)
    z = integers(4, BLOCK_H, BLOCK_B, device=device).float()
    out = torch.empty(4, BLOCK_H, BLOCK_B, device=device)
    forward_product_kernel[(1,)](weight, h, z, out, BLOCK_H, BLOCK_B, VEC, num_warps=BLOCK_H // 16)
    assert torch.equal(out, z + weight.float() @ h.float())


@pytest.mark.parametrize(("BLOCK_H", "VEC", "BLOCK_B"), PRODUCTS)
def test_backward_product(BLOCK_H, VEC, BLOCK_B, device):
    weight_t = integers(BLOCK_H, 4, BLOCK_H, device=device)
    d = integers(4, BLOCK_H, BLOCK_B, device=device)
    out = torch.empty(BLOCK_H, BLOCK_B, device=device)
    backward_product_kernel[(1,)](weight_t, d, out, BLOCK_H, BLOCK_B, VEC, num_warps=BLOCK_H // 16)
    assert torch.equal(out, weight_t.float().flatten(1) @ d.float().flatten(0, 1))
