"""What a module looks at in a call before a kernel starts."""

from functools import lru_cache, partial
from operator import attrgetter, is_not

import torch
from torch.nn.utils.rnn import PackedSequence

from .packing import Packing
from .precision import compute_dtype

_kind = attrgetter("device", "dtype", "layout")
shape_of = attrgetter("shape")
# Of torch.autograd.grad(..., is_grads_batched=True)
_is_batch = torch._C._functorch.is_legacy_batchedtensor


def two_tensors(hx):
    """Whether hx is h_0 and c_0."""
    pair = isinstance(hx, (tuple, list)) and len(hx) == 2
    return pair and all(isinstance(x, torch.Tensor) for x in hx)


def alike(tensors):
    """Whether all are dense, on the device of the first, and compute in its dtype."""
    if len(set(map(_kind, tensors))) == 1:
        return tensors[0].layout == torch.strided
    device, dtype = tensors[0].device, compute_dtype(tensors[0])
    return all(
        x.device == device and compute_dtype(x) == dtype and x.layout == torch.strided
        for x in tensors
    )


def differentiable(tensors):
    """Whether autograd follows a function of these, of which some may be None."""
    if torch.is_grad_enabled():
        # The first of many answers: no generator, which costs more than that.
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


_given = partial(is_not, None)


def beyond_kernels(grads):
    """Whether a backward of these gradients, some of them None, is not for the kernels: it is to be
    differentiated again, or they are batches, which have no memory that a kernel could read.
    """
    return torch.is_grad_enabled() or any(map(_is_batch, filter(_given, grads)))


@lru_cache
def weight_sizes(input_size, hidden_size, num_layers, bias, D, proj_size):
    """The shape of each weight, in nn.LSTM's order."""
    rows, h_size, sizes = 4 * hidden_size, proj_size or hidden_size, []
    for layer in range(num_layers):
        weights = [(rows, D * h_size if layer else input_size), (rows, h_size)]
        weights += 2 * [(rows,)] if bias else []
        weights += [(proj_size, hidden_size)] if proj_size else []
        sizes += D * weights
    return sizes


def check_resets(resets, input):
    """Whether resets go with an input, both as a user gives them.

    Raises: TypeError, ValueError, RuntimeError, as nn.LSTM does for hx.
    """
    packed = isinstance(input, PackedSequence)
    if isinstance(resets, PackedSequence) != packed:
        raise TypeError("resets must be a PackedSequence if input is one, and only then")
    if packed:
        if not torch.equal(resets.batch_sizes, input.batch_sizes):
            raise ValueError("resets and input are not packed alike: their batch_sizes differ")
        if not Packing.valid(input.batch_sizes, len(input.data)):
            # Of some of these nn.LSTM has results, and it knows no resets.
            raise ValueError("resets and input have batch_sizes that nothing packs")
        resets, input, shape = resets.data, input.data, input.data.shape[:1]
    else:
        shape = input.shape[:-1]
    if not isinstance(resets, torch.Tensor) or resets.dtype != torch.bool:
        kind = getattr(resets, "dtype", type(resets).__name__)
        raise TypeError(f"resets must be a tensor of torch.bool, got {kind}")
    if resets.shape != shape:
        raise ValueError(f"resets has shape {tuple(resets.shape)}, expected {tuple(shape)}")
    if resets.device != input.device:
        raise RuntimeError(f"resets is on {resets.device}, and input on {input.device}")
