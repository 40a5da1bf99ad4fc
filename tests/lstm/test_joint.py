"""Several layers at once: the same results, where there are steps and room enough for it."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lstm import LSTM, layer, plain
from lstm import plan as plans
from lstm.kernels import config, joint_backward, joint_forward
from lstm.plan import MIN_JOINT_STEPS, plan
from tests.accuracy import (
    assert_accurate_outputs,
    assert_matches,
    call_of,
    expects_overflow,
    make_case,
    packed,
    reset,
)
from tests.lstm.pairs import assert_equal, assert_same, flat, make_input, pair, run

T = MIN_JOINT_STEPS
LAUNCHERS = [(joint_forward, "lstm_joint_forward"), (joint_backward, "lstm_joint_backward")]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def joint(*args, num_layers=2, **kwargs):
    """A case that runs several layers at once."""
    kwargs["num_layers"] = num_layers
    case = make_case(*args, **kwargs)
    assert call_of(case).layers > 1
    return case


@pytest.fixture
def joined(monkeypatch):
    """Of each launch of several layers, forward or backward, how many they are."""
    found = []

    def counted(launch):
        def call(layers, *args):
            found.append(len(layers))
            return launch(layers, *args)

        return call

    for module, name in LAUNCHERS:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return found


def with_masks(case):
    size = (*case.input.shape[:2], case.layers[0][1].shape[0] // 4)
    masks = [2 * (torch.rand(size) < 0.5).to(case.input) for _ in case.layers[1:]]
    return replace(case, masks=masks)


# As many steps as it takes, and more than a ring has
@pytest.mark.parametrize("steps", [T, T + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_layers(steps, dtype, device):
    assert_matches(joint(steps, 5, 7, 20, dtype, device))


# So many that a ring comes round many times
def test_two_layers_of_many_steps(device):
    assert_matches(joint(67, 3, 3, 16, device=device))


# Weights that a thread reads one at a time, two, four and eight; the largest
@pytest.mark.parametrize("H", [37, 50, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_hidden_size(H, dtype, device):
    assert_matches(joint(T, 3, 3, H, dtype, device))


def test_one_unit(device):
    assert_matches(joint(T, 30, 3, 1, device=device))


@pytest.mark.parametrize(("dtype", "num_layers"), [*zip(DTYPES, (3, 5, 4), strict=True)])
def test_more_layers(dtype, num_layers, device, launches):
    assert_matches(joint(T, 3, 7, 20, dtype, device, num_layers=num_layers))
    assert launches == {"forward": num_layers, "backward": num_layers}


# Of so many layers, so many a launch: those of each
@pytest.mark.parametrize(
    ("num_layers", "layers", "expected"),
    [(3, 2, [2]), (4, 2, [2, 2]), (5, 2, [2, 2]), (5, 3, [3, 2]), (7, 3, [3, 3])],
)
@pytest.mark.parametrize("hx", [False, True])
def test_as_many_a_launch_as_there_is_room_for(hx, num_layers, layers, expected, device, joined):
    case = joint(T, 3, 7, 20, device=device, num_layers=num_layers, hx=hx)
    assert_matches(case, layers=layers)
    assert joined == expected + expected[::-1]


@pytest.mark.parametrize(("BLOCK_B", "dtype"), [(2, torch.bfloat16), (4, torch.float32), (8, None)])
def test_ragged_tiles(BLOCK_B, dtype, device):
    case = joint(T, 9 if BLOCK_B == 8 else 5, 7, 20, dtype or torch.float16, device)
    assert_matches(case, BLOCK_B=BLOCK_B)


@pytest.mark.parametrize("options", [{"bias": False}, {"hx": False}, {"bias": False, "hx": False}])
def test_without_biases_and_states(options, device):
    assert_matches(joint(T, 5, 7, 20, device=device, **options))


@pytest.mark.parametrize(("reach", "hx"), [("output", True), ("h_n", False), ("c_n", False)])
def test_gradients_from_a_part_of_the_results(reach, hx, device):
    assert_matches(joint(T, 5, 7, 20, device=device, reach=reach, hx=hx))


@pytest.mark.parametrize(("dtype", "num_layers"), [*zip(DTYPES, (2, 3, 4), strict=True)])
def test_dropout_between_the_layers(dtype, num_layers, device):
    assert_matches(with_masks(joint(T, 5, 7, 20, dtype, device, num_layers=num_layers)))


def test_dropout_that_makes_numbers_beyond_float16(device):
    """A hundred thousand times as large: float32's product has a scale for each sequence."""
    case = with_masks(joint(T, 5, 7, 20, device=device))
    masks = [5e4 * mask for mask in case.masks]
    (lower, (weight_ih, *others)) = case.layers
    layers = [lower, (weight_ih / 5e4, *others)]
    assert_accurate_outputs(replace(case, masks=masks, layers=layers))


