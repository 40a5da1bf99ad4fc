"""The launchers on what Triton compiled, emulated (ptx/): run as a program, it prints how far off
each case is, as JSON.

A program of its own, since under TRITON_INTERPRET nothing can be compiled.
"""

import json
import math
import re
from dataclasses import dataclass, replace

import torch
import triton
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from lstm import reference
from lstm.kernels import backward, config, forward, joint_backward, joint_forward
from lstm.kernels.slices import Meeting
from lstm.packing import Packing
from tests.kernels.ptx import PTXError, run


class Emulated:
    """A jitted kernel's stand-in, for tensors in the machine's own memory.

    In the kernel's place it lets a launcher run unchanged: compiled for `card`, specialised as a
    launch does it, and run by the emulator. To see what is found: change, of the PTX, and short,
    bytes that each tensor lacks at its end.
    """

    def __init__(self, kernel, card, change=None, short=0, slow=None):
        self.kernel, self.card, self.change, self.short = kernel, card, change, short
        self.slow = slow
        self.compiled, self.conflicts = {}, 0

    def __getitem__(self, grid):
        def launch(*arguments, launch_cooperative_grid=False, **options):
            ptx, shared_bytes, given = self.compile(arguments, options)
            given = [self.memory(x) if isinstance(x, torch.Tensor) else x for x in given]
            together = launch_cooperative_grid
            self.conflicts += run(ptx, given, grid, shared_bytes, together, self.slow)

        return launch

    def memory(self, x):
        return x.view(-1).view(torch.uint8).numpy()[: x.nbytes - self.short]

    def compile(self, arguments, options):
        """PTX, its shared memory, and what of the arguments it is given: all but constants."""
        target = GPUTarget("cuda", self.card, 32)
        backend = make_backend(target)
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, looked_at, _ = binder(*arguments, **options)
        left, signature, constants, attributes = self.kernel._pack_args(
            backend, options, bound, looked_at, None
        )
        attributes = {path: found for path, found in attributes.items() if found}
        key = str((constants, signature, attributes, left))
        if key not in self.compiled:
            source = ASTSource(self.kernel, signature, constants, attributes)
            compiled = triton.compile(source, target, vars(left))
            ptx = compiled.asm["ptx"] if self.change is None else self.change(compiled.asm["ptx"])
            self.compiled[key] = ptx, compiled.metadata.shared
        each = {}
        for n, x in enumerate(bound.values()):
            each |= {(n, k): y for k, y in enumerate(x)} if isinstance(x, tuple) else {(n,): x}
        return *self.compiled[key], [x for path, x in each.items() if path not in constants]


@dataclass(frozen=True)
class Case:
    """Forward and backward of one layer, or of several at once.

    sudden: whether a gradient is given only at the third step from the last, a million times as
    large for every other sequence; its errors are of each step and sequence;
    states: h_0, c_0 and gradients of both; saved: whether there is a backward; large: of the
    weights of a few units, out of float16's range, or, between layers, infinite; at_once: of
    slices, else of no meaning; block_b: sequences of a tile; layers: if several, at once, with
    dropout masks where they have resets; slow: the stage of these, from 0 on, that the others wait
    for.
    """

    H: int
    dtype: str
    card: int
    D: int = 1
    T: int = 5
    B: int = 11
    states: bool = True
    bias: bool = True
    packed: bool = False
    resets: bool = False
    exact: bool = False
    saved: bool = True
    large: bool = False
    sudden: bool = False
    at_once: int = 1
    block_b: int = 8
    layers: int = 1
    slow: int | None = None

    def __str__(self):
        default = Case(0, "", 0)
        others = [n for n in self.__dataclass_fields__ if getattr(self, n) != getattr(default, n)]
        return ", ".join(f"{n}={getattr(self, n)}" for n in others)


