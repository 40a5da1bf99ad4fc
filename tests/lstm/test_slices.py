"""Slices: their results, against the truth of tests/accuracy.py, and how they meet as they run.

The interpreter runs one program after another, so there it launches them step by step, and
tests/kernels/meeting.py has them take turns.
"""

import pytest
import torch

from lstm import LSTM, layer
from lstm.kernels import sliced_forward
from lstm.plan import interpreted
from tests.accuracy import (
    LENGTHS,
    assert_accurate_outputs,
    assert_matches,
    call_of,
    expects_overflow,
    flat,
    kinds,
    make_case,
    ours,
    packed,
    planned,
    truth,
)
from tests.kernels.meeting import side_by_side

INF, NAN = float("inf"), float("nan")


# Several slices: one unit above one slice; ragged and whole slices of each kind of tile
@pytest.mark.parametrize("H", [129, 257, 384])
def test_every_kind_of_sliced_hidden_size(H, device):
    assert_matches(make_case(3, 3, 7, H, device=device))


def test_nearly_the_largest_hidden_size(device):
    assert_matches(make_case(2, 2, 7, 1000, device=device))


@pytest.mark.parametrize(
    ("H", "dtype"),
    [(200, torch.float16), (256, torch.bfloat16), (1024, torch.bfloat16)],
)
def test_sliced_in_half_precision(H, dtype, device):
    assert_matches(make_case(2, 2, 7, H, dtype, device))


@pytest.mark.parametrize("B", [1, 8, 9, 17])
@pytest.mark.parametrize("BLOCK_B", [8, 16])
def test_sliced_tiles_of_sequences(B, BLOCK_B, device):
    assert_matches(make_case(3, B, 7, 130, device=device), BLOCK_B=BLOCK_B)


@pytest.mark.parametrize(("T", "hx"), [(1, False), (2, True), (3, False)])
def test_sliced_in_layers_and_directions(T, hx, device):
    assert_matches(make_case(T, 5, 7, 140, device=device, num_layers=2, D=2, hx=hx))


@pytest.mark.parametrize("reach", ["output", "h_n", "c_n", "output c_n", "h_n c_n"])
def test_sliced_with_gradients_from_a_part_of_the_results(reach, device):
    assert_matches(make_case(3, 5, 7, 130, device=device, reach=reach, D=2))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sliced_and_packed(lengths, device):
    case = make_case(max(lengths), len(lengths), 7, 130, device=device, D=2)
    assert_matches(packed(case, lengths), BLOCK_B=8)


def test_sliced_and_packed_with_no_state_given(device):
    case = make_case(4, 5, 7, 130, device=device, D=2, hx=False)
    assert_matches(packed(case, LENGTHS["ties"]))


def test_sliced_and_projected(device):
    assert_matches(make_case(3, 5, 7, 200, device=device, num_layers=2, D=2, P=24))


def test_sliced_with_dropout_masks_and_no_bias(device):
    case = make_case(3, 5, 7, 130, device=device, num_layers=2, bias=False)
    case.masks = [2.0 * torch.randint(2, (3, 5, 130), device=device)]
    assert_matches(case)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_sliced_gradients_of_any_scale(scale, device):
    case = make_case(3, 5, 7, 130, device=device)
    case.upstream = {name: scale * x for name, x in case.upstream.items()}
    assert_matches(case)


# Powers of two of their own for each slice; 300 would be chaotic here.
@pytest.mark.parametrize("size", [1e-9, 1e-4, 3])
def test_sliced_weight_hh_of_any_size(size, device):
    case = make_case(3, 5, 7, 130, device=device)
    case.layers[0][1].mul_(size)
    case.layers[0][1][128:].mul_(1e-3)
    assert_matches(case)


# An infinite weight meets a zero there, h before the first step, where h_0 is in gates_ih already.
@expects_overflow
@pytest.mark.parametrize(
    ("place", "value"),
    [(place, value) for place in ("input", "h_0", "c_0") for value in (NAN, INF)]
    + [("weight_hh", NAN)],
)
def test_sliced_nan_and_inf_come_out_where_the_equations_have_them(place, value, device):
    case = make_case(2, 3, 7, 130, device=device)
    {
        "input": case.input[0, 1],
        "h_0": case.h_0[0, 1],
        "c_0": case.c_0[0, 1],
        "weight_hh": case.layers[0][1][129],
    }[place][3] = value
    actual, expected = ours(case), truth(case)
    for name in ("output", "h_n", "c_n"):
        assert torch.equal(kinds(actual[name]), kinds(expected[name])), name


def test_sliced_with_huge_h_0(device):
    case = make_case(3, 5, 7, 130, device=device)
    case.h_0 = case.h_0 * 1e6
    assert_accurate_outputs(case)


# Meeting


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the interpreter runs programs of its own accord in turn"
)

# Each number of warps; one launch, and several one after the other
SIZES = [(256, 8), (300, 64), (512, 128), (1024, 16), (1024, 64)]


