"""The LSTM as a plain torch loop, in any dtype: what the kernels are held against."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .precision import outside_autocast


class Weights(NamedTuple):
    """Of one direction of a layer, in nn.LSTM's order; None for what it lacks."""

    weight_ih: torch.Tensor
    weight_hh: torch.Tensor
    bias_ih: torch.Tensor | None
    bias_hh: torch.Tensor | None
    weight_hr: torch.Tensor | None


def lstm(
    input, h_0, c_0, layers, masks=None, resets=None, D=1, batch_sizes=None, linear=F.linear
):  # fmt: skip
    """layer.lstm by the equations, one step at a time; differentiable to any order.

    Args, shapes and returns: as layer.lstm; D: directions; batch_sizes: of a packed input (rows,
    I), sequences of each step; linear: what multiplies with a weight, to model a rounding.
    """
    sizes = input.shape[0] * [input.shape[1]] if batch_sizes is None else batch_sizes.tolist()
    rows, size = layers[0][1].shape
    cuts = None if resets is None else resets.flatten().split(sizes)
    h_n, c_n, outputs = [], [], []
    x = input
    for n, weights in enumerate(layers):
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = named(weights)
        h = input.new_zeros(sizes[0], size) if h_0 is None else h_0[n]
        c = input.new_zeros(sizes[0], rows // 4) if c_0 is None else c_0[n]
        bias = 0 if bias_ih is None else bias_ih + bias_hh
        gates_ih = list((linear(x, weight_ih) + bias).flatten(0, -2).split(sizes))
        reverse = n % D == 1
        output = [None] * len(sizes)
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            # Between two steps the later one in time has the flag.
            if cuts is not None and t + reverse < len(sizes):
                h, c = _cut(h, cuts[t + reverse]), _cut(c, cuts[t + reverse])
            # The others have ended, or not begun.
            alive = sizes[t]
            z = gates_ih[t] + linear(h[:alive], weight_hh)
            i, f, g, o = z.chunk(4, dim=1)
            c_t = f.sigmoid() * c[:alive] + i.sigmoid() * g.tanh()
            output[t] = o.sigmoid() * c_t.tanh()
            if weight_hr is not None:
                output[t] = linear(output[t], weight_hr)
            h, c = torch.cat((output[t], h[alive:])), torch.cat((c_t, c[alive:]))
        h_n.append(h)
        c_n.append(c)
        outputs.append(torch.cat(output).view(*x.shape[:-1], size))
        if len(outputs) == D:
            x = torch.cat(outputs, dim=-1)
            outputs = []
            layer = n // D
            if masks and layer < len(masks):
                x = x * masks[layer]
    return x, torch.stack(h_n), torch.stack(c_n)


def _cut(state, flags):
    """Zeros where the first sequences have a flag."""
    n = len(flags)
    return torch.cat((state[:n].masked_fill(flags[:, None], 0), state[n:]))


def backward(function, inputs, needs, grads):
    """Gradients of a function for those of its inputs that need one, None for the others, to be
    differentiated again.

    For create_graph=True, since the kernels' own have no derivative, and for a batch of gradients.
    grads: of what it returns, None where the loss does not reach.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), outside_autocast(inputs[0]):
        # Views are new nodes that hang on the caller's graph, so that it ends at them here.
        inputs = [x if x is None else x.view_as(x) for x in inputs]
        given = [(x, g) for x, g in zip(function(*inputs), grads, strict=True) if g is not None]
        needed = iter(
            torch.autograd.grad(
                [x for x, _ in given],
                [x for x, need in zip(inputs, needs, strict=True) if need],
                [grad for _, grad in given],
                create_graph=again,
                allow_unused=True,
            )
        )
    return [next(needed) if need else None for need in needs]


def by_layer(weights, count):
    """A flat list in `count` tuples of one length."""
    size = len(weights) // count
    return [tuple(weights[at : at + size]) for at in range(0, len(weights), size)]


def named(weights):
    """Weights of those a direction has, in nn.LSTM's order."""
    biases = weights[2:4] if len(weights) > 3 else (None, None)
    return Weights(*weights[:2], *biases, weights[-1] if len(weights) % 2 else None)


def relative_error(actual, truth):
    """RMS of the difference over RMS of the truth, in float64; 0 where both are zero."""
    actual, truth = actual.detach().double(), truth.detach().double()
    error = (actual - truth).square().mean().sqrt()
    return float(error / truth.square().mean().sqrt()) if error > 0 else float(error)