# Every number of warps and every width of a weight's read, each kernel of sequences, on every card.
# A case's card makes little difference: where bench/static_report.py compiles the same for one, it
# is that one, and Triton's cache has it.
CASES = [
    Case(128, "bfloat16", 90),
    Case(128, "bfloat16", 80, D=2, states=False),
    Case(128, "bfloat16", 120, D=2, packed=True, resets=True),
    Case(128, "float16", 80, bias=False),
    Case(128, "float32", 86, D=2),
    Case(128, "float32", 86, saved=False),
    Case(101, "bfloat16", 100, resets=True),
    Case(50, "float16", 86, packed=True),
    Case(37, "float16", 90, D=2, packed=True),
    Case(37, "float32", 89, resets=True),
    Case(24, "bfloat16", 90, T=1, B=3, block_b=2),
    Case(24, "float32", 86, D=2, packed=True),
    Case(16, "float16", 90, B=5, resets=True, block_b=4),
    Case(1, "bfloat16", 89, B=3),
    Case(64, "float32", 89, exact=True),
    Case(37, "float32", 80, exact=True, D=2, packed=True),
    Case(16, "float32", 120, exact=True, resets=True),
    # Some warps scale their weights and others do not: their branches part.
    Case(37, "float32", 86, large=True),
    Case(50, "float32", 90, large=True, exact=True),
    # Of some steps and sequences float32's scale is too large, and their product is made again.
    Case(128, "float32", 90, T=6, states=False, sudden=True),
    Case(50, "float32", 80, T=6, states=False, sudden=True),
    Case(101, "float32", 86, T=6, states=False, sudden=True),
    # Tiles of fewer sequences than the tensor core multiplies
    Case(128, "bfloat16", 90, B=5, block_b=4),
    Case(128, "float32", 80, T=4, B=5, D=2, packed=True, block_b=4),
    Case(101, "float16", 90, T=4, B=5, resets=True, block_b=4),
    Case(37, "float32", 89, B=5, exact=True, packed=True, block_b=4),
    Case(128, "float16", 80, T=4, B=3, D=2, packed=True, resets=True, block_b=2),
    Case(128, "float32", 90, T=6, B=5, states=False, sudden=True, block_b=4),
    Case(37, "bfloat16", 120, B=3, packed=True, block_b=2),
    Case(128, "bfloat16", 80, B=3, block_b=2),
    Case(128, "float32", 90, T=4, B=3, D=2, packed=True, block_b=2),
    Case(37, "float32", 80, T=6, B=3, states=False, sudden=True, block_b=2),
    Case(24, "float32", 89, T=4, B=3, exact=True, resets=True, block_b=2),
    # Slices that meet, and one step after the other
    Case(256, "bfloat16", 80, T=4),
    # Eight warps, two threads for each number of a tile
    Case(530, "float16", 90, T=4, B=3),
    Case(130, "float16", 80, T=4, block_b=16, B=17, D=2, packed=True, resets=True),
    Case(129, "float32", 90, T=3, states=False, at_once=0),
    Case(530, "float32", 80, T=3, B=2, resets=True),
    Case(257, "float32", 90, T=3, block_b=16, B=17, D=2, packed=True),
    # Layers at once, of more steps than a ring has; and each stage slow once, so that others wait
    # for it and for room
    Case(128, "bfloat16", 90, T=10, B=5, layers=2, block_b=4),
    Case(50, "float16", 80, T=10, B=5, layers=2, block_b=2),
    Case(128, "float32", 80, T=11, B=5, layers=2, block_b=4, resets=True),
    Case(50, "float32", 86, T=9, B=3, layers=3, block_b=2),
    Case(37, "float32", 90, T=9, layers=2, bias=False, resets=True),
    Case(37, "bfloat16", 89, T=9, B=5, layers=2, block_b=4),
    Case(16, "bfloat16", 120, T=1, layers=2, states=False, resets=True),
    Case(16, "float32", 90, T=18, B=2, layers=2, block_b=4, slow=2),
    Case(16, "float16", 86, T=17, B=2, layers=2, saved=False, slow=0, large=True),
    Case(24, "float16", 89, T=10, B=5, layers=3, block_b=4, resets=True),
    Case(128, "float32", 90, T=5, B=9, layers=2, packed=True, block_b=4),
    Case(24, "bfloat16", 80, T=17, B=8, layers=2, packed=True, resets=True, slow=1),
]  # fmt: skip


