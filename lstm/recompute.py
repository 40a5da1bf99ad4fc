"""Long sequences in little memory: parts of the steps, each computed again in backward.

Of a part only its input and the states it begins with are kept, and only while backward works on it
are its gates there. That costs a second forward.
"""

import torch
from torch.utils.checkpoint import checkpoint

from .reference import by_layer


def lstm(run, input, h_0, c_0, weights, masks, resets, L, D, packing, steps):
    """layer.lstm, in parts of so many steps.

    run(input, h_0, c_0, weights, masks, resets, L, D, packing): what computes a part; the rest as
    layer.lstm has it, of L layers in D directions.
    """
    if D == 1:
        return _parts(run, input, h_0, c_0, weights, masks, resets, L, packing, steps)
    # The second direction ends where the first begins, so no part is done before all of them are,
    # and layers come one after the other. It is the first of a sequence that is turned around.
    turn = packing.turned if packing else None
    x, h_n, c_n = input, [], []
    layers = by_layer(weights, 2 * L)
    for n in range(0, 2 * L, 2):
        outputs = []
        for direction in range(2):
            states = (None if s is None else s[n + direction, None] for s in (h_0, c_0))
            x_d, resets_d = (x, resets) if direction == 0 else _turned(x, resets, turn)
            y, h, c = _parts(
                run, x_d, *states, layers[n + direction], None, resets_d, 1, packing, steps
            )
            outputs.append(y if direction == 0 else _turned(y, None, turn)[0])
            h_n.append(h)
            c_n.append(c)
        x = torch.cat(outputs, dim=-1)
        if n // 2 < len(masks or ()):
            x = x * masks[n // 2]
    return x, torch.cat(h_n), torch.cat(c_n)


def _parts(run, input, h, c, weights, masks, resets, L, packing, steps):
    """`lstm` in one direction."""
    outputs = []
    T, B = (packing.T, packing.B) if packing else input.shape[:2]
    rows = packing.host_offsets if packing else range(T + 1)
    for begin in range(0, T, steps):
        part = slice(rows[begin], rows[min(begin + steps, T)])
        of_part = packing.part(begin, begin + steps) if packing else None
        alive = of_part.B if packing else B
        x, h_0, c_0 = input[part], *(s if s is None else s[:, :alive] for s in (h, c))
        y, h_n, c_n = checkpoint(
            run, x, h_0, c_0, weights, masks and [mask[part] for mask in masks],
            resets if resets is None else resets[part], L, 1, of_part,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        # Sequences that have ended keep their last state.
        h, c = (
            last if alive == B else torch.cat((last, before[:, alive:]), dim=1)
            for last, before in ((h_n, h), (c_n, c))
        )
        outputs.append(y)
    return torch.cat(outputs), h, c


def _turned(x, resets, turn):
    """Rows, and the flags between them, of the same sequences from the end; turn: of packed ones,
    which row comes where.
    """
    if turn is None:
        flip = x.flip(0)
        if resets is None:
            return flip, None
        # A flag belongs to the later step of two, which is now the other one.
        return flip, torch.cat((torch.zeros_like(resets[:1]), resets.flip(0)[:-1]))
    row, later = turn
    if resets is None:
        return x[row], None
    return x[row], torch.cat((resets, resets.new_zeros(1)))[later]
