"""The LSTM as a plain torch loop, in any dtype: what the kernels are held against."""

import torch
from torch.nn import functional as F


def lstm(input, h_0, c_0, layers, masks=None, linear=F.linear, D=1):
    """layer.lstm by the equations, one step at a time; differentiable to any order.

    Args, shapes and returns: as layer.lstm; linear: what multiplies with a weight, to model a
    rounding.
    """
    T, B, _ = input.shape
    H = layers[0][1].shape[1]
    h_n, c_n, outputs = [], [], []
    x = input
    for n, (weight_ih, weight_hh, *biases) in enumerate(layers):
        h = input.new_zeros(B, H) if h_0 is None else h_0[n]
        c = input.new_zeros(B, H) if c_0 is None else c_0[n]
        gates_ih = linear(x, weight_ih) + sum(biases)
        reverse = n % D == 1
        output = [None] * T
        for t in reversed(range(T)) if reverse else range(T):
            i, f, g, o = (gates_ih[t] + linear(h, weight_hh)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            output[t] = h
        h_n.append(h)
        c_n.append(c)
        outputs.append(torch.stack(output))
        if len(outputs) == D:
            x = torch.cat(outputs, dim=2)
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