# Each form that the warps of a program exchange numbers in: two reads of a lane, one, or half
EXCHANGES = [
    Case(H, dtype, 90, B=block_b, block_b=block_b)
    for H, dtype, block_b in [
        (128, "bfloat16", 8), (128, "bfloat16", 4), (128, "bfloat16", 2), (64, "float32", 8),
        (64, "float32", 4), (64, "float32", 2), (64, "float16", 2), (32, "bfloat16", 4),
        (32, "bfloat16", 2),
    ]
]  # fmt: skip


def shifted(x):
    """The same, not aligned to more than one number: what no kernel looks at."""
    if x is None:
        return None
    whole = x.new_empty(x.numel() + 1)
    return whole[1:].view(x.shape).copy_(x)


def step_sizes(case):
    """How many sequences each step has: of packed ones fewer and fewer."""
    fewer = 3 * case.packed * torch.arange(case.T)
    return (case.B - fewer).clamp(min=1)


def run_case(case, change=None, short=0):
    """Forward and backward. Returns: the relative error of each tensor."""
    torch.manual_seed(0)
    for module, name in KERNELS:
        setattr(module, name, Emulated(KERNELS[module, name], case.card, change, short))
    H, D, T, B, dtype = case.H, case.D, case.T, case.B, getattr(torch, case.dtype)
    tile = config.tile(H, B, dtype.itemsize, exact=case.exact, block_b=case.block_b)
    S, tiles = config.slices(H, tile), -(-B // case.block_b)
    size, sliced = tile["BLOCK_H"] * case.block_b, "PARTS" in tile
    packing = Packing(step_sizes(case), "cpu")
    rows = (packing.rows,) if case.packed else (T, B)

    def full(*shape, scale=1.0):
        return (scale * torch.randn(shape)).to(dtype)

    def empty(*shape):
        return torch.full(shape, torch.nan, dtype=dtype)

    def meeting(numbers):
        states = torch.full((2, D, tiles, S, size), torch.nan) if case.at_once == 0 else None
        return Meeting(torch.zeros(2, D, tiles, numbers), states, case.at_once and tiles)

    gates_ih, weight_hh = full(D, *rows, 4, H), full(D, 4, H, H, scale=H**-0.5)
    if case.large:
        weight_hh[:, 1, -2:, 3] = 3e5
    bias_ih, bias_hh = [shifted(full(D, 4, H)) if case.bias else None for _ in range(2)]
    # Their own product is the caller's where a launch cannot have it.
    given = case.states and not ((case.packed and D == 2) or sliced)
    h_0 = shifted(full(D, B, H)) if given else None
    c_0 = shifted(full(D, B, H)) if case.states else None
    flags = (torch.rand(rows) < 0.3).to(torch.uint8) if case.resets else None
    if case.resets:
        # Those of the first step are the caller's.
        flags.view(-1)[:B] = 0
    output, h_n, c_n = empty(*rows, D, H), shifted(empty(D, B, H)), shifted(empty(D, B, H))
    steps = weight_hh_t = None
    if case.saved:
        steps = empty(D, tiles, *([S] if sliced else []), 1 + 5 * T, size)
        weight_hh_t = None if sliced else empty(D, H, 4 * H)
    offsets, resets = packing.offsets if case.packed else None, shifted(flags)
    forward.lstm_forward(
        gates_ih, bias_ih, bias_hh, weight_hh, output, steps, weight_hh_t, h_0, c_0, h_n, c_n,
        0, D, T, B, tile, offsets, resets,
        meeting(tile["BLOCK_K"] * case.block_b // 2) if sliced else None,
    )  # fmt: skip

    def exactly(x):
        return None if x is None else x.double().requires_grad_()

    # The gates of each direction as one input, of which its weight takes its part
    x = exactly(gates_ih.reshape(D, -1, 4 * H))
    exact_h_0, exact_c_0 = exactly(h_0), exactly(c_0)
    part = torch.eye(4 * H * D, dtype=torch.float64).view(D, 4 * H, -1)
    layers = [
        (part[d], weight_hh[d].double().flatten(0, 1))
        + ((bias_ih[d].double().flatten(), bias_hh[d].double().flatten()) if case.bias else ())
        for d in range(D)
    ]
    truth = reference.lstm(
        x.transpose(0, 1).reshape(*rows, -1), exact_h_0, exact_c_0, layers, None,
        None if flags is None else flags.bool(), D,
        packing.batch_sizes if case.packed else None, F.linear,
    )  # fmt: skip
    errors = {
        "output": reference.relative_error(output.flatten(-2), truth[0]),
        "h_n": reference.relative_error(h_n, truth[1]),
        "c_n": reference.relative_error(c_n, truth[2]),
    }
    if not case.saved:
        return errors

    weight_hh_t = weight_hh.flatten(1, 2).mT.contiguous() if sliced else weight_hh_t
    assert torch.equal(weight_hh_t, weight_hh.flatten(1, 2).mT)
    upstream = [full(*rows, D, H), *(full(D, B, H) if case.states else None for _ in range(2))]
    if case.sudden:
        upstream[0][:-3], upstream[0][-2:] = 0, 0
        upstream[0][:, ::2] *= 1e-6
    grad_gates = empty(D, *rows, 4, H)
    grad_h_0 = None if h_0 is None else shifted(empty(D, B, H))
    grad_c_0 = None if c_0 is None else shifted(empty(D, B, H))
    grad_bias = None
    if case.bias and (parts := tiles * config.bias_parts(tile)):
        grad_bias = torch.full((D, parts, 4 * H), torch.nan)
    met = meeting(tile["BLOCK_K"] // tile["BLOCK_H"] * S * size) if sliced else None
    backward.lstm_backward(
        steps, weight_hh_t, upstream[0], *map(shifted, upstream[1:]),
        grad_gates, grad_h_0, grad_c_0, grad_bias, 0, D, T, B, tile, offsets, resets, met,
    )  # fmt: skip
    if sliced:
        # Of the last tile's sequences, as many as there are
        parts = met.exchange.view(2, D, tiles, -1, case.block_b, 16)[:, :, -1]
        assert not parts[..., (B - 1) % case.block_b + 1 :, :].any()
    upstream[0] = upstream[0].flatten(-2)
    loss = sum(
        (y * grad.double()).sum()
        for y, grad in zip(truth, upstream, strict=True)
        if grad is not None
    )
    loss.backward()
    if case.sudden:
        each = zip(
            grad_gates.view(D, T, B, -1)[:, : T - 2].flatten(0, 2),
            x.grad.view(D, T, B, -1)[:, : T - 2].flatten(0, 2),
            strict=True,
        )
        errors["grad_gates"] = max(reference.relative_error(*pair) for pair in each)
    else:
        errors["grad_gates"] = reference.relative_error(grad_gates.flatten(), x.grad.flatten())
    if grad_bias is not None:
        errors["grad_bias"] = reference.relative_error(grad_bias.sum(1), x.grad.sum(1))
    for name, actual, exact in [("h_0", grad_h_0, exact_h_0), ("c_0", grad_c_0, exact_c_0)]:
        if actual is not None:
            errors[f"grad_{name}"] = reference.relative_error(actual, exact.grad)
    return errors


def run_joint_case(case, change=None, short=0):
    """Several layers at once. Returns: as run_case."""
    torch.manual_seed(0)
    for module, name in KERNELS:
        setattr(module, name, Emulated(KERNELS[module, name], case.card, change, short, case.slow))
    L, H, T, B, dtype = case.layers, case.H, case.T, case.B, getattr(torch, case.dtype)
    tile = config.tile(H, B, dtype.itemsize, block_b=case.block_b)
    tiles, size = -(-B // case.block_b), tile["BLOCK_H"] * case.block_b
    packing = Packing(step_sizes(case), "cpu")
    rows = (packing.rows,) if case.packed else (T, B)

    def full(*shape, scale=1.0):
        return (scale * torch.randn(shape)).to(dtype)

    def empty(*shape):
        return torch.full(shape, torch.nan, dtype=dtype)

    def none_taken():
        return torch.zeros(config.stages(L), tiles, dtype=torch.int32)

    def with_bias():
        return [shifted(full(4 * H)) if case.bias else None for _ in range(2)]

    def layer(matrices):
        saved = (empty(tiles, 1 + 5 * T, size), empty(matrices, H, 4 * H))
        weight_hh = full(4 * H, H, scale=H**-0.5)
        return (
            *with_bias(),
            weight_hh,
            empty(*rows, H),
            *(saved if case.saved else (None, None)),
        )

    gates_ih = full(*rows, 4 * H).float()
    layers = [layer(1), *(layer(2) for _ in range(1, L))]
    weight_ih = [full(4 * H, H, scale=H**-0.5) for _ in range(1, L)]
    if case.large:
        weight_ih[0][5, 3] = math.inf
    h_0, c_0 = (shifted(full(L, B, H)) if case.states else None for _ in range(2))
    h_n, c_n = shifted(empty(L, B, H)), shifted(empty(L, B, H))
    flags = masks = None
    if case.resets:
        flags = (torch.rand(rows) < 0.3).to(torch.uint8)
        flags.view(-1)[:B] = 0
        masks = [(torch.rand(*rows, H) < 0.5).to(dtype) * 2 for _ in range(1, L)]
    offsets, resets = packing.offsets if case.packed else None, shifted(flags)
    joint_forward.lstm_joint_forward(
        layers, gates_ih, weight_ih, masks, h_0, c_0, h_n, c_n, none_taken(), 0, T, B, tile,
        offsets, resets,
    )  # fmt: skip

    def exactly(x):
        return None if x is None else x.double().requires_grad_()

    x, exact_h_0, exact_c_0 = exactly(gates_ih), exactly(h_0), exactly(c_0)
    weights = [
        [exactly(w) for w in (ih, hh, b_ih, b_hh)]
        for ih, (b_ih, b_hh, hh, *_) in zip((torch.eye(4 * H), *weight_ih), layers, strict=True)
    ]
    truth = reference.lstm(
        x, exact_h_0, exact_c_0, [tuple(w for w in ws if w is not None) for ws in weights],
        masks and [mask.double() for mask in masks], None if flags is None else flags.bool(),
        1, packing.batch_sizes if case.packed else None, F.linear,
    )  # fmt: skip
    errors = {
        "output": reference.relative_error(layers[-1][3], truth[0]),
        "h_n": reference.relative_error(h_n, truth[1]),
        "c_n": reference.relative_error(c_n, truth[2]),
    }
    if not case.saved:
        return errors

    assert torch.equal(layers[0][-1], layers[0][2].t()[None])
    for w, (_, _, weight_hh, _, _, transposed) in zip(weight_ih, layers[1:], strict=True):
        assert torch.equal(transposed, torch.stack((weight_hh.t(), w.t())))
    upstream = [full(*rows, H), *(full(L, B, H) if case.states else None for _ in range(2))]
    *_, steps, weight_hh_t = zip(*layers, strict=True)
    grad_gates = [empty(*rows, 4 * H) for _ in layers]
    grads_0 = [shifted(empty(L, B, H)) if case.states else None for _ in range(2)]
    grad_bias = None
    if case.bias and (parts := tiles * config.bias_parts(tile)):
        grad_bias = torch.full((L, parts, 4 * H), torch.nan)
    joint_backward.lstm_joint_backward(
        steps, weight_hh_t, upstream[0], grad_gates, masks, *map(shifted, upstream[1:]), *grads_0,
        grad_bias, none_taken(), 0, T, B, tile, offsets, resets,
    )  # fmt: skip
    given = [(y, g) for y, g in zip(truth, upstream, strict=True) if g is not None]
    sum((y * g.double()).sum() for y, g in given).backward()
    errors["grad_gates"] = reference.relative_error(grad_gates[0], x.grad)
    for n in range(1, L):
        first = h_0[n] if case.states else torch.zeros(B, H, dtype=dtype)
        h = torch.cat((layers[n][3].view(-1, H), first)).double()[packing.previous[0]]
        h = h if flags is None else h * (1 - flags.view(-1, 1))
        grad_weight = grad_gates[n].view(-1, 4 * H).double().t() @ h
        errors[f"grad_weight_hh_{n}"] = reference.relative_error(grad_weight, weights[n][1].grad)
    for layer in range(L) if grad_bias is not None else ():
        exact_bias = weights[layer][2].grad
        errors[f"grad_bias_{layer}"] = reference.relative_error(grad_bias[layer].sum(0), exact_bias)
    for name, actual, exact in zip(("h_0", "c_0"), grads_0, (exact_h_0, exact_c_0), strict=True):
        if actual is not None:
            errors[f"grad_{name}"] = reference.relative_error(actual, exact.grad)
    return errors


def conflicts(case):
    """Of each kernel, accesses to shared memory beyond the first of those that a step's banks serve
    one after the other, in all programs.
    """
    of_length = []
    for T in (2, 3):
        run_case(replace(case, T=T))
        of_length.append([getattr(*place).conflicts for place in KERNELS])
    return {
        name: after - before
        for (_, name), before, after in zip(KERNELS, *of_length, strict=True)
        if "sliced" not in name and "joint" not in name
    }


def found(case, **defect):
    """What the emulator says of a case with a defect, None if it finds nothing."""
    try:
        (run_joint_case if case.layers > 1 else run_case)(case, **defect)
    except PTXError as error:
        return str(error)
    return None


def without_barriers(case):
    """What is found without each barrier of forward and of backward, one at a time."""
    barrier = re.compile(r"\tbar(?:\.warp)?\.sync[^;]*;")
    texts = []
    run_case(case, lambda ptx: texts.append(ptx) or ptx)
    return [
        found(case, change=lambda ptx, text=text, at=at: cut(ptx, at) if ptx == text else ptx)
        for text in texts
        for at in barrier.finditer(text)
    ]


def exchanged_extremes(dtype):
    """Of slices: h after a step whose second sequence has a NaN in one unit, and h at its most."""
    H, T, B, results = 130, 2, 3, []
    for name in ("lstm_forward_kernel", "lstm_sliced_forward_kernel"):
        setattr(forward, name, Emulated(KERNELS[forward, name], 90))
    dtype = getattr(torch, dtype)
    tile = config.tile(H, B, dtype.itemsize)
    for gates_ih, c_0 in ((torch.randn(T, B, 4, H), 0.0), (torch.full((T, B, 4, H), 100.0), 50.0)):
        gates_ih[0, 1, 2, 7] = torch.nan if c_0 == 0 else 100.0
        output, state = torch.empty(T, B, 1, H, dtype=dtype), torch.empty(1, B, H, dtype=dtype)
        meeting = Meeting(torch.zeros(2, 1, 1, tile["BLOCK_K"] * 4), None, 1)
        weight_hh = torch.full((4, H, H), 1e-3, dtype=dtype)
        forward.lstm_forward(
            gates_ih.to(dtype), None, None, weight_hh, output, None, None, None,
            torch.full_like(state, c_0), state, state.clone(), 0, 1, T, B, tile, meeting=meeting,
        )  # fmt: skip
        results.append(output[-1].view(B, H).float())
    (with_nan, most) = results
    return {
        "NaN": with_nan.isnan().all(1).tolist(),
        "finite": with_nan.isfinite().all(1).tolist(),
        "most": most.min().item(),
    }


def with_an_infinite_weight():
    """Of each step and unit, whether its gates' gradients are finite, and whether they should be:
    where a unit's forget gate is shut for good, by a weight that another unit's gradient meets.
    """
    H, T, B = 32, 3, 4
    for module, name in ((forward, "lstm_forward_kernel"), (backward, "lstm_backward_kernel")):
        setattr(module, name, Emulated(KERNELS[module, name], 90))
    torch.manual_seed(0)
    tile = config.tile(H, B, 4, block_b=4)
    gates_ih, weight_hh = torch.randn(T, B, 4 * H), torch.randn(4, H, H) * H**-0.5
    weight_hh[1, 5, 3] = math.inf
    h_0, grad = torch.rand(1, B, H), torch.randn(T, B, H)
    output, state = torch.empty(T, B, H), torch.empty(1, B, H)
    steps, weight_hh_t = torch.empty((1 + 5 * T) * 4 * H), torch.empty(1, H, 4 * H)
    sums, grad_gates = torch.empty(1, 4, 4 * H), torch.empty(T, B, 4 * H)
    forward.lstm_forward(
        gates_ih, None, None, weight_hh, output, steps, weight_hh_t, h_0, None, state,
        state.clone(), 0, 1, T, B, tile,
    )  # fmt: skip
    backward.lstm_backward(
        steps, weight_hh_t, grad, None, None, grad_gates, None, None, sums, 0, 1, T, B, tile
    )
    x = gates_ih.double().requires_grad_()
    layer = None, weight_hh.double().flatten(0, 1)

    def linear(x, weight):
        # No identity for a weight: its zeros times a NaN are more of them.
        return x if weight is None else F.linear(x, weight)

    exact, _, _ = reference.lstm(x, h_0.double(), None, [layer], linear=linear)
    exact.backward(grad.double())
    return {
        "found": [output.isfinite().all().item(), grad_gates.isfinite().tolist()],
        "exact": [exact.isfinite().all().item(), x.grad.isfinite().tolist()],
    }


def without_waiting(case):
    """The errors where no program of several layers looks whether it may go on."""
    vote = re.compile(r"vote\.sync\.any\.pred p, p, -1; (selp\.s32 %r\d+), 1, 0, p;")
    return run_joint_case(case, change=lambda ptx: vote.sub(r"\1, 0, 0, p;", ptx))


def cut(text, match):
    return text[: match.start()] + text[match.end() :]


def main():
    errors = {}
    for case in CASES:
        try:
            errors[str(case)] = (run_joint_case if case.layers > 1 else run_case)(case)
        except PTXError as error:
            errors[str(case)] = {str(error): math.inf}
    few, many = Case(16, "bfloat16", 90, B=8), Case(128, "bfloat16", 90, B=8, T=3)
    defects = {
        "without a barrier": without_barriers(few) + without_barriers(many),
        "short tensors": [found(few, short=2)],
    }
    joint = Case(16, "bfloat16", 90, T=10, B=3, layers=3, block_b=4)
    waiting = without_waiting(joint)
    extremes = {dtype: exchanged_extremes(dtype) for dtype in ("float32", "float16", "bfloat16")}
    made = {
        "errors": errors,
        "defects": defects,
        "without waiting": waiting,
        "extremes": extremes,
        "infinite weight": with_an_infinite_weight(),
        "conflicts": {str(case): conflicts(case) for case in EXCHANGES},
    }
    print(json.dumps(made))


KERNELS = {
    (module, name): getattr(module, name)
    for module, names in {
        forward: ("lstm_forward_kernel", "lstm_sliced_forward_kernel"),
        backward: ("lstm_backward_kernel", "lstm_sliced_backward_kernel"),
        joint_forward: ("lstm_joint_forward_kernel",),
        joint_backward: ("lstm_joint_backward_kernel",),
    }.items()
    for name in names
}

if __name__ == "__main__":
    main()