@pytest.mark.parametrize(("dtype", "num_layers"), [*zip(DTYPES, (2, 3, 2), strict=True)])
def test_resets(dtype, num_layers, device):
    assert_matches(reset(joint(T, 5, 7, 20, dtype, device, num_layers=num_layers)))


LENGTHS = [T + 2, T + 2, T, T - 3, 4, 1, 1]


@pytest.mark.parametrize("BLOCK_B", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "num_layers"), [*zip(DTYPES, (2, 3, 2), strict=True)])
def test_packed_sequences(dtype, num_layers, BLOCK_B, device):
    case = make_case(T + 2, len(LENGTHS), 7, 20, dtype, device, num_layers=num_layers)
    case = packed(case, LENGTHS)
    assert call_of(case).layers == num_layers
    assert_matches(case, BLOCK_B=BLOCK_B)


@pytest.mark.parametrize("options", [{"hx": False}, {"bias": False}, {"reach": "h_n c_n"}])
def test_packed_sequences_with_resets_and_dropout(options, device):
    case = reset(joint(T + 2, len(LENGTHS), 7, 20, device=device, num_layers=3, **options))
    case = packed(case, LENGTHS)
    masks = [2 * (torch.rand(len(case.input), 20) < 0.5).to(case.input) for _ in range(2)]
    assert_matches(replace(case, masks=masks))


@expects_overflow
def test_weights_beyond_float16(device):
    case = joint(T, 5, 7, 20, device=device)
    case.layers[1][0][3, 4] = 3e5
    case.layers[1][1][7] *= 1e-9
    assert_accurate_outputs(case)


def test_nothing_is_saved_without_gradients(device, monkeypatch):
    from lstm.kernels import joint_forward

    launch, saved = joint_forward.lstm_joint_forward, []

    def record(layers, *args):
        for own in layers:
            saved.extend(own[-2:])
        return launch(layers, *args)

    monkeypatch.setattr(joint_forward, "lstm_joint_forward", record)
    case = joint(T, 5, 7, 20, device=device)
    arguments = case.input, case.h_0, case.c_0, [w for ws in case.layers for w in ws]
    layer.lstm(call_of(case), *arguments)
    assert saved == [None] * 4


# Of three layers those without gradients, and of how many then there is a backward; without biases
# not in the few lines of plain.py
@pytest.mark.parametrize(
    ("frozen", "backward", "bias"),
    [
        ([0], 2, True), ([1], 3, True), ([2], 3, True), ([0, 1], 1, True), ([0, 2], 2, True),
        ([0], 2, False), ([0, 1], 1, False),
    ],
)  # fmt: skip
def test_frozen_layers(frozen, backward, bias, device, launches):
    """Layers that lie below all that have gradients have no backward."""
    ours, theirs = pair(7, 20, 3, bias=bias, device=device)
    x, grads = make_input(T, 5, 7, device=device), []
    for module in (ours, theirs):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(int(name[-1]) not in frozen)
        wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
        output, (h_n, _) = module(x)
        grads.append(torch.autograd.grad(output.square().sum() + h_n.sum(), wanted))
    assert_same(*grads)
    assert launches == {"forward": 3, "backward": backward}


