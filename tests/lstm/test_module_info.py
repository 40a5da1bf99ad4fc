"""lstm.LSTM in nn.LSTM's place in PyTorch's own samples of it: torch.testing's ModuleInfo.

Two layers, few steps, with and without bias, batch_first, bidirectional, proj_size and hx.
"""

import pickle
from collections import defaultdict

import pytest
import torch
from torch import nn

from lstm import LSTM
from lstm.reference import relative_error
from tests.accuracy import CEILING, EXACT_CEILING
from tests.lstm.pairs import assert_equal, flat, pair

pytest.importorskip("expecttest", reason="torch.testing needs it: pip install -e '.[test]'")

# oneDNN has no LSTM with projections, and torch.testing misses what no sample needs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections:UserWarning", "ignore:Fail to import hypothesis:ImportWarning"
)


def drawn(kind, device, dtype=torch.float32, training=True):
    """What a function of PyTorch's ModuleInfo of nn.LSTM makes."""
    with pytest.MonkeyPatch.context() as patch:
        # Its import locks torch.backends, for every test of the process.
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal import common_modules
    (info,) = (info for info in common_modules.module_db if info.module_cls is nn.LSTM)
    return getattr(info, kind)(info, device, dtype, requires_grad=True, training=training)


def samples(device, dtype=torch.float32, training=True, batch=False):
    """For each sample lstm.LSTM and nn.LSTM with the same weights, and the input and hx of both."""
    for sample in drawn("module_inputs_func", device, dtype, training):
        options = sample.constructor_input.kwargs | dict(device=device, dtype=dtype)
        ours, theirs = (module.train(training) for module in pair(**options))
        input, hx = (*sample.forward_input.args, None)[:2]
        if batch:
            input = torch.stack([input, -input], 0 if ours.batch_first else 1)
            hx = hx and tuple(torch.stack([x, -x], 1) for x in hx)
        yield ours, theirs, (input, hx)


def results(module, input, hx):
    """What a call returns, then the gradients of all that it is fed and all parameters, by name."""
    leaves = {"input": input} | dict(zip(("h_0", "c_0"), hx or (), strict=False))
    leaves = {k: x.detach().to(module.weight_hh_l0).requires_grad_() for k, x in leaves.items()}
    returned = flat(module(leaves["input"], hx and (leaves["h_0"], leaves["c_0"])))
    leaves |= dict(module.named_parameters())
    loss = sum((x * torch.linspace(-1, 1, x.numel()).to(x).view_as(x)).sum() for x in returned)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(("output", "h_n", "c_n", *leaves), (*returned, *gradients), strict=True))


def compare(*args, **kwargs):
    """Asserts that ours equals nn.LSTM bitwise where a sample runs that. Arguments: of `samples`.

    Returns: by name, what the kernels made of the other samples, each beside nn.LSTM in float64.
    """
    on_kernels = defaultdict(list)
    for ours, theirs, fed in samples(*args, **kwargs):
        actual = results(ours, *fed)
        if ours.explain(*fed).path == "torch":
            assert_equal(actual.values(), results(theirs, *fed).values())
            continue
        for name, expected in results(theirs.double(), *fed).items():
            x = actual[name]
            assert (x.shape, x.dtype) == (expected.shape, ours.weight_hh_l0.dtype), name
            on_kernels[name].append((x.flatten(), expected.flatten()))
    return on_kernels


CASES = {
    "float32": (torch.float32, "tf32", dict()),
    "float32_batch_eval": (torch.float32, "tf32", dict(batch=True, training=False)),
    "float32_ieee": (torch.float32, "ieee", dict()),
    "float16": (torch.float16, "tf32", dict()),
    "bfloat16": (torch.bfloat16, "tf32", dict()),
    "float64": (torch.float64, "tf32", dict()),
}


@pytest.mark.parametrize(("dtype", "precision", "options"), CASES.values(), ids=CASES)
def test_samples_equal_nn_lstm(dtype, precision, options, device, launches, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
    # cuDNN has no backward in eval mode.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", options.get("training", True))
    on_kernels = compare(device, dtype, **options)
    # A sample has a handful of numbers, of which the error is luck: it is taken over all samples.
    # Twice the ceiling, for inputs reach 9, which saturates gates: what is left has larger errors.
    ceiling = EXACT_CEILING if precision == "ieee" else CEILING.get(dtype)
    for name, tensors in on_kernels.items():
        assert relative_error(*map(torch.cat, zip(*tensors, strict=True))) <= 2 * ceiling, name
    calls = len(on_kernels["output"])
    assert launches == {"forward": 2 * calls, "backward": 2 * calls}
    assert (calls > 0) == (dtype != torch.float64)


def test_samples_equal_nn_lstm_bitwise_without_the_interpreter(run_without_interpreter):
    run_without_interpreter("""
from tests.lstm.test_module_info import CASES, compare
for dtype in {dtype for dtype, *_ in CASES.values()}:
    for mode in (True, False):
        assert not compare("cpu", dtype, training=mode, batch=mode)
""")


def test_samples_pickled_and_converted_stay_nn_lstm(device):
    for ours, theirs, fed in samples(device):
        other = pickle.loads(pickle.dumps(ours)).to(torch.float64)
        assert repr(other) == repr(theirs)
        assert_equal(results(other, *fed).values(), results(theirs.double(), *fed).values())


def test_error_samples_raise(device):
    for sample in drawn("module_error_inputs_func", device):
        given = sample.module_error_input
        made, fed = given.constructor_input, given.forward_input
        with pytest.raises(sample.error_type, match=sample.error_regex):
            LSTM(*made.args, **made.kwargs)(*fed.args)
