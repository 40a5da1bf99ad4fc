"""Which path a call takes, and why: a pure function of its sizes, dtype and card. Needs no GPU."""

import math
import os
import warnings
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec

import torch
from torch.autograd import forward_ad

from .kernels import config
from .tracing import traced

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Launches one after the other, each for as many sequences as the card has room for at once.
MAX_LAUNCHES = 4
# Of fewer, what layers wait for each other takes longer than a product and a launch (estimated).
MIN_JOINT_STEPS = 8
MIN_CAPABILITY = (8, 0)  # mma.sync on bfloat16, and tanh.approx


@dataclass(frozen=True)
class Plan:
    """How one call of an LSTM or LSTMCell runs: what `explain` returns. Prints well.

    path: "fused", our kernels; "torch", PyTorch's own module; or "reference", the equations in
        plain torch, a step at a time.
    reason: why, in a few words.
    tile: fused: what one program works on, keyword arguments of a launch (kernels/config.py).
    programs: fused: programs of each launch, forward or backward.
    layers: fused: of each launch, at most; of several each is some steps behind the one below.
    slices: fused: programs that share the units of one tile, and exchange h at every step; 1: none.
    at_once: fused, several slices: tiles of one launch; 0 for a launch for each step.
    one_step: fused: a launch does the input product, too, of a single step that is not
        differentiated.
    operands: fused: what the products multiply: a dtype's name, "two float16", or "tf32".
    precision: fused: of float32, what all products follow: "tf32" or "ieee".
    """

    path: str
    reason: str
    tile: tuple[tuple[str, int], ...] = ()
    programs: int = 0
    operands: str = ""
    layers: int = 1
    slices: int = 1
    at_once: int = 0
    one_step: bool = False
    precision: str = ""

    def __hash__(self):
        # Equal plans have equal tiles, and a hash of all fields would be taken at each call.
        return hash(self.tile)

    def __str__(self):
        if self.path == "torch":
            return f"PyTorch's own module: {self.reason}"
        if self.path == "reference":
            return f"plain torch, a step at a time: {self.reason}"
        tile = dict(self.tile)
        return (
            f"fused kernels: {self.reason}\n"
            f"  {self.programs} programs of {tile['num_warps']} warps, each of "
            f"{tile['BLOCK_B']} sequences by {tile['BLOCK_H']} units\n"
            f"  products in {self.operands}, sums in float32{self._exchange()}"
        )

    def _exchange(self):
        """What the programs are to each other, as one more line."""
        if self.layers > 1:
            return f"\n  {self.layers} layers at once, with the products between them"
        if self.one_step:
            return "\n  one launch for a layer's step, its input product in it"
        if self.slices == 1:
            return ""
        tiles = self.programs // self.slices
        launches = f"{-(-tiles // self.at_once)} launches" if self.at_once else "a launch a step"
        return f"\n  {self.slices} slices exchange h at every step, {launches}"


NO_GPU = Plan("torch", "no NVIDIA GPU, and Triton's interpreter is off")
NO_TENSOR = Plan("torch", "the input is no tensor")
TRANSFORMED = Plan("reference", "a torch.func transform or forward-mode differentiation is active")
TRACED = Plan("torch", "torch.jit.trace, make_fx or FakeTensorMode records or imitates the call")
EMPTY = Plan("torch", "the batch is empty")
# PyTorch's own module has the error for it.
MISFIT = Plan("torch", "input, hx and weights do not fit together")


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


@lru_cache
def multiprocessors(device):
    """Of an NVIDIA GPU; 0 for any other device."""
    if capability(device) is None:
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def forced():
    """The environment variable FUSED_LSTM_FORCE at the first call, for tests and benchmarks:
    "torch" for PyTorch's own module, "stepwise" for slices launched for each step, "apart" for one
    layer after the other, else None.
    """
    return os.environ.get("FUSED_LSTM_FORCE")


@lru_cache
def device_refusal(device):
    """The plan of all calls on a device that no kernel can run on; else None.

    Of a GPU it says so, once.
    """
    if forced() == "torch":
        return Plan("torch", "FUSED_LSTM_FORCE is torch")
    if interpreted() and device.type in ("cpu", "cuda"):
        return None
    if device.type != "cuda":
        return NO_GPU
    if torch.version.hip is not None:
        refused = Plan("torch", "AMD GPUs are not supported yet")
    elif find_spec("triton") is None:
        refused = Plan("torch", "Triton is not installed")
    else:
        refused = _too_old(capability(device))
    if refused:
        warnings.warn(f"lstm.LSTM runs {refused} (on {device})", stacklevel=2)
    return refused


