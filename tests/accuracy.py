"""The one tolerance policy.

Truth is lstm.reference in float64 on the same, already rounded tensors. An error is RMS over RMS,
for each tensor. It may be twice the peer's own against the same truth, plus one rounding of the
dtype, and never above a ceiling, so that a bad peer excuses nothing.

The peer is nn.LSTM in the same dtype and precision, on a GPU cuDNN. float32 in TF32 class has
another one: the reference in float64 with the operands of its products rounded to TF32. A CPU has
no hardware for it, and on a GPU, where cuDNN may multiply small sizes in more than TF32, it is the
worse of both.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm import layer, reference
from lstm.call import plan_call
from lstm.packing import Packing
from lstm.plan import capability, interpreted, joinable, multiprocessors, plan
from lstm.reference import relative_error

# float32 is TF32 class.
CEILING = {torch.float32: 1.5e-3, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
# float32 with TF32 switched off
EXACT_CEILING = 5e-6

# NumPy, on which the interpreter runs, says so where a number overflows or becomes NaN.
expects_overflow = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Lengths as the kernels meet them: ties, single steps, one sequence, a tile with none of the later
# steps, no two alike. Longest first, as PackedSequence has them.
LENGTHS = {
    "ties": [4, 4, 3, 1, 1],
    "one": [5],
    "one_step": [1, 1, 1],
    "all_different": [6, 5, 4, 3, 2, 1],
    "ragged_tiles": [4] * 3 + [3] * 8 + [1] * 6,
}

# Of fewer numbers the peer's error is luck, and may be zero: there only the ceiling holds.
FEW = 64


@dataclass
class Case:
    """What one comparison is fed, all in one dtype on one device.

    layers, D: as lstm.layer.lstm takes them; upstream: gradients of output, h_n and c_n; None is
    what the loss does not reach, in h_0 and c_0 what is not given.
    """

    input: torch.Tensor
    h_0: torch.Tensor | None
    c_0: torch.Tensor | None
    layers: list
    upstream: dict
    masks: list | None = None
    D: int = 1
    batch_sizes: torch.Tensor | None = None
    precision: str = "tf32"
    resets: torch.Tensor | None = None

    def double(self):
        return replace(
            self,
            input=self.input.double(),
            h_0=_double(self.h_0),
            c_0=_double(self.c_0),
            layers=[tuple(map(_double, weights)) for weights in self.layers],
            upstream={name: _double(x) for name, x in self.upstream.items()},
            masks=self.masks and list(map(_double, self.masks)),
        )


def _double(x):
    return x if x is None else x.double()


def make_case(
    T, B, I, H,
    dtype=torch.float32, device="cpu", num_layers=1, bias=True, hx=True,
    reach="output h_n c_n", D=1, P=0,
):  # fmt: skip
    """A Case of nn.LSTM's initial weights and normal numbers. reach: where the loss reaches; P:
    proj_size.
    """
    count, size = num_layers * D, P or H

    def normal(*size):
        return torch.randn(*size).to(device, dtype)

    module = nn.LSTM(I, H, num_layers, bias, bidirectional=D == 2, proj_size=P)
    weights = [x.detach().to(device, dtype) for x in module.parameters()]
    upstream = {
        "output": normal(T, B, D * size), "h_n": normal(count, B, size), "c_n": normal(count, B, H)
    }  # fmt: skip
    return Case(
        input=normal(T, B, I),
        h_0=normal(count, B, size) if hx else None,
        c_0=normal(count, B, H) if hx else None,
        layers=reference.by_layer(weights, count),
        upstream={name: x if name in reach.split() else None for name, x in upstream.items()},
        D=D,
    )


def exact(*size, **options):
    """A case of float32 with TF32 switched off."""
    return replace(make_case(*size, **options), precision="ieee")


def reset(case, share=0.3):
    """The case, not packed yet, with new sequences at this share of the steps."""
    resets = torch.rand(case.input.shape[:2]) < share
    # One in each of these places, whatever was drawn: the first step, two after each other, the
    # last.
    resets[0, 0] = resets[-2:, -1] = True
    return replace(case, resets=resets.to(case.input.device))


def packed(case, lengths):
    """The case with its sequences cut to these lengths, longest first, and packed."""
    given = pack_padded_sequence(case.input, lengths)
    output = case.upstream["output"]
    if output is not None:
        output = pack_padded_sequence(output, lengths).data
    resets = case.resets
    return replace(
        case,
        input=given.data,
        resets=resets if resets is None else pack_padded_sequence(resets, lengths).data,
        upstream=case.upstream | {"output": output},
        batch_sizes=given.batch_sizes,
    )


def packing(case):
    """Where a case's rows lie, if it is packed."""
    return (
        case.batch_sizes
        if case.batch_sizes is None
        else Packing(case.batch_sizes, case.input.device)
    )


