"""The least time that a case can take on a card, and what sets it.

    python -m bench.bounds [--card H100]     # a table of the benchmarks' short list

Each launch of a call takes at least the longest of three times, and a call the sum of its launches:

    products    its multiply-adds over the rate of the tensor cores
    memory      its bytes over the bandwidth of memory, as if the second cache kept nothing from one
                launch to the next; none where all tensors of the call fit into it
    chain       its time steps, one after the other, each of the time that `step_cycles` has

A bound of these kernels, not of every LSTM: of their tiles, and of what they read and write. No
launch, no latency but that of the second cache, no bias and no optimizer count. Cards are as their
data sheets have them.
"""

import argparse
from dataclasses import dataclass, fields

import torch

from bench import cases
from lstm.kernels import config
from lstm.plan import joinable, plan

# Of a multiprocessor, in each cycle: special functions (CUDA programming guide, arithmetic
# instructions); bytes of shared memory and the first cache, which are one (32 banks of four).
MUFU_LANES, BYTES = 16, 128
# Of a cell: special functions in forward (kernels/cell.py); multiplications in backward that wait
# for dh, of k_c, k_i, k_f, k_g, k_o and f; numbers that either reads or writes, four gates or their
# gradients, five that are saved, and h or its gradient.
MUFU_OF_CELL = {"float32": 8, "bfloat16": 5, "float16": 5}
MULTIPLICATIONS_OF_CELL = 6
NUMBERS_OF_CELL = 10


@dataclass(frozen=True)
class Card:
    """A card at the clock for which its data sheet gives rates.

    device: in its name; clock: Hz; bandwidth: bytes of memory per second; l2: bytes of the second
    cache; l2_cycles: until a load from there arrives (Luo et al. 2024, arXiv 2402.13499, table IV);
    of a multiprocessor, in each cycle, multiply-adds: products: of 16 bits on the tensor cores, of
    TF32 half as many; lanes: of float32.
    """

    device: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    bandwidth: float
    l2: int
    l2_cycles: int
    products: int
    lanes: int


CARDS = {
    "A100": Card("A100-SXM4-80GB", (8, 0), 108, 1.41e9, 2.039e12, 40 << 20, 262, 1024, 64),
    "RTX 4090": Card("RTX 4090", (8, 9), 128, 2.52e9, 1.008e12, 72 << 20, 273, 256, 128),
    "H100": Card("H100 80GB HBM3", (9, 0), 132, 1.83e9, 3.35e12, 50 << 20, 263, 2048, 128),
    "H200": Card("H200", (9, 0), 132, 1.83e9, 4.8e12, 50 << 20, 263, 2048, 128),
}


def card_of(device_name):
    """The card of a device's name; None of one that is not listed."""
    known = [card for card in CARDS.values() if device_name.endswith(card.device)]
    return known[0] if known else None


@dataclass(frozen=True)
class Launch:
    """The three times of a launch, in seconds."""

    products: float
    memory: float
    chain: float = 0.0

    @property
    def least(self) -> float:
        """The longest of them."""
        return max(self.products, self.memory, self.chain)


@dataclass(frozen=True)
class Bound:
    """Of a call, in seconds: its three times, each of all launches, and the least it can take."""

    products: float
    memory: float
    chain: float
    least: float

    @property
    def by(self) -> str:
        """Which of the three is the longest."""
        return max(("products", "memory", "chain"), key=lambda name: getattr(self, name))


def step_cycles(tile, dtype, card, backward=False, together=1):
    """The least cycles of one time step of a program.

    The product waits for the exchange of h, or of the gates' gradients, and the cells for the
    product, which takes the longer of what the tensor cores multiply and what the warps read of
    shared memory for it. Nor can all that a step reads and writes take less than its bytes do. Of
    slices the exchange is through the second cache, and its latency all that counts of it.

    Args: tile: as config.tile has it; dtype: its name; together: programs of slices that share a
        multiprocessor.
    """
    H, B, warps = tile["BLOCK_H"], tile["BLOCK_B"], tile["num_warps"]
    # A warp has one of four schedulers, each with a quarter of all rates but those of bytes.
    share = min(1.0, warps / 4) / together
    # The tensor core's tile has eight columns, however few the sequences are.
    multiply = 4 * H * tile.get("BLOCK_K", H) * max(8, B) / (card.products * share)
    if backward:
        cells = MULTIPLICATIONS_OF_CELL * H * B / (card.lanes * share)
    else:
        cells = MUFU_OF_CELL[dtype] * H * B / (MUFU_LANES * share)
    if "PARTS" in tile:
        return card.l2_cycles + multiply + cells
    # In 16 bits h, or the gradients of four gates, which every warp reads all of, of two sequences
    # twice
    exchanged = 2 * H * (4 if backward else 1)
    read = warps * max(4, B) * exchanged
    moved = read + B * exchanged + NUMBERS_OF_CELL * H * B * getattr(torch, dtype).itemsize
    return max(max(multiply, read / BYTES) + cells, moved / BYTES)


