"""What a call computes in: PyTorch's own switches, followed by every product."""

from contextlib import nullcontext
from threading import Lock

import torch

# Looked up once: the attribute chain costs 1.5 us a time, these objects 0.3.
_rnn = torch.backends.cudnn.rnn
_matmul = torch.backends.cuda.matmul
# Whether TunableOp is on, which a torch for CPUs has not
_tunes = getattr(torch._C, "_cuda_tunableop_is_enabled", bool)


def matmul_fp32_precision():
    """Of float32 products outside an LSTM, from torch.backends.cuda.matmul: "ieee", the default, or
    "tf32".
    """
    return "tf32" if _matmul.fp32_precision == "tf32" else "ieee"


def compute_dtype(x):
    """The dtype a call with x computes in: its own, or what autocast casts it to."""
    if not autocasts(x):
        return x.dtype
    dtype = x.dtype
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
    the call (lstm.call.Call), neither of which a CPU has, and `outside_autocast`.
    """
    if not (input.is_cuda or torch._C._is_any_autocast_enabled()):
        return function(call, input, *arguments)
    precision = call.precision if input.is_cuda else ""
    with torch.cuda.device_of(input), matmul_in(precision), outside_autocast(input):
        return function(call, input, *arguments)


def outside_autocast(x):
    """A context in which nothing on the device of x is cast: it has been, by the call. Backward
    meets the autocast of whoever calls it, which may be another than its forward had.
    """
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


class matmul_in:
    """float32 products on a GPU in this precision, as nn.LSTM has its own.

    torch.mm listens to another switch, torch.backends.cuda.matmul, which is "ieee" by default. It
    is process-wide, so it is set only where it differs, and put back: of several threads by the
    last, as one that left earlier would change what the others compute in. precision: "" where
    there is no product of float32.
    """

    _lock, _inside, _before = Lock(), 0, None

    def __init__(self, precision):
        self.precision = precision

    def __enter__(self):
        # TunableOp reads an older switch, which refuses to be mixed with this one.
        self.switches = self.precision != "" and not _tunes()
        if not self.switches:
            return
        with self._lock:
            before = _matmul.fp32_precision
            if matmul_in._inside == 0:
                matmul_in._before = before
            matmul_in._inside += 1
            if (before == "tf32") != (self.precision == "tf32"):
                _matmul.fp32_precision = self.precision

    def __exit__(self, *_):
        if not self.switches:
            return
        with self._lock:
            matmul_in._inside -= 1
            if matmul_in._inside == 0 and _matmul.fp32_precision != matmul_in._before:
                _matmul.fp32_precision = matmul_in._before
