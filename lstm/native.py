"""PyTorch's own LSTM with the arguments of layer.lstm, where the kernels do not serve."""

import torch

from . import reference
from .precision import outside_autocast


def lstm(input, h_0, c_0, layers, masks=None, resets=None, D=1):
    """A stack of LSTM layers over a whole sequence, by torch.lstm; by the reference with resets,
    which that has not. In training mode, as cuDNN's has no backward in the other.

    Args, shapes and returns: as layer.lstm, not packed; D: directions.
    """
    if resets is not None:
        return reference.lstm(input, h_0, c_0, layers, masks, resets, D)
    _, _, bias_ih, *_ = reference.named(layers[0])
    B, (rows, P) = input.shape[1], layers[0][1].shape
    count = len(layers)
    h_0 = input.new_zeros(count, B, P) if h_0 is None else h_0
    c_0 = input.new_zeros(count, B, rows // 4) if c_0 is None else c_0
    # All at once, unless something comes between them: cuDNN copies weights of a part.
    at_once = D if masks else count
    h_n, c_n = [], []
    x = input
    for first in range(0, count, at_once):
        some = slice(first, first + at_once)
        weights = [weight for direction in layers[some] for weight in direction]
        x, h, c = torch.lstm(
            x, (h_0[some], c_0[some]), weights, bias_ih is not None, at_once // D, 0.0, True,
            D == 2, False,
        )  # fmt: skip
        h_n.append(h)
        c_n.append(c)
        if first // D < len(masks or ()):
            x = x * masks[first // D]
    return x, torch.cat(h_n), torch.cat(c_n)


def backward(inputs, needs, grads, count, masks, resets, D):
    """Gradients of input, h_0, c_0 and all weights, those needed, after computing all anew.

    grads: of output, h_n, c_n, None where the loss does not reach.
    """
    # Below an operator autograd is switched off, key and all.
    autograd = torch._C.DispatchKey.AutogradFunctionality
    with (
        torch._C._SetExcludeDispatchKeyGuard(autograd, False),
        torch.enable_grad(),
        outside_autocast(inputs[0]),
    ):
        inputs = [
            x if x is None else x.detach().requires_grad_(need)
            for x, need in zip(inputs, needs, strict=True)
        ]
        input, h_0, c_0, *weights = inputs
        layers = reference.by_layer(weights, count)
        outputs = lstm(input, h_0, c_0, layers, masks, resets, D)
        given = [(x, g) for x, g in zip(outputs, grads, strict=True) if g is not None]
        return torch.autograd.grad(
            [x for x, _ in given],
            [x for x, need in zip(inputs, needs, strict=True) if need],
            [grad for _, grad in given],
            materialize_grads=True,
            allow_unused=True,
        )
