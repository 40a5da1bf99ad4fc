"""Slices that meet while they run, which only a GPU can do; test_layer.py has their results."""

import pytest
import torch

from lstm import LSTM, layer
from tests.accuracy import make_case, planned

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="programs that wait for each other need a GPU: the interpreter runs one after another",
)

# Each number of warps; one launch, and several one after the other
SIZES = [(256, 8), (300, 64), (512, 128), (1024, 16), (1024, 64)]


def results(case, at_once):
    """Outputs, then gradients of everything, of one call."""
    fed = [x.detach().requires_grad_() for x in (case.input, case.h_0, case.c_0)]
    weights = [tuple(x.detach().requires_grad_() for x in weights) for weights in case.layers]
    tile = dict(planned(case).tile)
    outputs = layer.lstm(*fed, weights, None, tile, case.precision, case.D, None, at_once)
    leaves = [*fed, *(x for w in weights for x in w)]
    return *outputs, *torch.autograd.grad(outputs, leaves, list(case.upstream.values()))


@pytest.mark.parametrize(("H", "B"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meeting_slices_equal_a_launch_for_each_step_bitwise(H, B, dtype, device):
    case = make_case(20, B, 7, H, dtype, device)
    at_once = planned(case).at_once
    assert at_once > 0
    for x, y in zip(results(case, at_once), results(case, 0), strict=True):
        assert torch.equal(x, y)


def test_a_thousand_calls_are_equal(device):
    case = make_case(28, 64, 28, 256, torch.bfloat16, device)
    at_once = planned(case).at_once
    first = results(case, at_once)
    for _ in range(1000):
        assert all(map(torch.equal, results(case, at_once), first))


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