def planned(case):
    """The plan the module would have for a case."""
    steps = len(case.input if case.batch_sizes is None else case.batch_sizes)
    H, dtype = case.layers[0][1].shape[0] // 4, case.input.dtype
    B = case.input.shape[1] if case.batch_sizes is None else int(case.batch_sizes[0])
    device = case.input.device
    return plan(
        H, B, dtype, capability(device), interpreted(), case.precision, case.D == 2,
        multiprocessors(device),
        joinable(steps, len(case.layers) // case.D, len(case.layers[0]) % 2),
    )  # fmt: skip


def call_of(case, layers=None, **changes):
    """How the module would have the kernels run a case. layers: of a launch, if not as planned;
    changes: of the tile.
    """
    plan = planned(case)
    tile = tuple((dict(plan.tile) | changes).items())
    plan = replace(plan, tile=tile, layers=layers or plan.layers)
    packed, (weights, *_) = packing(case), case.layers
    rows, columns = weights[1].shape
    call = plan_call(
        plan, len(case.layers) // case.D, case.D, rows // 4, columns if len(weights) % 2 else 0,
        len(weights) > 3, packed.B if packed else case.input.shape[1],
    )  # fmt: skip
    return call._replace(packing=packed)


def flat(layers):
    return [weight for weights in layers for weight in weights]


def ours(case, **changes):
    """Outputs and gradients of lstm.layer.lstm. changes: as `call_of` has them."""
    call = call_of(case, **changes)

    def function(input, h_0, c_0, layers):
        return layer.lstm(call, input, h_0, c_0, flat(layers), case.masks, case.resets)

    return _results(function, case)


def by_reference(case, linear=torch.nn.functional.linear):
    """Outputs and gradients of lstm.reference.lstm."""
    options = case.masks, case.resets, case.D, case.batch_sizes, linear
    return _results(lambda *args: reference.lstm(*args, *options), case)


def truth(case):
    return by_reference(case.double())


def peers(case):
    """Results of others in the same dtype and precision, the worst of which is the bar."""
    tf32 = case.input.dtype == torch.float32 and case.precision == "tf32"
    # nn.LSTM takes neither.
    beyond = case.masks is not None or case.resets is not None
    found = []
    if tf32 or case.masks is not None:
        found.append(by_reference(case.double(), _TF32Linear.apply))
    elif beyond:
        found.append(by_reference(case))
    if not found or (case.input.is_cuda and not beyond):
        found.append(by_nn_lstm(case))
    return found


def by_nn_lstm(case):
    """Outputs and gradients of nn.LSTM."""
    I, D, weights = case.input.shape[-1], case.D, case.layers[0]
    rows, columns = weights[1].shape
    module = nn.LSTM(
        I, rows // 4, len(case.layers) // D, len(weights) > 3, bidirectional=D == 2,
        proj_size=columns if len(weights) % 2 else 0,
    ).to(case.input)  # fmt: skip
    given = [weight for weights in case.layers for weight in weights]
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), given, strict=True):
            parameter.copy_(weight)

    def sequences(input):
        return input if case.batch_sizes is None else PackedSequence(input, case.batch_sizes)

    # oneDNN has no float16 and bfloat16 LSTM for every CPU. Its own context manager for this warns.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        patch.setattr(torch.backends.cudnn.rnn, "fp32_precision", case.precision)
        return _results(
            lambda input, h_0, c_0, _: _flat(
                module(sequences(input), None if h_0 is None else (h_0, c_0))
            ),
            case,
            list(module.parameters()),
        )


def _flat(returned):
    output, (h_n, c_n) = returned
    return output.data if isinstance(output, PackedSequence) else output, h_n, c_n


def _results(function, case, weights=None):
    """What function returns for a case, and the gradients of all it is fed, by name."""
    fed = {"input": case.input, "h_0": case.h_0, "c_0": case.c_0}
    fed = {name: None if x is None else x.detach().requires_grad_() for name, x in fed.items()}
    if weights is None:
        weights = [x.detach().requires_grad_() for weights in case.layers for x in weights]
    layers = reference.by_layer(weights, len(case.layers))
    returned = dict(zip(case.upstream, function(*fed.values(), layers), strict=True))

    leaves = {name: x for name, x in fed.items() if x is not None}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    for number, weights in enumerate(layers):
        named = zip(names, reference.named(weights), strict=True)
        leaves |= {f"{name}_l{number}": x for name, x in named if x is not None}
    reached = [name for name, grad in case.upstream.items() if grad is not None]
    grads = torch.autograd.grad(
        [returned[name] for name in reached],
        list(leaves.values()),
        [case.upstream[name] for name in reached],
    )
    return returned | {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_accurate(actual, expected, standards, precision="tf32"):
    """Every tensor of actual is as near to expected as the policy asks. standards: the peers'."""
    missed = []
    for name, x in expected.items():
        dtype = actual[name].dtype
        exact = dtype == torch.float32 and precision == "ieee"
        ceiling = EXACT_CEILING if exact else CEILING[dtype]
        worst = max(relative_error(standard[name], x) for standard in standards)
        bar = 2 * worst + torch.finfo(dtype).eps
        bar = ceiling if x.numel() < FEW else min(bar, ceiling)
        error = relative_error(actual[name], x)
        if not error <= bar:
            missed.append(f"{name}: error {error:.1e}, bar {bar:.1e}")
    assert not missed, "\n".join(missed)


def assert_matches(case, **changes):
    """Outputs and gradients of the kernels follow the policy. changes: of the tile."""
    assert_accurate(ours(case, **changes), truth(case), peers(case), case.precision)


def assert_accurate_outputs(case):
    """Of saturated gates only the results say something: the gradients are zeros."""
    actual, expected = ours(case), truth(case)
    for name in case.upstream:
        assert relative_error(actual[name], expected[name]) < CEILING[case.input.dtype], name


def kinds(x):
    """0 for a number, 1 for NaN, 2 and 3 for infinities."""
    return x.isnan() + 2 * x.isposinf() + 3 * x.isneginf()


def to_tf32(x):
    """x rounded to nearest in TF32's 11 significant bits, hidden one included.

    The hardware itself cuts the other bits off, for about twice the error. Whether cuDNN rounds
    before that is its secret: to nearest is the bar that holds either way.
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


class _TF32Linear(torch.autograd.Function):
    """F.linear without bias, with operands in TF32: the products of backward too."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return to_tf32(x) @ to_tf32(weight).t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = (to_tf32(saved) for saved in ctx.saved_tensors)
        grad = to_tf32(grad)
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2)
