"""What a call computes in: PyTorch's own switches, followed by every product."""

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
    dtype = x.dtype
    if not autocasts(x):
        return dtype
    castable = dtype.is_floating_point and dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if castable else dtype


def autocasts(x):
    """Whether autocast is on for the device of x. Asked first for any device, which is faster."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type)


def fp32_precision():
    """Of a float32 LSTM, from torch.backends.cudnn.rnn: "tf32", the default, or "ieee"."""
    return "tf32" if _rnn.fp32_precision == "tf32" else "ieee"


def on_device_of(function, call, input, *arguments):
    """function(call, input, *arguments), run on the input's GPU with `matmul_in` the precision of
    the call (lstm.call.Call); a CPU has neither of them.
    """
    if not input.is_cuda:
        return function(call, input, *arguments)
    with torch.cuda.device_of(input), matmul_in(call.precision):
        return function(call, input, *arguments)


class matmul_in:
    """float32 products on a GPU in this precision, as nn.LSTM has its own.

    torch.mm listens to another switch, torch.backends.cuda.matmul, which is "ieee" by default. It
    is process-wide, so it is set only where it differs, and put back.
    """

    def __init__(self, precision):
        self.precision = precision

    def __enter__(self):
        self.before = _matmul.fp32_precision
        self.differs = (self.before == "tf32") != (self.precision == "tf32")
        if self.differs:
            _matmul.fp32_precision = self.precision

    def __exit__(self, *_):
        if self.differs:
            _matmul.fp32_precision = self.before