def bound(case, card):
    """The bound of a case of sequences; None where it is not on the kernels.

    Of an "mnist step" that of its LSTM.
    """
    p = _planned(case, card)
    if case.mode not in (*cases.SEQUENCE, "mnist step") or p.path != "fused":
        return None
    launches = list(_launches(case, card, p))
    names = "products", "memory", "chain", "least"
    return Bound(*(sum(getattr(launch, name) for launch in launches) for name in names))


def of_record(made):
    """The bound of what a record was made of; None where none is known: of a card that CARDS lacks,
    of float32 with TF32 switched off.
    """
    case, card = _case_of(made)
    return bound(case, card) if card else None


def step_of_record(made, kernel):
    """The least cycles of a step of a kernel of a record; None as `of_record` has it."""
    case, card = _case_of(made)
    if card is None:
        return None
    tile = dict(_planned(case, card).tile)
    return step_cycles(tile, case.dtype, card, backward="backward" in kernel)


def _case_of(made):
    """A record's case and card, which is None if nothing is known of the two."""
    sizes = {field.name: made["case"][field.name] for field in fields(cases.Case)}
    if isinstance(sizes["T"], list):
        sizes["T"] = max(sizes["T"])
    card = card_of(made["env"].get("gpu", ""))
    exact = sizes["dtype"] == "float32" and made["case"]["fp32_precision"] == "ieee"
    return cases.Case(**sizes), None if exact else card


def _planned(case, card):
    """The plan of a case's layers on a card."""
    return plan(
        case.H, case.B, getattr(torch, case.dtype), card.capability,
        multiprocessors=card.multiprocessors, layers=joinable(case.T, case.num_layers, 0),
    )  # fmt: skip


def _launches(case, card, p):
    """Those of a call, cuBLAS's products among them."""
    tile, size = dict(p.tile), getattr(torch, case.dtype).itemsize
    rows, H, L = case.T * case.B, case.H, case.num_layers
    gates, states = rows * 4 * H, rows * H
    tiles = -(-case.B // tile["BLOCK_B"])
    # i, f, g, o and c of all units of a tile
    saved = 5 * case.T * tiles * tile["BLOCK_B"] * p.slices * tile["BLOCK_H"]
    # What is saved of all layers stays until backward.
    fits = (rows * case.I + L * (saved + states) + gates) * size <= card.l2
    bandwidth = float("inf") if fits else card.bandwidth
    rate = card.multiprocessors * card.clock * card.products  # in 16 bits
    if p.slices > 1:
        together, turns = -(-p.slices * p.at_once // card.multiprocessors), -(-tiles // p.at_once)
    else:
        together, turns = 1, -(-p.programs // config.room(H, card.multiprocessors))

    def product(width, *numbers):
        """Of a matrix of (4 H, width) with all rows."""
        return Launch(rows * width * 4 * H * (size // 2) / rate, sum(numbers) * size / bandwidth)

    def first_gates(layers):
        """W_ih x of the lowest, of several at once in float32."""
        return gates if layers == 1 else gates * 4 // size

    def steps(layers, backward=False):
        """Of one layer, or of several at once and the products between them. What these hand each
        other stays in the second cache.
        """
        if backward:
            numbers = states + layers * (saved + gates)
        else:
            numbers = first_gates(layers) + layers * (saved + states)
        cycles = turns * case.T * step_cycles(tile, case.dtype, card, backward, together)
        products = config.stages(layers) * rows * H * 4 * H
        return Launch(products / rate, numbers * size / bandwidth, cycles / card.clock)

    for first in range(0, L, p.layers):
        widths = [H if layer else case.I for layer in range(first, min(first + p.layers, L))]
        yield product(widths[0], rows * widths[0], first_gates(len(widths)))
        yield steps(len(widths))
        if case.mode != "forward":
            yield steps(len(widths), backward=True)
            for width in widths:
                yield product(width, rows * width, gates)  # the gradient of W_ih
                yield product(H, states, gates)  # of W_hh
            if first or case.mode != "mnist step":
                yield product(widths[0], rows * widths[0], gates)  # of the input


def table(card, some):
    """The bounds of cases in microseconds, as lines of a table in Markdown."""
    lines = [
        "| case | products | memory | chain | least | set by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in some:
        if found := bound(case, card):
            times = (found.products, found.memory, found.chain, found.least)
            cells = [str(case), *(f"{1e6 * time:.0f}" for time in times), found.by]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments=None):
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", choices=CARDS, default="H100", help="default: H100")
    args = parser.parse_args(arguments)
    print(f"{args.card}, microseconds of a call:\n")
    print("\n".join(table(CARDS[args.card], cases.SHORT)))


if __name__ == "__main__":
    main()
