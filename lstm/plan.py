"""Which path a call takes, and why: a pure function of its sizes, dtype and card. Needs no GPU."""

import os
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)  # mma.sync on bfloat16, and tanh.approx


@dataclass(frozen=True)
class Plan:
    """How one call of an LSTM runs.

    path: "fused", our kernels, or "torch", PyTorch's own LSTM.
    reason: why, in a few words.
    tile: fused: what one program works on, keyword arguments of a launch (kernels/config.py).
    programs: fused: programs of each launch, one launch a layer and pass.
    operands: fused: the dtype the products multiply in.
    """

    path: str
    reason: str
    tile: tuple[tuple[str, int], ...] = ()
    programs: int = 0
    operands: torch.dtype | None = None

    def __str__(self):
        if self.path == "torch":
            return f"torch.nn.LSTM: {self.reason}"
        tile = dict(self.tile)
        return (
            f"fused kernels: {self.reason}\n"
            f"  {self.programs} programs of {tile['num_warps']} warps, each of "
            f"{tile['BLOCK_B']} sequences by {tile['BLOCK_H']} units\n"
            f"  products in {'two ' if tile['EXACT'] else ''}{self.operands}, sums in torch.float32"
        )


NO_GPU = Plan("torch", "no NVIDIA GPU, and Triton's interpreter is off")


@cache
def interpreted():
    """Whether Triton's interpreter runs the kernels: TRITON_INTERPRET=1 before their first use."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@lru_cache
def capability(device):
    """Compute capability of an NVIDIA GPU, (major, minor); None for any other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


@lru_cache(maxsize=1024)
def plan(
    hidden_size, batch, dtype, card, interpret=False, precision="tf32", bidirectional=False
):  # fmt: skip
    """The path of one call.

    Args: card: compute capability, None without an NVIDIA GPU; interpret: whether Triton's
        interpreter is on; precision: of float32, "tf32" or "ieee"; the rest as the module and its
        input have them.
    Returns: Plan.
    """
    if not interpret and card is None:
        return NO_GPU
    if not interpret and card < MIN_CAPABILITY:
        return Plan("torch", f"compute capability {card[0]}.{card[1]} is below 8.0")
    # Here, so that Triton is not imported where it is not needed.
    from .kernels import config

    exact = dtype == torch.float32 and precision != "tf32"
    if hidden_size > config.MAX_HIDDEN_SIZE:
        reason = f"hidden_size above {config.MAX_HIDDEN_SIZE} is not on the kernels yet"
    elif dtype not in DTYPES:
        reason = f"{dtype} is not on the kernels"
    elif exact and hidden_size > config.MAX_EXACT_HIDDEN_SIZE:
        reason = (
            f"hidden_size above {config.MAX_EXACT_HIDDEN_SIZE} in float32 with TF32 switched off "
            "is not on the kernels yet"
        )
    elif batch == 0:
        reason = "the batch is empty"
    else:
        tile = config.tile(hidden_size, batch, dtype.itemsize, interpret, exact)
        where = "Triton's interpreter" if interpret else f"compute capability {card[0]}.{card[1]}"
        operands = torch.float16 if dtype == torch.float32 else dtype
        programs = -(-batch // tile["BLOCK_B"]) * (2 if bidirectional else 1)
        return Plan("fused", where, tuple(tile.items()), programs, operands)
    return Plan("torch", reason)
