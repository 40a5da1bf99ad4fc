"""Calls of lstm.LSTM and lstm.LSTMCell that nobody thought of, beside nn.LSTM and nn.LSTMCell.

Few and the same ones by default, 2,000 for each test with `--hypothesis-profile=thorough`
(tests/conftest.py). Drawn are sizes, options, strides, resets and which gradients are wanted;
numbers come from a seed.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_sequence,
    unpack_sequence,
)

import lstm
from lstm.plan import MIN_JOINT_STEPS
from lstm.precision import matmul_in
from tests.accuracy import CEILING, EXACT_CEILING, FEW
from tests.lstm.pairs import no_onednn

pytest.importorskip("hypothesis", reason="the test extra has it")

from hypothesis import example, given
from hypothesis import strategies as st

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Half of the calls in float32, and few in float64, which is not on the kernels.
DTYPES = [*5 * [torch.float32], *2 * [torch.float16], *2 * [torch.bfloat16], torch.float64]

# Each is the size of what lies in memory, of a view of that size, and the view.
LAYOUTS = {
    "contiguous": (lambda *size: size, lambda x, size: x),
    "first_two_swapped": (
        lambda *size: (*reversed(size[:2]), *size[2:]),
        lambda x, size: x.transpose(0, min(1, x.dim() - 1)),
    ),
    "last_two_swapped": (
        lambda *size: (*size[:-2], *reversed(size[-2:])),
        lambda x, size: x.transpose(max(-2, -x.dim()), -1),
    ),
    "every_second_number": (
        lambda *size: (*size[:-1], 2 * size[-1] + 1),
        lambda x, size: x[..., 1::2],
    ),
    "middle_rows": (
        lambda *size: (size[0] + 2, *size[1:]),
        lambda x, size: x[1:-1],
    ),
    "first_expanded": (lambda *size: (1, *size[1:]), lambda x, size: x.expand(size)),
    "numbers_expanded": (lambda *size: (*size[:-1], 1), lambda x, size: x.expand(size)),
}


@dataclass(frozen=True)
class Call:
    """A module and a call of it.

    options: of the constructor; size: of the input; lengths: of packed sequences; layouts: of
    input, h_0 and c_0, of which the last two are absent without hx; wanted: what has
    requires_grad, of these and the parameters; reach: numbers of the results in the loss; resets:
    share of steps where a sequence begins, None for no resets; recompute: of the module.
    """

    module: str
    options: dict
    size: tuple
    dtype: torch.dtype
    layouts: dict
    wanted: list
    reach: list
    lengths: list | None = None
    enforce_sorted: bool = False
    precision: str = "tf32"
    training: bool = True
    hx_type: type = tuple
    seed: int = 0
    hx_sizes: list = field(default_factory=list)
    resets: float | None = None
    recompute: int = 0


def parameter_names(options, module):
    own = lstm.LSTM if module == "LSTM" else lstm.LSTMCell
    return [name for name, _ in own(**options, device="meta").named_parameters()]


sizes = st.integers(1, 40)
# Above 128 units slices meet, which the interpreter takes its time for: few, and of one layer.
hidden_sizes = st.sampled_from(19 * [sizes] + [st.integers(129, 150)]).flatmap(lambda x: x)
layouts = st.sampled_from(list(LAYOUTS))


@st.composite
def gradients(draw, options, module, fed, results):
    names = [*fed, *parameter_names(options, module)]
    wanted = draw(st.one_of(st.just(names), st.lists(st.sampled_from(names), unique=True)))
    numbers = range(results)
    reach = draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1))
    return wanted, reach


@st.composite
def lstm_calls(draw, kinds=("batched", "unbatched", "packed")):
    units = draw(hidden_sizes)
    sliced = units > 128
    options = {
        "input_size": draw(sizes),
        "hidden_size": units,
        "num_layers": 1 if sliced else draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    resets = draw(st.sampled_from([None, None, 0.3, 0.7, 0.0, 1.0]))
    # cuDNN draws its own masks, and so does what stands for resets.
    if DEVICE.type == "cpu" and options["num_layers"] > 1 and resets is None:
        options["dropout"] = draw(st.sampled_from([0.0, 0.5]))
    if units > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, units - 1))

    steps = st.integers(1, 2 if sliced else 6)
    if options["num_layers"] > 1:
        # So many, and all layers run at once. Each takes as long as three others.
        steps |= steps | st.integers(MIN_JOINT_STEPS, MIN_JOINT_STEPS + 2)
    T, B, lengths = draw(steps), draw(st.integers(0, 20)), None
    kind = draw(st.sampled_from(kinds))
    enforce_sorted = kind == "packed" and draw(st.booleans())
    if kind == "packed":
        lengths = draw(st.lists(st.integers(1, T), min_size=1, max_size=B or 1))
        if enforce_sorted:
            lengths.sort(reverse=True)
        T, B = max(lengths), len(lengths)
    batch = [] if kind == "unbatched" else [B]
    size = (*batch, T) if options["batch_first"] else (T, *batch)
    fed = ["input", "h_0", "c_0"] if draw(st.booleans()) else ["input"]
    wanted, reach = draw(gradients(options, "LSTM", fed, 3))
    rows = options["num_layers"] * (1 + options["bidirectional"])
    return Call(
        "LSTM",
        options,
        (*size, options["input_size"]),
        draw(st.sampled_from(DTYPES)),
        {name: draw(layouts) for name in fed},
        wanted,
        reach,
        lengths,
        enforce_sorted,
        draw(st.sampled_from(["tf32", "ieee"])),
        draw(st.booleans()),
        draw(st.sampled_from([tuple, list])),
        draw(st.integers(0, 2**16)),
        [(rows, *batch, options.get("proj_size", units)), (rows, *batch, units)],
        resets,
        draw(st.sampled_from([0, 0, 0, 1, 2, 3])),
    )


@st.composite
def cell_calls(draw):
    options = {
        "input_size": draw(sizes), "hidden_size": draw(sizes), "bias": draw(st.booleans())
    }  # fmt: skip
    batch = draw(st.one_of(st.just(()), st.tuples(st.integers(0, 20))))
    fed = ["input", "h_0", "c_0"] if draw(st.booleans()) else ["input"]
    wanted, reach = draw(gradients(options, "LSTMCell", fed, 2))
    return Call(
        "LSTMCell",
        options,
        (*batch, options["input_size"]),
        draw(st.sampled_from(DTYPES)),
        {name: draw(layouts) for name in fed},
        wanted,
        reach,
        precision=draw(st.sampled_from(["tf32", "ieee"])),
        training=draw(st.booleans()),
        hx_type=draw(st.sampled_from([tuple, list])),
        seed=draw(st.integers(0, 2**16)),
        hx_sizes=2 * [(*batch, options["hidden_size"])],
    )


@contextmanager
def precision(name):
    """Of float32, in modules and cells."""
    with pytest.MonkeyPatch.context() as patch, matmul_in(name):
        patch.setattr(torch.backends.cudnn.rnn, "fp32_precision", name)
        yield


def make(call):
    """Ours, and by name the tensors it is fed."""
    torch.manual_seed(call.seed)
    module = getattr(lstm, call.module)(**call.options).to(DEVICE, call.dtype).train(call.training)
    if call.recompute:
        module.recompute = call.recompute
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in call.wanted)
    fed = {}
    for (name, layout), size in zip(
        call.layouts.items(), (call.size, *call.hx_sizes), strict=False
    ):
        lying, view = LAYOUTS[layout]
        fed[name] = view(torch.randn(lying(*size)).to(DEVICE, call.dtype), size)
    return module, fed


def arguments(call, fed):
    """What PyTorch's module is called with."""
    x, *hx = fed.values()
    return packed(call, x), call.hx_type(hx) if hx else None


