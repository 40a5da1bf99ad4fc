"""How a call runs on the kernels: what is decided before any of its numbers are looked at."""

import math
from functools import lru_cache
from typing import NamedTuple

from . import plan as plans
from . import reference
from .kernels import config
from .packing import Packing
from .reference import Weights


class Call(NamedTuple):
    """How a call runs, as far as its tensors do not say: all that is known before it (`plan_call`).

    L layers in D directions of H units; P numbers in h, H where it is not projected; bias: whether
    there are any; projected; size: weights of a layer's direction; precision: of float32 products,
    "tf32" or "ieee"; tile, as keyword arguments, layers, at_once, one_step: of lstm.Plan; grid:
    tiles, and slices if there are several; sliced: whether there are; counters: sizes of those of
    all launches of several layers, () if there are none; numbers: that a step saves of each state,
    of a direction; bias_parts: of a bias's gradient, of a direction, 0 where the kernels leave
    none; biases: size of all their gradients, or of all parts, together; plain:
    whether plain.PlainLSTM can do it, not packed; packing: where packed rows lie, else None.
    """

    L: int
    D: int
    H: int
    P: int
    bias: bool
    projected: bool
    size: int
    precision: str
    tile: dict
    layers: int
    at_once: int
    one_step: bool
    grid: tuple
    sliced: bool
    counters: tuple
    numbers: int
    bias_parts: int
    biases: tuple
    plain: bool
    packing: Packing | None = None

    def weights(self, flat, layer):
        """Weights of each direction of a layer, of a flat list of all."""
        first = layer * self.D * self.size
        if not self.projected and self.bias:
            return [Weights(*flat[n : n + 4], None) for n in range(first, first + 4 * self.D, 4)]
        last = first + self.D * self.size
        return [reference.named(flat[n : n + self.size]) for n in range(first, last, self.size)]


@lru_cache(maxsize=1024)
def plan_call(plan, L, D, H, P, bias, B):
    """The Call of a lstm.Plan for so many sequences. P: 0 where it is not projected."""
    tile, projected = dict(plan.tile), P > 0
    grid, parts, counters = (1,), 0, ()
    if not plan.one_step:
        tiles, slices = -(-B // tile["BLOCK_B"]), -(-H // tile["BLOCK_H"])
        grid = (tiles, slices) if "PARTS" in tile else (tiles,)
        parts = tiles * config.bias_parts(tile, plans.interpreted())
        if plan.layers > 1:
            counters = -(-L // plan.layers), config.stages(plan.layers), tiles
    return Call(
        L, D, H, P or H, bias, projected, 2 + 2 * bias + projected, plan.precision, tile,
        plan.layers, plan.at_once, plan.one_step, grid, len(grid) > 1, counters,
        math.prod(grid) * tile["BLOCK_H"] * tile["BLOCK_B"], parts,
        (L * D, parts, 4 * H) if parts else (2, L * D, 4 * H),
        D == 1 and bias and not projected and len(grid) == 1,
    )  # fmt: skip
