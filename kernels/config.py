"""Tile sizes and warps: pure functions of the sizes, which need no GPU."""

# The registers of one program hold W_hh of so many units; EXACT has every weight twice.
MAX_ONE_SLICE = 128
MAX_EXACT_HIDDEN_SIZE = 64
# Slices of 16 units, with 128 columns of W_hh a warp: eight warps.
MAX_HIDDEN_SIZE = 1024

# Of a launch. Each number of layers is compiled for itself, and has arguments of its own.
MAX_LAYERS_AT_ONCE = 8

# Programs of forward, besides those of the tiles, that transpose W_hh of a direction: one a gate.
TRANSPOSERS = 4

# One step reads all its weights anew, I + H of them for each gate of a unit, one after the other.
# Of more, cuBLAS shares the reading better among programs than our plain loop does (estimated).
MAX_STEP_SIZE = 1024


def tile(hidden_size, batch, itemsize, interpreted=False, exact=False, block_b=8):
    """What one program works on, as keyword arguments of a launch.

    Args: itemsize: bytes of one weight in memory; interpreted: for Triton's interpreter, where a
        program's cost is nearly independent of its width, so that one tile takes the whole batch;
        exact: float32 products to float32's precision, of one slice; block_b: sequences on a GPU.
    Returns: {"BLOCK_H", "BLOCK_B", "VEC", "EXACT"}, of several slices {"BLOCK_H", "BLOCK_K",
        "BLOCK_B", "PARTS", "VEC"}, and {"num_warps", "num_stages", "maxnreg"}.
    """
    # Two warps at least: a lane reads h of eight neighbouring units at once (exchange.py).
    block_k = max(32, 1 << (hidden_size - 1).bit_length())
    sliced = block_k > MAX_ONE_SLICE
    if sliced:
        # Slices of a tensor core's rows, and the columns of W_hh split among the warps, so that no
        # two of them read the same h: at most 128 columns each, which take the same 128 registers.
        # Four warps at least, a thread for each of 16 units by eight sequences.
        block_h, num_warps = 16, max(4, block_k // 128)
    else:
        # Layout: 16 units a warp, two a thread. Weights then take 128 registers at 128 units.
        block_h, num_warps = block_k, block_k // 16
    return {
        "BLOCK_H": block_h,
        **({"BLOCK_K": block_k} if sliced else {}),
        "BLOCK_B": min(max(8, 1 << (batch - 1).bit_length()), 1024) if interpreted else block_b,
        **({"PARTS": num_warps} if sliced else {}),
        # Weights a thread reads at once: 16 bytes, as far as rows of H weights stay aligned and
        # four lanes share one, of few sequences half of one.
        "VEC": max(
            v
            for v in (1, 2, 4, 8)
            if hidden_size % v == 0
            and v * itemsize <= 16
            and (8 if block_b < 8 else 4) * v <= block_h
        ),
        **({} if sliced else {"EXACT": exact}),
        "num_warps": num_warps,
        # Pipelining would move loads across the steps' barriers and double their buffers; the
        # kernels prefetch.
        "num_stages": 1,
        # Left to itself ptxas aims at more programs a multiprocessor, and may spill for it (H=24 on
        # sm_89). The latency of one program is what counts.
        "maxnreg": 255,
    }


def bias_parts(tile, interpreted=False):
    """Parts of the biases' gradients that backward leaves of a tile: what threads have, a part for
    each lane of layout.tile_indices. None of slices, of EXACT and of eight sequences, where they
    take registers that the loop needs. Args: interpreted as `tile` has it.
    """
    if "PARTS" in tile or tile["EXACT"] or (tile["BLOCK_B"] >= 8 and not interpreted):
        return 0
    return min(4, tile["BLOCK_B"])


def joint_tile(tile):
    """What a program of several layers at once works on: a `tile` of one slice, never EXACT."""
    return {name: value for name, value in tile.items() if name != "EXACT"}


def room(hidden_size, multiprocessors):
    """Programs of one slice that a card runs at once, each as fast as alone: a multiprocessor has
    four schedulers, for one warp each, and where a program has more warps, for one program.
    """
    return multiprocessors * max(1, 4 // tile(hidden_size, 1, 4)["num_warps"])


def sequences(hidden_size, batch, programs, multiprocessors):
    """Of each tile of one slice: the fewest of 2, 4 and 8 for which there is room; None if there is
    not. programs: of a tile, in both directions, or `stages` of several layers at once.

    The tensor core multiplies eight in any case, but of fewer each thread has fewer cells, and a
    step takes less time.
    """
    at_once = room(hidden_size, multiprocessors)
    for block_b in (2, 4, 8):
        if programs * (-(-batch // block_b) + TRANSPOSERS) <= at_once:
            return block_b
    return None


def stages(layers):
    """Programs of a tile of so many layers at once: of each, and of the product between any two."""
    return 2 * layers - 1


def layers_at_once(hidden_size, batch, layers, multiprocessors):
    """How many of them a launch takes, so that there are as few launches as there is room for; 1 if
    there is none for two.
    """
    # Each launch takes all steps anew, which costs more than more sequences a tile do (estimated).
    for launches in range(-(-layers // MAX_LAYERS_AT_ONCE), layers):
        together = -(-layers // launches)
        if sequences(hidden_size, batch, stages(together), multiprocessors):
            return together
    return 1


def capacity(batch, hidden_size, interpreted=False):
    """Sequences that all tiles of a batch hold, at most. Nothing is compared with the batch, which
    may be a number that is not known yet.
    """
    if interpreted:
        return 2 * batch + 16
    block_b = 8 if hidden_size <= MAX_ONE_SLICE else 16
    return (batch + block_b - 1) // block_b * block_b


def slices(hidden_size, tile):
    """Programs that share the units of one tile."""
    return -(-hidden_size // tile["BLOCK_H"])


def resident(multiprocessors, tile):
    """Programs that a card holds at once: as many as its registers, 65,536 a multiprocessor."""
    return multiprocessors * (65536 // (256 * 32 * tile["num_warps"]))


def step_tile(batch, itemsize, interpreted=False, precision="ieee", aligned=False):
    """What one program of lstm_step_kernel works on, as keyword arguments of a launch.

    Args: as `tile` has them; precision: of float32 products, "tf32" or "ieee"; aligned: whether
        sizes of both products are multiples of 16.
    Returns: {"BLOCK_B", "BLOCK_H", "BLOCK_K", "PRECISION", "num_warps", "num_stages"}.
    """
    if interpreted:
        return {
            "BLOCK_B": min(max(16, 1 << (batch - 1).bit_length()), 256),
            "BLOCK_H": 256,
            "BLOCK_K": 256,
            "PRECISION": precision,
            "num_warps": 4,
            "num_stages": 1,
        }
    few = batch <= 64
    wide = few and aligned and (itemsize == 2 or precision == "tf32")
    return {
        # Rows of a tensor core's tile, of which few sequences leave some empty; more of them share
        # a reading of the weights.
        "BLOCK_B": 16 if few else 64,
        # As few as it takes: programs are what shares the reading of the weights.
        "BLOCK_H": 16,
        # 64 bytes of a row, or 256: a turn of the loop waits for two barriers whatever it has. But
        # of so many, rows that are not aligned take too many registers for their addresses, more
        # sequences too much shared memory, and exact products too many instructions to gain by it.
        "BLOCK_K": (256 if wide else 64) // itemsize,
        "PRECISION": precision,
        # A warp for each eight units, or for each 16 sequences
        "num_warps": 2 if few else 4,
        # Tiles on their way while one is multiplied, and that one
        "num_stages": 3 if wide else 4,
    }