def results(case, at_once):
    """Outputs, then gradients of everything, of one call."""
    fed = [
        x if x is None else x.detach().requires_grad_() for x in (case.input, case.h_0, case.c_0)
    ]
    weights = [x.detach().requires_grad_() for x in flat(case.layers)]
    # The interpreter's own tile takes the whole batch, and there would be one launch.
    call = call_of(case, BLOCK_B=8) if interpreted() else call_of(case)
    call = call._replace(at_once=at_once)
    outputs = layer.lstm(call, *fed, weights, resets=case.resets)
    leaves = [*(x for x in fed if x is not None), *weights]
    return *outputs, *torch.autograd.grad(outputs, leaves, list(case.upstream.values()))


@needs_gpu
@pytest.mark.parametrize(("H", "B"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meeting_slices_equal_a_launch_for_each_step_bitwise(H, B, dtype, device):
    case = make_case(20, B, 7, H, dtype, device)
    at_once = planned(case).at_once
    assert at_once > 0
    for x, y in zip(results(case, at_once), results(case, 0), strict=True):
        assert torch.equal(x, y)


@needs_gpu
def test_a_thousand_calls_are_equal(device):
    case = make_case(28, 64, 28, 256, torch.bfloat16, device)
    at_once = planned(case).at_once
    first = results(case, at_once)
    for _ in range(1000):
        assert all(map(torch.equal, results(case, at_once), first))


@needs_gpu
def test_calls_beside_other_work_are_equal(device):
    """Products on another stream take multiprocessors away, again and again."""
    case = make_case(50, 64, 28, 512, torch.bfloat16, device)
    at_once = planned(case).at_once
    first = results(case, at_once)
    other, a = torch.cuda.Stream(), torch.randn(4096, 4096, device=device)
    for _ in range(50):
        with torch.cuda.stream(other):
            for _ in range(4):
                a @ a
        assert all(map(torch.equal, results(case, at_once), first))


@needs_gpu
def test_two_modules_on_two_streams(device):
    """Together they do not fit the card: the one waits until the other is done."""
    modules = [LSTM(64, 1024, device=device, dtype=torch.bfloat16) for _ in range(2)]
    x = torch.randn(100, 16, 64, device=device, dtype=torch.bfloat16)
    expected = [module(x)[0] for module in modules]
    streams = [torch.cuda.Stream() for _ in modules]
    torch.cuda.synchronize()
    for _ in range(20):
        outputs = []
        for module, stream in zip(modules, streams, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(module(x)[0])
        torch.cuda.synchronize()
        assert all(map(torch.equal, outputs, expected))


@needs_gpu
def test_a_cuda_graph_replays_the_exchange(device):
    module = LSTM(64, 512, device=device, dtype=torch.bfloat16)
    x = torch.randn(20, 64, 64, device=device, dtype=torch.bfloat16)

    def step():
        module.zero_grad(set_to_none=True)
        output, _ = module(x)
        output.square().sum().backward()
        return output

    expected = step().detach().clone(), module.weight_hh_l0.grad.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    for _ in range(20):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(output, expected[0])
        assert torch.equal(module.weight_hh_l0.grad, expected[1])


needs_interpreter = pytest.mark.skipif(
    not interpreted(), reason="a GPU runs programs side by side of its own accord"
)

# A last slice of a single unit, and half of the columns of units that no slice has
TURNS = {
    "one_launch": (dict(T=4, B=3, I=5, H=129), None, 8),
    "two_launches": (dict(T=3, B=10, I=5, H=129), None, 1),
    "both_directions": (dict(T=4, B=3, I=5, H=129, D=2, hx=False), None, 8),
    "packed": (dict(T=4, B=3, I=5, H=129, D=2), [4, 3, 1], 8),
    "no_unit_missing": (dict(T=3, B=3, I=5, H=256, dtype=torch.bfloat16), None, 8),
}


@needs_interpreter
@pytest.mark.parametrize(("size", "lengths", "at_once"), TURNS.values(), ids=TURNS)
def test_slices_that_take_turns_equal_a_launch_for_each_step_bitwise(
    size, lengths, at_once, monkeypatch
):
    case = make_case(**size)
    case = case if lengths is None else packed(case, lengths)
    expected = results(case, 0)
    side_by_side(monkeypatch)
    for x, y in zip(results(case, at_once), expected, strict=True):
        assert torch.equal(x, y)


@needs_interpreter
def test_slices_with_a_wrong_tag_wait_forever(monkeypatch):
    case = make_case(2, 3, 5, 129)
    side_by_side(monkeypatch)
    write = sliced_forward.write_h
    # Once, the word of the step before
    wrong = iter([1])
    monkeypatch.setattr(
        sliced_forward, "write_h", lambda p, x, t: write(p, x, t - 2 * next(wrong, 0))
    )
    with pytest.raises(Exception, match="Stuck"):
        results(case, 8)