def transformed():
    """Whether torch.func transforms what runs, or forward-mode differentiation follows it."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refusal(input):
    """The plan of a call that no kernel can run, whatever its sizes are; else None."""
    if not isinstance(input, torch.Tensor):
        return NO_TENSOR
    if transformed():
        return TRANSFORMED
    return TRACED if traced(input) else device_refusal(input.device)


def joinable(steps, layers, proj_size):
    """How many layers may run at once, if the card has room for it."""
    return layers if steps >= MIN_JOINT_STEPS and not proj_size else 1


@lru_cache(maxsize=1024)
def plan_on(device, hidden_size, batch, dtype, precision, bidirectional, layers=1):
    """`plan` for a device that is there."""
    planned = device_refusal(device) or plan(
        hidden_size, batch, dtype, capability(device), interpreted(), precision, bidirectional,
        multiprocessors(device), 1 if forced() == "apart" else layers,
    )  # fmt: skip
    if planned.at_once and forced() == "stepwise":
        return replace(planned, at_once=0)
    return planned


@lru_cache(maxsize=1024)
def plan(
    hidden_size, batch, dtype, card, interpret=False, precision="tf32", bidirectional=False,
    multiprocessors=0, layers=1,
):  # fmt: skip
    """The path of one call of an LSTM.

    Args: card: compute capability, None without an NVIDIA GPU; interpret: whether Triton's
        interpreter is on; precision: of float32, "tf32" or "ieee"; multiprocessors: of the card;
        layers: how many are `joinable`; the rest as the module and its input have them.
    Returns: Plan.
    """
    if refused := _refused(card, interpret, dtype, batch):
        return refused
    exact = dtype == torch.float32 and precision != "tf32"
    if hidden_size > config.MAX_HIDDEN_SIZE:
        return Plan("torch", f"hidden_size above {config.MAX_HIDDEN_SIZE} is not on the kernels")
    if exact and hidden_size > config.MAX_EXACT_HIDDEN_SIZE:
        return Plan(
            "torch",
            f"hidden_size above {config.MAX_EXACT_HIDDEN_SIZE} in float32 with TF32 switched off "
            "is not on the kernels yet",
        )
    D, at_once = 2 if bidirectional else 1, 0
    sizes = hidden_size, batch, dtype.itemsize
    if hidden_size > config.MAX_ONE_SLICE or bidirectional or exact:
        layers = 1
    else:
        available = math.inf if interpret else multiprocessors
        layers = config.layers_at_once(hidden_size, batch, layers, available)
    if hidden_size > config.MAX_ONE_SLICE:
        tile, at_once, refused = _sliced(*sizes, D, multiprocessors, interpret)
        if refused:
            return refused
    else:
        programs = D * config.stages(layers)
        block_b = config.sequences(hidden_size, batch, programs, multiprocessors) or 8
        tile = config.tile(*sizes, interpret, exact, block_b)
    tiles = -(-batch // tile["BLOCK_B"])
    slices = config.slices(hidden_size, tile)
    operands = "float16" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    return Plan(
        "fused", _where(card, interpret), tuple(tile.items()),
        tiles * config.stages(layers) * D * slices, f"two {operands}" if exact else operands,
        layers, slices, at_once,
        precision=precision if dtype == torch.float32 else "",
    )  # fmt: skip


def _sliced(hidden_size, batch, itemsize, D, multiprocessors, interpret):
    """Of slices: the tile, tiles of a launch, and the plan of a batch too large, else None."""
    # All programs that meet must be on the card. Where those of the smaller tiles are not, the
    # larger ones take less time than one launch after the other.
    for block_b in (8, 16):
        tile = config.tile(hidden_size, batch, itemsize, interpret, block_b=block_b)
        if interpret:
            return tile, 0, None
        programs = D * config.slices(hidden_size, tile)
        tiles, resident = -(-batch // block_b), config.resident(multiprocessors, tile)
        at_once = min(tiles, resident // programs)
        if at_once == tiles:
            return tile, at_once, None
    reason = None
    if at_once == 0:
        reason = f"{programs} programs would have to run at once, the card holds {resident}"
    elif tiles > MAX_LAUNCHES * at_once:
        reason = (
            f"the batch would take {-(-tiles // at_once)} launches, and cuDNN is faster above "
            f"{MAX_LAUNCHES} (estimated)"
        )
    return tile, at_once, reason and Plan("torch", reason)


@lru_cache(maxsize=1024)
def cell_plan(
    input_size, hidden_size, batch, dtype, card, interpret=False, precision="ieee", num_layers=1
):
    """The path of a call of an LSTMCell or several layers. Args, returns: as `plan` has them."""
    if refused := _refused(card, interpret, dtype, batch):
        return refused
    widest = max(input_size, hidden_size) if num_layers > 1 else input_size
    if widest + hidden_size > config.MAX_STEP_SIZE:
        reason = f"for input_size + hidden_size above {config.MAX_STEP_SIZE} cuBLAS is faster"
        return Plan("torch", f"{reason} (estimated)")
    aligned = input_size % 16 == hidden_size % 16 == 0
    tile = config.step_tile(batch, dtype.itemsize, interpret, precision, aligned)
    tf32 = dtype == torch.float32 and precision == "tf32"
    programs = -(-batch // tile["BLOCK_B"]) * -(-hidden_size // tile["BLOCK_H"])
    return Plan(
        "fused", _where(card, interpret), tuple(tile.items()), programs,
        "tf32" if tf32 else str(dtype).removeprefix("torch."), one_step=True,
        precision=precision if dtype == torch.float32 else "",
    )  # fmt: skip


def _refused(card, interpret, dtype, batch):
    """The plan of a call that no kernel can run; else None."""
    if not interpret and card is None:
        return NO_GPU
    if not interpret and (too_old := _too_old(card)):
        return too_old
    if dtype not in DTYPES:
        return Plan("torch", f"{dtype} is not on the kernels")
    return EMPTY if batch == 0 else None


def _too_old(card):
    if card < MIN_CAPABILITY:
        return Plan("torch", f"compute capability {card[0]}.{card[1]} is below 8.0")
    return None


def _where(card, interpret):
    return "Triton's interpreter" if interpret else f"compute capability {card[0]}.{card[1]}"
