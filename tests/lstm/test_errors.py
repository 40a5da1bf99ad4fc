"""Calls of lstm.LSTM that the kernels never see: those that nn.LSTM rejects, those that it runs."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm import LSTM
from lstm.reference import relative_error
from tests.accuracy import EXACT_CEILING
from tests.lstm.pairs import assert_equal, error, flat, make_input, pair, run

# Calls that nn.LSTM rejects


def hx_of(*sizes, dtype=torch.float32):
    return tuple(torch.zeros(*size, dtype=dtype) for size in sizes)


BAD_CALLS = {
    "no_input": lambda m: m(),
    "unknown_argument": lambda m: m(torch.zeros(4, 3, 5), lengths=4),
    "input_none": lambda m: m(None),
    "input_list": lambda m: m([1.0, 2.0]),
    "input_0d": lambda m: m(torch.tensor(1.0)),
    "input_1d": lambda m: m(torch.zeros(5)),
    "input_4d": lambda m: m(torch.zeros(1, 4, 3, 5)),
    "input_size": lambda m: m(torch.zeros(4, 3, 6)),
    "input_size_unbatched": lambda m: m(torch.zeros(4, 6)),
    "input_float64": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.float64)),
    "input_float16": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.float16)),
    "input_int": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.int64)),
    "no_steps": lambda m: m(torch.zeros(0, 3, 5)),
    "no_steps_unbatched": lambda m: m(torch.zeros(0, 5)),
    "h_0_layers": lambda m: m(torch.zeros(4, 3, 5), hx_of((2, 3, 20), (1, 3, 20))),
    "h_0_batch": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 1, 20), (1, 3, 20))),
    "c_0_batch": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 4, 20))),
    "c_0_size": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 21))),
    "hx_2d": lambda m: m(torch.zeros(4, 3, 5), hx_of((3, 20), (3, 20))),
    "hx_3d_unbatched": lambda m: m(torch.zeros(4, 5), hx_of((1, 1, 20), (1, 1, 20))),
    "hx_float64": lambda m: m(
        torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 20), dtype=torch.float64)
    ),
    "hx_one_of_two": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20))),
    "hx_three": lambda m: m(torch.zeros(4, 3, 5), hx_of((1, 3, 20), (1, 3, 20), (1, 3, 20))),
    "hx_a_tensor": lambda m: m(torch.zeros(4, 3, 5), torch.zeros(1, 3, 20)),
    "hx_a_tensor_one_step": lambda m: m(torch.zeros(1, 3, 5), torch.zeros(1, 3, 20)),
    "hx_of_none_one_step": lambda m: m(torch.zeros(1, 3, 5), (None, None)),
    "hx_stacked": lambda m: m(torch.zeros(4, 3, 5), torch.zeros(2, 1, 3, 20)),
    "hx_of_none": lambda m: m(torch.zeros(4, 3, 5), (None, None)),
    "hx_a_number": lambda m: m(torch.zeros(4, 3, 5), 1),
    "other_device": lambda m: m(torch.zeros(4, 3, 5, device="meta")),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_raise_as_in_nn_lstm(call, launches):
    ours, theirs = pair(5, 20)
    assert error(lambda: call(ours)) == error(lambda: call(theirs))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True)])
def test_bad_batch_first_calls_raise_as_in_nn_lstm(options):
    ours, theirs = pair(5, 20, **options)
    x, hx = torch.zeros(4, 3, 5), hx_of((1, 2, 20), (1, 2, 20))
    assert error(lambda: ours(x, hx)) == error(lambda: theirs(x, hx))


def packed(dtype=torch.float32, size=5):
    return pack_sequence([torch.zeros(n, size, dtype=dtype) for n in (2, 4)], enforce_sorted=False)


BAD_PACKED_CALLS = {
    "input_size": lambda m: m(packed(size=6)),
    "input_float64": lambda m: m(packed(torch.float64)),
    "input_int": lambda m: m(packed(torch.int64)),
    "input_3d": lambda m: m(PackedSequence(torch.zeros(6, 1, 5), torch.tensor([2, 2, 1, 1]))),
    "batch_sizes_a_list": lambda m: m(PackedSequence(torch.zeros(3, 5), [2, 1])),
    "batch_sizes_a_list_put_there": lambda m: m(packed()._replace(batch_sizes=[2, 2, 1, 1])),
    "batch_sizes_2d": lambda m: m(PackedSequence(torch.zeros(3, 5), torch.tensor([[2, 1]]))),
    "hx_float64": lambda m: m(packed(), hx_of((1, 2, 20), (1, 2, 20), dtype=torch.float64)),
    "hx_a_tensor": lambda m: m(packed(), torch.zeros(1, 2, 20)),
    "hx_one_of_two": lambda m: m(packed(), hx_of((1, 2, 20))),
    "hx_a_number": lambda m: m(packed(), 1),
}


@pytest.mark.parametrize("call", BAD_PACKED_CALLS.values(), ids=BAD_PACKED_CALLS)
def test_bad_packed_calls_raise_as_in_nn_lstm(call, launches):
    ours, theirs = pair(5, 20)
    assert error(lambda: call(ours)) == error(lambda: call(theirs))
    assert launches == {"forward": 0, "backward": 0}


# At these sizes nn.LSTM does not look: it has an error further on, a result, or crashes. The number
# of the state that is named, and both.
BAD_STATES = {
    "h_0_batch": (0, (2, 1, 20), (2, 2, 20)),
    "h_0_layers": (0, (3, 2, 20), (2, 2, 20)),
    "h_0_dimensions": (0, (2, 2, 20, 1), (2, 2, 20)),
    "c_0_batch": (1, (2, 2, 20), (2, 3, 20)),
    "c_0_layers": (1, (2, 2, 20), (1, 2, 20)),
    "c_0_size": (1, (2, 2, 20), (2, 2, 21)),
    "unbatched": (0, (2, 20), (2, 20)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "torch"])
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize(("number", "h_0", "c_0"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_states_of_packed_sequences_raise_as_those_of_a_batch(
    number, h_0, c_0, enforce_sorted, dtype, launches
):
    x = pack_sequence([torch.zeros(n, 5, dtype=dtype) for n in (4, 2)], enforce_sorted)
    size = h_0 if number == 0 else c_0
    with pytest.raises(RuntimeError) as caught:
        LSTM(5, 20, 2, dtype=dtype)(x, hx_of(h_0, c_0, dtype=dtype))
    assert str(caught.value) == f"Expected hidden[{number}] size (2, 2, 20), got {list(size)}"
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("sizes", [(20, 20), (7, 7), (20, 7)])
def test_bad_states_of_a_projected_lstm_raise_as_in_nn_lstm(sizes, launches):
    ours, theirs = pair(5, 20, proj_size=7)
    x, hx = torch.zeros(4, 3, 5), hx_of(*((1, 3, size) for size in sizes))
    assert error(lambda: ours(x, hx)) == error(lambda: theirs(x, hx))
    assert launches == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("shape", [(4, 6), (24, 5)])
def test_a_replaced_weight_of_another_shape_never_reaches_the_kernels(shape, device):
    module = LSTM(5, 6, device=device)
    module.weight_hh_l0 = torch.nn.Parameter(torch.ones(shape, device=device))
    assert module.explain(torch.randn(3, 2, 5, device=device)).path == "torch"


# PackedSequence checks nothing of what it is made of.
@pytest.mark.parametrize("batch_sizes", [[1, 2, 3], [3, 3, 0], [2, 2, 3], [2, 2], [3.0, 3.0], []])
def test_a_packed_sequence_that_nothing_packs_never_reaches_the_kernels(batch_sizes, device):
    ours, _ = pair(5, 20, device=device)
    x = PackedSequence(make_input(6, 5, device=device), torch.tensor(batch_sizes))
    assert ours.explain(x).path == "torch"


# Calls that run PyTorch's LSTM


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(hidden_size=1025), "hidden_size above 1024"),
        (dict(dtype=torch.float64), "torch.float64"),
    ],
    ids=["hidden_size", "float64"],
)
def test_module_not_on_the_kernels_equals_nn_lstm_bitwise(options, reason, device, launches):
    ours, theirs = pair(**(dict(input_size=5, hidden_size=20, num_layers=2) | options))
    x = make_input(4, 3, 5, device=device, dtype=options.get("dtype", torch.float32))
    ours, theirs = ours.to(device), theirs.to(device)
    assert ours.explain(x).path == "torch"
    assert reason in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


def test_ieee_float32_is_exact_on_the_kernels(device, launches, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    ours, theirs = pair(5, 64, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    assert "two float16" in str(ours.explain(x))
    for actual, expected in zip(run(ours, x), run(theirs, x), strict=True):
        assert relative_error(actual, expected) < EXACT_CEILING
    assert launches == {"forward": 2, "backward": 2}


def test_ieee_float32_of_more_units_equals_nn_lstm_bitwise(device, launches, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    ours, theirs = pair(5, 65, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    assert "TF32 switched off" in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}
    assert ours.explain(x.half()).path == "torch"  # its dtype is not the weights'
    assert ours.half().explain(x.half()).path == "fused"


@pytest.mark.parametrize("options", [dict(), dict(batch_first=True)])
def test_empty_batch_equals_nn_lstm(options, device, launches):
    ours, theirs = pair(5, 20, 2, device=device, **options)
    x = make_input(*((0, 4, 5) if options else (4, 0, 5)), device=device)
    assert "empty" in str(ours.explain(x))
    assert_equal(run(ours, x), run(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


def test_meta_tensors_have_nn_lstms_shapes():
    ours, theirs = pair(5, 20, 2, device="meta")
    x = torch.zeros(4, 3, 5, device="meta")
    assert ours.explain(x).path == "torch"
    assert [y.shape for y in flat(ours(x))] == [y.shape for y in flat(theirs(x))]
