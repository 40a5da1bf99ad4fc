"""Tile sizes and warps: a pure function of the sizes, which needs no GPU."""

# W_hh of more units does not fit the registers of one program; EXACT has every weight twice.
MAX_HIDDEN_SIZE = 128
MAX_EXACT_HIDDEN_SIZE = 64


def tile(hidden_size, batch, itemsize, interpreted=False, exact=False):
    """What one program works on, as keyword arguments of a launch.

    Args: itemsize: bytes of one weight in memory; interpreted: for Triton's interpreter, where a
        program's cost is nearly independent of its width, so that one tile takes the whole batch;
        exact: float32 products to float32's precision.
    Returns: {"BLOCK_H", "BLOCK_B", "VEC", "EXACT", "num_warps", "num_stages", "maxnreg"}.
    """
    block_h = max(16, 1 << (hidden_size - 1).bit_length())
    return {
        "BLOCK_H": block_h,
        # Eight sequences are the tensor core's narrowest tile: the more programs, the more
        # multiprocessors work.
        "BLOCK_B": min(max(8, 1 << (batch - 1).bit_length()), 1024) if interpreted else 8,
        # Weights a thread reads at once: 16 bytes, as far as rows of H weights stay aligned and
        # four lanes share one.
        "VEC": max(
            v
            for v in (1, 2, 4, 8)
            if hidden_size % v == 0 and v * itemsize <= 16 and 4 * v <= block_h
        ),
        "EXACT": exact,
        # Layout: 16 units a warp, two a thread. Weights then take 128 registers at 128 units.
        "num_warps": block_h // 16,
        # Pipelining would move loads across the steps' barriers and double their buffers; the
        # kernels prefetch.
        "num_stages": 1,
        # Left to itself ptxas aims at more programs a multiprocessor, and may spill for it (H=24 on
        # sm_89). The latency of one program is what counts.
        "maxnreg": 255,
    }
