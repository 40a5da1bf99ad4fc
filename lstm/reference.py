"""The LSTM as a plain torch loop, in any dtype: what the kernels are held against."""

import torch
from torch.nn import functional as F


def lstm(input, h_0, c_0, layers, masks=None, linear=F.linear, D=1, batch_sizes=None):
    """layer.lstm by the equations, one step at a time; differentiable to any order.

    Args, shapes and returns: as layer.lstm; linear: what multiplies with a weight, to model a
    rounding; batch_sizes: of a packed input (rows, I), sequences of each step.
    """
    sizes = input.shape[0] * [input.shape[1]] if batch_sizes is None else batch_sizes.tolist()
    H = layers[0][1].shape[1]
    h_n, c_n, outputs = [], [], []
    x = input
    for n, (weight_ih, weight_hh, *biases) in enumerate(layers):
        h = input.new_zeros(sizes[0], H) if h_0 is None else h_0[n]
        c = input.new_zeros(sizes[0], H) if c_0 is None else c_0[n]
        gates_ih = list((linear(x, weight_ih) + sum(biases)).flatten(0, -2).split(sizes))
        reverse = n % D == 1
        output = [None] * len(sizes)
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            # The others have ended, or not begun.
            alive = sizes[t]
            z = gates_ih[t] + linear(h[:alive], weight_hh)
            i, f, g, o = z.chunk(4, dim=1)
            c_t = f.sigmoid() * c[:alive] + i.sigmoid() * g.tanh()
            output[t] = o.sigmoid() * c_t.tanh()
            h, c = torch.cat((output[t], h[alive:])), torch.cat((c_t, c[alive:]))
        h_n.append(h)
        c_n.append(c)
        outputs.append(torch.cat(output).view(*x.shape[:-1], H))
        if len(outputs) == D:
            x = torch.cat(outputs, dim=-1)
            outputs = []
            layer = n // D
            if masks and layer < len(masks):
                x = x * masks[layer]
    return x, torch.stack(h_n), torch.stack(c_n)


def relative_error(actual, truth):
    """RMS of the difference over RMS of the truth, in float64; 0 where both are zero."""
    actual, truth = actual.detach().double(), truth.detach().double()
    error = (actual - truth).square().mean().sqrt()
    return float(error / truth.square().mean().sqrt()) if error > 0 else float(error)