@pytest.mark.parametrize("hx", [False, True])
def test_the_module_with_packed_sequences(hx, device, launches, joined):
    ours, theirs = pair(7, 20, 2, device=device)
    x = [make_input(n, 7, device=device) for n in (4, T + 2, 1, T)]
    x = torch.nn.utils.rnn.pack_sequence(x, enforce_sorted=False)
    states = tuple(make_input(2, 4, 20, device=device) for _ in range(2)) if hx else None
    assert ours.explain(x).layers == 2
    data = x.data.detach().requires_grad_()

    def results(module):
        output, states_n = module(x._replace(data=data), states)
        returned = output.data, *states_n
        loss = sum(y.square().sum() for y in returned)
        return *returned, *torch.autograd.grad(loss, [data, *module.parameters()])

    assert_same(results(ours), results(theirs))
    assert launches == {"forward": 2, "backward": 2} and joined == [2, 2]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
def test_the_module(batch_first, hx, device, launches):
    ours, theirs = pair(7, 20, 3, batch_first=batch_first, device=device)
    size = (5, T, 7) if batch_first else (T, 5, 7)
    x = make_input(*size, device=device)
    states = tuple(make_input(3, 5, 20, device=device) for _ in range(2)) if hx else None
    assert_same(run(ours, x, states), run(theirs, x, states))
    assert launches == {"forward": 3, "backward": 3}


def test_a_gradient_is_taken_twice_from_what_was_saved_once(device):
    module, x = LSTM(7, 20, 2, device=device), make_input(T, 5, 7, device=device)
    loss = module(x)[0].square().sum()
    parameters = list(module.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, parameters), first)


@pytest.fixture
def counters(monkeypatch):
    """What each launch of several layers finds in its counters, and where they lie."""
    found = []

    def counted(launch):
        def call(*args):
            (taken,) = [x for x in args if getattr(x, "dtype", None) == torch.int32]
            found.append((taken.count_nonzero().item(), taken.untyped_storage().data_ptr()))
            launch(*args)
            # As on a GPU: interpreted programs need not count.
            taken += 1

        return call

    for module, name in LAUNCHERS:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return found


@pytest.mark.usefixtures("by_twos")
@pytest.mark.parametrize("hx", [False, True])
def test_each_launch_counts_from_zero(hx, device, counters):
    module, x = LSTM(3, 16, 4, device=device), make_input(T, 2, 3, device=device)
    states = (torch.zeros(4, 2, 16, device=device),) * 2 if hx else None
    loss = module(x, states)[0].sum()
    # The second backward has the counters of no forward.
    loss.backward(retain_graph=True)
    loss.backward()
    assert [steps for steps, _ in counters] == [0] * 6


def test_a_graph_of_backward_alone_has_its_own_counters(device, counters, monkeypatch):
    loss = LSTM(3, 16, 2, device=device)(make_input(T, 2, 3, device=device))[0].sum()
    monkeypatch.setattr(plain, "captured", lambda x: True)
    here = nullcontext(SimpleNamespace(mm=torch.mm))
    monkeypatch.setattr(plain, "Branches", lambda device: here)
    loss.backward()
    (_, forwards), (_, backwards) = counters
    assert forwards != backwards


def test_gradients_of_gradients(device):
    ours, theirs = pair(7, 20, 2, device=device)
    x = make_input(T, 2, 7, device=device)
    penalties = []
    for module, dtype in ((ours, torch.float32), (theirs.cpu().double(), torch.float64)):
        y = (x if module is ours else x.cpu()).to(dtype).requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):
            (grad,) = torch.autograd.grad(module(y)[0].square().sum(), y, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), list(module.parameters())))
    for mine, truth in zip(*penalties, strict=True):
        assert_same([mine.cpu().double()], [truth])


def test_parts_that_are_computed_again(device):
    ours, theirs = pair(7, 20, 2, device=device)
    ours.recompute = T
    # The last part is a single step, which two layers take at once, too.
    x = make_input(2 * T + 1, 3, 7, device=device)
    assert_same(run(ours, x), run(theirs, x))