def packed(call, x):
    """Padded sequences as the module takes them."""
    if call.lengths is None:
        return x
    first = call.options["batch_first"]
    return pack_padded_sequence(x, call.lengths, first, enforce_sorted=call.enforce_sorted)


def flags(call):
    """resets, in the layout of a padded input."""
    torch.manual_seed(call.seed)
    return torch.rand(call.size[:-1]) < call.resets


def our_arguments(call, fed):
    """What our module is called with."""
    resets = () if call.resets is None else (packed(call, flags(call).to(DEVICE)),)
    return *arguments(call, fed), *resets


def called(module, call, fed):
    """Results of a call; PyTorch's module has no resets, and gets the sequences split there."""
    if not isinstance(module, lstm.LSTM | lstm.LSTMCell):
        if call.resets is not None and fed["input"].numel() > 0:
            return split(module, call, fed)
        return module(*arguments(call, fed))
    return module(*our_arguments(call, fed))


def split(module, call, fed):
    """What nn.LSTM computes of each part between two resets as a sequence of its own."""
    x, *hx = fed.values()
    resets, batched = flags(call), x.dim() == 3
    if not batched:
        x, resets, hx = x[None], resets[None], [state[:, None] for state in hx]
    elif not call.options["batch_first"]:
        x, resets = x.transpose(0, 1), resets.t()
    B, T, _ = x.shape
    lengths = call.lengths or B * [T]
    parts = []
    for b, length in enumerate(lengths):
        cuts = [0, *(t for t in range(1, length) if resets[b, t]), length]
        parts += [(b, begin, end) for begin, end in pairwise(cuts)]
    D, H = 2 if module.bidirectional else 1, module.hidden_size
    rows = D * module.num_layers
    # The first part of a sequence begins with hx, if no flag is there, and the last one, which is
    # the first of the other direction.
    states = [x.new_zeros(rows, len(parts), size) for size in (module.proj_size or H, H)]
    for state, initial in zip(states, hx, strict=False):
        for n, (b, begin, end) in enumerate(parts):
            if begin == 0 and not resets[b, 0]:
                state[::D, n] = initial[::D, b]
            if D == 2 and end == lengths[b]:
                state[1::2, n] = initial[1::2, b]
    output, ends = module(
        pack_sequence([x[b, begin:end] for b, begin, end in parts], enforce_sorted=False),
        tuple(states),
    )
    pieces = unpack_sequence(output)
    output = [
        torch.cat([y for y, (of, _, _) in zip(pieces, parts, strict=True) if of == b])
        for b in range(B)
    ]
    last = [n for n, (b, _, end) in enumerate(parts) if end == lengths[b]]
    first = [n for n, (_, begin, _) in enumerate(parts) if begin == 0]
    h_n, c_n = (
        torch.stack([end[row, first if row % D == 1 else last] for row in range(rows)])
        for end in ends
    )
    if call.lengths is not None:
        return pack_sequence(output, call.enforce_sorted), (h_n, c_n)
    if not batched:
        return output[0], (h_n[:, 0], c_n[:, 0])
    return pad_sequence(output, call.options["batch_first"]), (h_n, c_n)


