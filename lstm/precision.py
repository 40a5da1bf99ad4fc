"""The float32 precision of an LSTM: PyTorch's own switch for it, followed by every product."""

from contextlib import contextmanager

import torch

# Looked up once: the attribute chain costs 1.5 us a time, these objects 0.3.
_rnn = torch.backends.cudnn.rnn
_matmul = torch.backends.cuda.matmul


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
