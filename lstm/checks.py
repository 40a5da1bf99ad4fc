"""What a module looks at in a call before a kernel starts."""

import torch

from .precision import compute_dtype


def two_tensors(hx):
    """Whether hx is h_0 and c_0."""
    pair = isinstance(hx, (tuple, list)) and len(hx) == 2
    return pair and all(isinstance(x, torch.Tensor) for x in hx)


def alike(tensors):
    """Whether all are on the device of the first, and compute in its dtype."""
    device, dtype = tensors[0].device, compute_dtype(tensors[0])
    return all(x.device == device and compute_dtype(x) == dtype for x in tensors)