def theirs(module, call, dtype, device):
    """PyTorch's module with the same weights."""
    other = getattr(nn, call.module)(**call.options).train(call.training)
    other.load_state_dict(module.state_dict())
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(name in call.wanted)
    return other.to(device, dtype)


def results(module, call, fed, dtype, device):
    """Results, by name, and gradients of all that is wanted, zeros where the loss has none."""
    fed = {
        name: x.detach().to(device, dtype).requires_grad_(name in call.wanted)
        for name, x in fed.items()
    }
    torch.manual_seed(call.seed)
    returned = called(module, call, fed)
    if call.module == "LSTM":
        output, (h_n, c_n) = returned
        if call.lengths is not None:
            assert isinstance(output, PackedSequence)
            output = output.data
        returned = output, h_n, c_n
    results = dict(enumerate(returned))
    leaves = fed | dict(module.named_parameters())
    leaves = {name: leaves[name] for name in call.wanted}
    torch.manual_seed(call.seed)
    upstream = {n: torch.randn(x.shape).to(call.dtype).to(x) for n, x in results.items()}
    reached = [n for n in call.reach if results[n].requires_grad]
    grads = [None] * len(leaves)
    if reached:
        grads = torch.autograd.grad(
            [results[n] for n in reached],
            list(leaves.values()),
            [upstream[n] for n in reached],
            allow_unused=True,
        )
    return {n: x.detach() for n, x in results.items()} | {
        f"grad_{name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


# In float64 runs the reference, with resets.
CEILINGS = CEILING | {torch.float64: 1e-11}

# Below this RMS a tensor is what is left of larger numbers that cancel, or a product of several
# that are small, as behind a projection to one number: there an error is relative to this. How much
# few numbers have lost is luck, and so is the peer's error: for theirs stands its largest.
LITTLE = 0.05
LITTLE_OF_FEW = 0.5


def errors(actual, truth):
    """RMS of the difference over RMS of the truth, by name."""
    return {name: rms(actual[name].to(x) - x) / scale(x) for name, x in truth.items()}


def rms(x):
    return float(x.square().mean().sqrt())


def scale(x):
    return max(rms(x), LITTLE_OF_FEW if x.numel() < FEW else LITTLE)


def assert_as_pytorch(call):
    """Results and gradients as near to float64's as the policy of tests/accuracy.py has it; equal
    to those of PyTorch's module where that runs.
    """
    with precision(call.precision):
        module, fed = make(call)
        path = module.explain(*our_arguments(call, fed)).path
        exact = call.dtype == torch.float32 and call.precision == "ieee"
        assert path == "fused" or exact or call.dtype == torch.float64 or 0 in call.size
        # cuDNN takes no other states, and has a backward in training mode only.
        plain = {name: x.contiguous() if DEVICE.type == "cuda" else x for name, x in fed.items()}
        training = call.training or DEVICE.type == "cuda"

        def peers():
            other = theirs(module, call, call.dtype, DEVICE).train(training)
            return results(other, call, plain, call.dtype, DEVICE)

        if path == "torch":
            actual = results(module.train(training), call, plain, call.dtype, DEVICE)
            for name, x in peers().items():
                assert torch.equal(actual[name], x), name
            return
        actual = results(module, call, fed, call.dtype, DEVICE)
        other = theirs(module, call, torch.float64, "cpu")
        truth = results(other, call, fed, torch.float64, "cpu")
        for name, x in truth.items():
            assert actual[name].shape == x.shape, name
        ceiling = EXACT_CEILING if exact else CEILINGS[call.dtype]
        missed = {name: x for name, x in errors(actual, truth).items() if not x <= ceiling}
        if missed:
            # The ceilings are measured on more units, whose roundings average. Of few, or behind a
            # projection to one number, nn.LSTM in the same dtype is above them too.
            bars = errors(peers(), truth)
            worst = max(bars.values())
            bars = {name: 2 * (worst if truth[name].numel() < FEW else bars[name]) for name in bars}
            missed = {
                name: (x, bars[name])
                for name, x in missed.items()
                if not x <= min(bars[name], 3 * ceiling)
            }
    assert not missed, f"error and bar, above the ceiling {ceiling}: {missed}"


def bidirectional(lengths, recompute):
    """A call that few draws would be like: resets in both directions."""
    options = dict(
        input_size=5, hidden_size=20, num_layers=1, bias=True, batch_first=False, bidirectional=True
    )  # fmt: skip
    fed = ["input", "h_0", "c_0"]
    return Call(
        "LSTM",
        options,
        (6, 4, 5),
        torch.float32,
        dict.fromkeys(fed, "contiguous"),
        fed + parameter_names(options, "LSTM"),
        [0, 1, 2],
        lengths,
        hx_sizes=2 * [(2, 4, 20)],
        resets=0.4,
        recompute=recompute,
    )


@no_onednn
@example(bidirectional(lengths=None, recompute=0))
@example(bidirectional(lengths=None, recompute=2))
@given(lstm_calls(["batched", "unbatched"]))
def test_lstm_has_results_and_gradients_of_nn_lstm(call):
    assert_as_pytorch(call)


@no_onednn
@example(bidirectional(lengths=[3, 6, 1, 4], recompute=0))
@example(bidirectional(lengths=[3, 6, 1, 4], recompute=2))
@given(lstm_calls(["packed"]))
def test_packed_lstm_has_results_and_gradients_of_nn_lstm(call):
    assert_as_pytorch(call)


@given(cell_calls())
def test_lstm_cell_has_results_and_gradients_of_nn_lstmcell(call):
    assert_as_pytorch(call)


# Calls that are wrong, or seldom right


def other_size(x, at, by):
    size = list(x.shape)
    if size:
        size[at % len(size)] += by
    return x.new_zeros([max(0, n) for n in size])


# What becomes of a tensor; at: of a dimension; by: -1 or 1.
CHANGES = {
    "size": other_size,
    "dimension_more": lambda x, at, by: x.unsqueeze(at % (x.dim() + 1)),
    "dimension_less": lambda x, at, by: x.select(at % x.dim(), 0) if x.numel() else x,
    "number": lambda x, at, by: x.new_zeros(()),
    "float64": lambda x, at, by: x.double(),
    "float16": lambda x, at, by: x.half(),
    "int64": lambda x, at, by: x.long(),
    "complex64": lambda x, at, by: x.to(torch.complex64),
    "meta": lambda x, at, by: x.to("meta"),
    "sparse": lambda x, at, by: x.to_sparse(),
    "none": lambda x, at, by: None,
    "list": lambda x, at, by: x.tolist(),
    "array": lambda x, at, by: x.float().cpu().numpy(),
    "text": lambda x, at, by: "input",
}
# What becomes of hx.
HX_CHANGES = {
    "h_0_alone": lambda hx: (hx[0],),
    "three": lambda hx: (*hx, hx[1]),
    "exchanged": lambda hx: (hx[1], hx[0]),
    "tensor": lambda hx: hx[0],
    "empty": lambda hx: (),
    "numbers": lambda hx: (0, 0),
    "set": lambda hx: {x for x in hx if not isinstance(x, list)},
    "dict": lambda hx: dict(enumerate(hx)),
    "generator": lambda hx: (x for x in hx),
}
# What becomes of a PackedSequence.
PACKED_CHANGES = {
    "list": lambda x: x._replace(batch_sizes=x.batch_sizes.tolist()),
    "none": lambda x: x._replace(batch_sizes=torch.tensor([], dtype=torch.int64)),
    "reversed": lambda x: x._replace(batch_sizes=x.batch_sizes.flip(0)),
    "longer": lambda x: x._replace(batch_sizes=torch.cat((x.batch_sizes, x.batch_sizes[-1:]))),
    "shorter": lambda x: x._replace(batch_sizes=x.batch_sizes[:-1]),
    "zero": lambda x: x._replace(batch_sizes=torch.cat((x.batch_sizes, torch.tensor([0])))),
    "two_dimensions": lambda x: x._replace(batch_sizes=x.batch_sizes[None]),
    "unsorted_again": lambda x: x._replace(unsorted_indices=None),
    "tuple": tuple,
}
if DEVICE.type == "cuda":
    # cuDNN's LSTM writes and reads past the ends of memory, instead of an error.
    del PACKED_CHANGES["reversed"], PACKED_CHANGES["longer"]


# What batch_sizes are not afterwards, so that nobody can say which states go with them.
NO_SIZES = {"list", "none", "two_dimensions", "tuple"}


@st.composite
def changes(draw, call):
    """What to do to the arguments of a call: the kind of change, and where."""
    places = list(call.layouts)
    drawn = {}
    for name in draw(st.lists(st.sampled_from(places), unique=True, max_size=2)):
        at, by = draw(st.integers(0, 3)), draw(st.sampled_from([-1, 1]))
        drawn[name] = draw(st.sampled_from(list(CHANGES))), at, by
    if len(places) > 1 and draw(st.booleans()):
        drawn["hx"] = draw(st.sampled_from(list(HX_CHANGES)))
    if call.lengths is not None and draw(st.booleans()):
        drawn["packed"] = draw(st.sampled_from(list(PACKED_CHANGES)))
    # Where nobody looks at the states before PyTorch has them, they stay what they are.
    unknown = drawn.get("packed") in NO_SIZES
    kept = {"h_0", "c_0", "hx"} if unknown else set()
    if call.lengths is not None and drawn.get("hx") == "dict":
        kept = {"h_0", "c_0"}
    return {name: change for name, change in drawn.items() if name not in kept}


def changed(call, fed, drawn):
    """The arguments of a call after these changes."""
    x, hx = arguments(call, fed)
    states = dict(zip(("h_0", "c_0"), hx or (), strict=False))
    for name in states:
        if name in drawn:
            kind, at, by = drawn[name]
            states[name] = CHANGES[kind](states[name], at, by)
    hx = hx and tuple(states.values())
    if "hx" in drawn:
        hx = HX_CHANGES[drawn["hx"]](hx)
    if "input" in drawn:
        kind, at, by = drawn["input"]
        packed = isinstance(x, PackedSequence)
        other = CHANGES[kind](x.data if packed else x, at, by)
        x = x._replace(data=other) if packed else other
    if "packed" in drawn:
        x = PACKED_CHANGES[drawn["packed"]](x)
    return x, hx


def outcome(module, arguments):
    """Type and message of the error that a call ends with, or the sizes of its results."""
    try:
        returned = module(*arguments)
    except Exception as error:
        return type(error), str(error)
    flat = torch.utils._pytree.tree_leaves(returned)
    return [(x.shape, x.dtype, x.device) for x in flat if isinstance(x, torch.Tensor)]


def refused(call, x, hx):
    """What we refuse and PyTorch does not look at: the begin of our message, else None. It may read
    and write past the ends of tensors there, and crash (2.14).
    """
    if not isinstance(hx, tuple) or len(hx) < 2:
        return None
    if not all(isinstance(state, torch.Tensor) for state in hx[:2]):
        return None
    if call.module == "LSTMCell":
        one_unit = call.options["hidden_size"] == 1 and isinstance(x, torch.Tensor)
        batch = one_unit and x.dim() == 1 and hx[0].dim() == 2
        return "hidden0 is a batch" if batch else None
    if not isinstance(x, PackedSequence) or not isinstance(x.batch_sizes, torch.Tensor):
        return None
    if x.batch_sizes.dim() != 1 or len(x.batch_sizes) == 0:
        return None
    batch = int(x.batch_sizes[0])
    sizes = [(rows, batch, units) for rows, _, units in call.hx_sizes]
    other = any(state.shape != size for state, size in zip(hx, sizes, strict=False))
    return "Expected hidden" if other else None


def assert_raises_as_pytorch(call, drawn):
    with precision(call.precision):
        module, fed = make(call)
        if DEVICE.type == "cuda":
            # cuDNN takes no other states.
            fed = {name: x.contiguous() for name, x in fed.items()}
        arguments = changed(call, fed, drawn)
        message = refused(call, *arguments)
        actual = outcome(module, arguments)
        if message:
            assert actual[0] is RuntimeError and actual[1].startswith(message)
            return
        # A generator of states is spent.
        expected = outcome(theirs(module, call, call.dtype, DEVICE), changed(call, fed, drawn))
        assert actual == expected
        if call.resets is None:
            return
        resets = packed(call, flags(call).to(DEVICE))
        actual = outcome(module, (*changed(call, fed, drawn), resets))
        if isinstance(expected, tuple):
            assert isinstance(actual, tuple)
        else:
            assert actual == expected or "resets" in actual[1]


@no_onednn
@given(lstm_calls().flatmap(lambda call: st.tuples(st.just(call), changes(call))))
def test_lstm_raises_as_nn_lstm(called):
    assert_raises_as_pytorch(*called)


@given(cell_calls().flatmap(lambda call: st.tuples(st.just(call), changes(call))))
def test_lstm_cell_raises_as_nn_lstmcell(called):
    assert_raises_as_pytorch(*called)
