"""Slices that meet while they run; test_layer.py has their results, launched step by step.

In the interpreter, which runs one program after another, tests/kernels/meeting.py has them take
turns.
"""

import pytest
import torch

from lstm import LSTM, layer
from lstm.kernels import forward
from lstm.plan import interpreted
from tests.accuracy import make_case, packed, packing, planned
from tests.kernels.meeting import side_by_side

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
    weights = [tuple(x.detach().requires_grad_() for x in weights) for weights in case.layers]
    tile = dict(planned(case).tile) | {"BLOCK_B": 8}
    outputs = layer.lstm(*fed, weights, None, tile, case.precision, case.D, packing(case), at_once)
    leaves = [*(x for x in fed if x is not None), *(x for w in weights for x in w)]
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
    "one_launch": (dict(T=6, B=3, I=5, H=129), None, 8),
    "two_launches": (dict(T=3, B=10, I=5, H=129), None, 1),
    "both_directions": (dict(T=4, B=3, I=5, H=129, D=2, hx=False), None, 8),
    "packed": (dict(T=4, B=3, I=5, H=129, D=2), [4, 3, 1], 8),
    "no_unit_missing": (dict(T=3, B=3, I=5, H=256, dtype=torch.bfloat16), None, 8),
}


@needs_interpreter
@pytest.mark.parametrize(("size", "lengths", "at_once"), TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("seed", range(2))
def test_slices_that_take_turns_equal_a_launch_for_each_step_bitwise(
    size, lengths, at_once, seed, monkeypatch
):
    case = make_case(**size)
    case = case if lengths is None else packed(case, lengths)
    expected = results(case, 0)
    side_by_side(monkeypatch, seed)
    for x, y in zip(results(case, at_once), expected, strict=True):
        assert torch.equal(x, y)


@needs_interpreter
def test_slices_with_a_wrong_tag_wait_forever(monkeypatch):
    case = make_case(2, 3, 5, 129)
    side_by_side(monkeypatch)
    write = forward.write_words
    # Once, the word of the step before
    wrong = iter([1])
    monkeypatch.setattr(forward, "write_words", lambda p, x, t: write(p, x, t - 2 * next(wrong, 0)))
    with pytest.raises(Exception, match="Stuck"):
        results(case, 8)
