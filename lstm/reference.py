"""The LSTM as a plain torch loop, in any dtype: what the kernels are held against."""

import torch
from torch.nn import functional as F


def lstm(input, h_0, c_0, layers, masks=None, linear=F.linear):
    """layer.lstm by the equations, one step at a time; differentiable to any order.

    Args, shapes and returns: as layer.lstm; linear: what multiplies with a weight, to model a
    rounding.
    """
    T, B, _ = input.shape
    H = layers[0][1].shape[1]
    h_n, c_n = [], []
    x = input
    for layer, (weight_ih, weight_hh, *biases) in enumerate(layers):
        h = input.new_zeros(B, H) if h_0 is None else h_0[layer]
        c = input.new_zeros(B, H) if c_0 is None else c_0[layer]
        gates_ih = linear(x, weight_ih) + sum(biases)
        output = []
        for t in range(T):
            i, f, g, o = (gates_ih[t] + linear(h, weight_hh)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            output.append(h)
        h_n.append(h)
        c_n.append(c)
        x = torch.stack(output)
        if masks and layer < len(masks):
            x = x * masks[layer]
    return x, torch.stack(h_n), torch.stack(c_n)


def relative_error(actual, truth):
    """RMS of the difference over RMS of the truth, in float64; 0 where both are zero."""
    actual, truth = actual.detach().double(), truth.detach().double()
    error = (actual - truth).square().mean().sqrt()
    return float(error / truth.square().mean().sqrt()) if error > 0 else float(error)
