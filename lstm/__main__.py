"""`python -m lstm`: what runs here, and whether it is right.

Prints versions, the card, the path of a few calls on it, and the errors of small layers against
float64. Exits with 1 if one is too large. Seconds, most of them for compiling.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from . import LSTM, LSTMCell, __version__, reference
from .plan import interpreted

# RMS over RMS: more than twice what the operands' rounding alone makes of small layers. Triton's
# interpreter does not round to bfloat16, it cuts off, for twice the error.
CEILING = {torch.float32: 3e-3, torch.float16: 3e-3, torch.bfloat16: 4e-2}
SIZES = ((28, 64, 128), (28, 64, 512), (28, 64, 1024), (28, 64, 1025))


def versions():
    """What a report of a problem has to name."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return (
        f"fused-lstm {__version__}, torch {torch.__version__}, triton {triton}, "
        f"Python {platform.python_version()}"
    )


def card():
    """The device that the checks run on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "no GPU" + (", Triton's interpreter" if interpreted() else "")


def errors(module, *inputs):
    """The largest error of a result or a gradient, RMS over RMS, against the module in float64."""

    def run(module, dtype):
        module = module.to(dtype)
        fed = [x.to(dtype).requires_grad_() for x in inputs]
        states = tuple(fed[1:])
        returned = module(fed[0], states)
        output = returned[0] if isinstance(module, LSTM) else returned[1]
        grads = torch.autograd.grad(output.square().sum(), [*fed, *module.parameters()])
        return [output, *grads]

    dtype = inputs[0].dtype
    actual = run(module, dtype)
    truth = run(module, torch.float64)
    module.to(dtype)
    return max(map(reference.relative_error, actual, truth))


def checks(device):
    """(name, path, error, ceiling) of one small layer after the other."""
    for dtype in CEILING:
        to = dict(device=device, dtype=dtype)
        # The last runs both layers at once.
        for H, T, both in ((20, 3, True), (128, 3, True), (144, 3, True), (128, 16, False)):
            module = LSTM(9, H, 2, bidirectional=both, **to)
            states = (torch.randn(2 + 2 * both, 5, H) for _ in range(2))
            fed = [x.to(**to) for x in (torch.randn(T, 5, 9), *states)]
            path = module.explain(fed[0], tuple(fed[1:])).path
            yield f"LSTM {H} T={T} {dtype}", path, errors(module, *fed), CEILING[dtype]
        cell = LSTMCell(9, 20, **to)
        fed = [x.to(**to) for x in (torch.randn(5, 9), torch.randn(5, 20), torch.randn(5, 20))]
        path = cell.explain(fed[0], tuple(fed[1:])).path
        yield f"LSTMCell 20 {dtype}", path, errors(cell, *fed), CEILING[dtype]


def main():
    """Print it all. Returns: exit status."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    print(versions())
    print(card())
    for T, B, H in SIZES:
        x = torch.empty(T, B, 1, device=device)
        print(f"\nLSTM(1, {H}), {B} sequences: {LSTM(1, H, device=device).explain(x)}")
    print("\ncheck                          path    error")
    wrong = 0
    for name, path, error, ceiling in checks(device):
        good = error <= ceiling
        wrong += not good
        print(f"{name:30} {path:6} {error:.1e}{'' if good else f'  above {ceiling:.0e}: WRONG'}")
    print(f"\n{wrong} of them wrong" if wrong else "\nall right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