def test_the_compilers_operator(device):
    module, x = LSTM(7, 20, 2, device=device), make_input(T, 5, 7, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_equal(flat(compiled(x)), flat(module(x)))
    grads = [
        torch.autograd.grad(f(x)[0].square().sum(), list(module.parameters()))
        for f in (compiled, module)
    ]
    assert_equal(*grads)


@pytest.mark.usefixtures("by_twos")
@pytest.mark.parametrize("num_layers", [3, 4])
def test_all_that_the_operator_returns_is_written(num_layers, device):
    """Two layers at once, and of three the last alone, whose W_ih nobody transposes."""
    module, x = LSTM(7, 20, num_layers, device=device), make_input(T, 5, 7, device=device)
    given = x, None, None, list(module.parameters()), [], None, num_layers, 1, "tf32", True
    returned = torch.ops.fused_lstm.forward(*given)
    assert len(returned) > 3 and all(y.isfinite().all() for y in returned)
    assert_equal(torch.ops.fused_lstm.forward(*given), returned)


# What differs from a call that runs layers at once, and for how many layers in one launch
APART = {
    "too few steps": (dict(num_layers=2), T - 1),
    "one layer": (dict(), T),
    "both directions": (dict(num_layers=2, bidirectional=True), T),
    "a projection": (dict(num_layers=2, proj_size=3), T),
}


@pytest.mark.parametrize(("options", "steps"), APART.values(), ids=APART)
def test_one_layer_after_the_other(options, steps, device):
    module = LSTM(7, 20, **options, device=device)
    x = make_input(steps, 5, 7, device=device)
    assert module.explain(x).path == "fused" and module.explain(x).layers == 1
    assert "at once" not in str(module.explain(x))


def test_the_environment_keeps_layers_apart(device, monkeypatch):
    monkeypatch.setattr(plans, "forced", lambda: "apart")
    # Not one that an earlier test asked for
    planned = plans.plan_on.__wrapped__(device, 20, 5, torch.float32, "tf32", False, 2)
    assert planned.path == "fused" and planned.layers == 1


H100 = dict(card=(9, 0), multiprocessors=132)


@pytest.mark.parametrize(
    ("hidden_size", "batch", "num_layers", "programs"),
    [
        # Three for each tile: 2 sequences as long as there is room, then 4, 8
        (128, 80, 2, 3 * 40), (128, 81, 2, 3 * 21),
        (128, 100, 2, 3 * 25), (128, 160, 2, 3 * 40),
        (128, 161, 2, 3 * 21), (128, 320, 2, 3 * 40),
        # Two programs a multiprocessor
        (32, 168, 2, 3 * 84), (32, 672, 2, 3 * 84),
        # All layers, with as many sequences a tile as that takes
        (128, 44, 3, 5 * 22), (128, 45, 3, 5 * 12), (128, 176, 3, 5 * 22),
        (128, 28, 4, 7 * 14), (128, 112, 4, 7 * 14),
    ],
)  # fmt: skip
def test_all_layers_with_the_fewest_sequences_a_tile(hidden_size, batch, num_layers, programs):
    planned = plan(hidden_size, batch, torch.bfloat16, layers=num_layers, **H100)
    assert planned.layers == num_layers and planned.programs == programs
    assert f"{num_layers} layers at once" in str(planned)
    at_once, stages = config.room(hidden_size, 132), 2 * num_layers - 1
    assert programs + stages * config.TRANSPOSERS <= at_once
    assert at_once <= config.resident(132, dict(planned.tile))


@pytest.mark.parametrize(
    ("batch", "num_layers", "layers"),
    [
        # Without room for all, as many launches as it takes, of as many layers each as it takes
        (177, 3, 2), (113, 4, 2), (161, 5, 3), (113, 6, 3), (80, 7, 4), (177, 6, 2), (321, 4, 1),
        # There is an end to what is compiled.
        (1, 8, 8), (1, 9, 5), (1, 17, 6),
    ],
)  # fmt: skip
def test_layers_are_divided_evenly(batch, num_layers, layers):
    assert plan(128, batch, torch.float32, layers=num_layers, **H100).layers == layers


@pytest.mark.parametrize("change", [dict(batch=321), dict(precision="ieee", hidden_size=64)])
def test_without_room_layers_stay_apart(change):
    call = dict(hidden_size=128, batch=320, dtype=torch.float32, **H100)
    assert plan(**call, layers=2).layers == 2
    other = plan(**(call | change), layers=2)
    assert other == plan(**(call | change))
    assert other.path == "fused" and other.layers == 1


@pytest.mark.parametrize("hidden_size", [129, 512])
def test_slices_run_one_layer_after_the_other(hidden_size):
    assert plan(hidden_size, 16, torch.float16, layers=2, **H100).layers == 1
