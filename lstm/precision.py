"""What a call computes in: PyTorch's own switches, followed by every product."""

from contextlib import contextmanager

import torch

# Looked up once: the attribute chain costs 1.5 us a time, these objects 0.3.
_rnn = torch.backends.cudnn.rnn
_matmul = torch.backends.cuda.matmul


def matmul_fp32_precision():
    """Of other products of float32, from torch.backends.cuda.matmul: "ieee", the default, or
    "tf32".
    """
    return "tf32" if _matmul.fp32_precision == "tf32" else "ieee"


def compute_dtype(x):
    """The dtype a call with x computes in: its own, or what autocast casts it to."""
    castable = x.dtype.is_floating_point and x.dtype != torch.float64
    if castable and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def fp32_precision():
    """Of a float32 LSTM, from torch.backends.cudnn.rnn: "tf32", the default, or "ieee"."""
    return "tf32" if _rnn.fp32_precision == "tf32" else "ieee"


@contextmanager
def matmul_in(precision):
    """float32 products on a GPU in this precision, as nn.LSTM has its own.

    torch.mm listens to another switch, torch.backends.cuda.matmul, which is "ieee" by default. It
    is process-wide, so it is set only where it differs, and put back.
    """
    before = _matmul.fp32_precision
    if (before == "tf32") == (precision == "tf32"):
        yield
        return
    _matmul.fp32_precision = precision
    try:
        yield
    finally:
        _matmul.fp32_precision = before
