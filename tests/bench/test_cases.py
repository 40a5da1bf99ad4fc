"""Cases: what they are, and that all implementations do the same work on one."""

import sys
from types import ModuleType

import pytest
import torch

from bench import cases
from lstm import LSTM

CPU = torch.device("cpu")
SMALL = [
    *cases.layers(cases.SEQUENCE, [(3, 5, 16)], cases.DTYPES),
    cases.Case("step", 1, 2, 16, 16),
    cases.Case("cell", 1, 2, 7, 16),
    cases.Case("cell+backward", 1, 2, 7, 16),
    cases.Case("forward+backward", 3, 5, 7, 16, 2),
    cases.Case("mnist step", 28, 5, 28, 16, 2),
]


def test_the_grid_is_every_size_and_the_short_list_has_no_twins():
    assert len(set(cases.LAYER_GRID)) == 3 * 6 * 8 * 3 * 2
    assert {case.num_layers for case in cases.MODULE_GRID} == {2}
    assert len(set(cases.SHORT)) == len(cases.SHORT) < 45


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_implementation_gives_the_same_numbers(case, device, launches):
    subjects = {impl: cases.subject(impl, case, device) for impl in cases.IMPLS}
    bar = 1e-2 if case.dtype == "bfloat16" else 2e-3
    for impl, work in subjects.items():
        assert work.error() < bar, impl
        work()
    assert subjects["lstm"].path == "fused" and launches["forward"] > 0
    trains = case.mode == "mnist step" or case.mode.endswith("+backward")
    assert (launches["backward"] > 0) == trains
    assert (subjects["torch"].path, subjects["naive"].path) == ("torch", "naive")


def test_an_error_in_one_gradient_is_seen():
    work = cases.subject("torch", cases.Case("forward+backward", 3, 5, 16, 16), CPU)
    assert work.error() < 1e-5
    work.module.bias_hh_l0.register_hook(lambda grad: 1.1 * grad)
    assert work.error() == pytest.approx(0.1, rel=1e-2)


def test_a_step_carries_its_state_in():
    work = cases.subject("lstm", cases.Case("step", 1, 2, 16, 16), CPU)
    assert [x.shape for x in work.hx] == [(1, 2, 16)] * 2
    assert not work().requires_grad


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(ValueError, match="impl is 'cudnn', expected one of lstm, torch"):
        cases.subject("cudnn", SMALL[0], CPU)


@pytest.mark.parametrize(
    "case, reason",
    [
        (cases.Case("forward", 28, 16, 32, 32), None),
        (cases.Case("forward", 28, 16, 32, 32, 1, "bfloat16"), "bfloat16 is for a GPU"),
        (cases.Case("forward", 1024, 256, 1024, 1024), "too large for a CPU"),
    ],
)
def test_a_cpu_takes_what_it_can(case, reason):
    assert cases.why_not(case, "lstm", CPU, kernels=False) == reason
    assert cases.why_not(case, "lstm", torch.device("cuda", 0), kernels=False) is None


def test_a_peer_that_cannot_be_imported_says_so(monkeypatch):
    monkeypatch.setattr(cases.FlashRNN, "missing", lambda: True)
    assert cases.why_not(SMALL[0], "flashrnn", CPU) == "flashrnn cannot be imported"


# What their functions take and return, by their sources: neither package can run on a CPU.
def test_torchrl_is_called_as_its_source_has_it(monkeypatch):
    def lstm_triton(x, hidden, cell, w_ih, w_hh, b_ih, b_hh, is_init):
        assert x.shape[:2] == hidden.shape[:2] == cell.shape[:2] == is_init.shape
        assert is_init.dtype == torch.bool and not is_init.any()
        module = LSTM(x.shape[2], hidden.shape[2], batch_first=True)
        given = (w_ih, w_hh, b_ih, b_hh)
        output, _ = torch.func.functional_call(
            module, dict(zip(module._flat_weights_names, given, strict=True)), (x,)
        )
        return output, None, output[:, -1], None

    name = "torchrl.modules.tensordict_module._rnn_triton"
    for depth in range(4):
        parent = ModuleType(".".join(name.split(".")[: depth + 1]))
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
    sys.modules[name].lstm_triton = lstm_triton
    work = cases.subject("torchrl", SMALL[1], CPU)
    assert work.error() < 2e-3


def test_flashrnn_is_called_as_its_readme_has_it(monkeypatch):
    def flashrnn(Wx, R, b, states=None, function="lstm", backend="cuda_fused"):
        B, T, gates, heads, H = Wx.shape
        assert (gates, heads) == (4, 1) and R.shape == (4, 1, H, H) and b.shape == (4, 1, H)
        h = c = Wx.new_zeros(B, H)
        output = []
        for t in range(T):
            gates_ih = Wx[:, t, :, 0].transpose(0, 1) + b
            i, f, g, o = (gates_ih + h @ R[:, 0].transpose(1, 2)).unbind()
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            output.append(h)
        return torch.stack(output, 1)[None, :, :, None], None

    module = ModuleType("flashrnn")
    module.flashrnn = flashrnn
    monkeypatch.setitem(sys.modules, "flashrnn", module)
    assert cases.subject("flashrnn", SMALL[1], CPU).error() < 2e-3
