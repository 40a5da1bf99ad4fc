"""float32 products follow torch.backends.cudnn.rnn, and leave the process as it was."""

import pytest
import torch

from lstm import LSTM, layer, plain, precision
from lstm.kernels import backward, forward
from lstm.precision import fp32_precision, matmul_in

rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul


@pytest.mark.parametrize(
    ("setting", "precision"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")]
)
def test_precision_follows_pytorchs_switch(setting, precision, monkeypatch):
    assert fp32_precision() == "tf32"
    monkeypatch.setattr(rnn, "fp32_precision", setting)
    assert fp32_precision() == precision


@pytest.fixture
def restored():
    before = matmul.fp32_precision
    yield
    matmul.fp32_precision = before


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("before", ["tf32", "ieee"])
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_matmul_in_sets_and_restores(before, precision):
    matmul.fp32_precision = before
    with matmul_in(precision):
        assert matmul.fp32_precision == precision
    assert matmul.fp32_precision == before


@pytest.mark.usefixtures("restored")
def test_matmul_in_restores_after_an_exception():
    matmul.fp32_precision = "ieee"
    with pytest.raises(ValueError, match="inside"), matmul_in("tf32"):
        raise ValueError("inside")
    assert matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("restored")
def test_matmul_in_restores_when_the_last_of_several_has_left():
    """As threads leave, in any order."""
    matmul.fp32_precision = "ieee"
    first, second = matmul_in("tf32"), matmul_in("tf32")
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert matmul.fp32_precision == "tf32"
    second.__exit__()
    assert matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("restored")
def test_matmul_in_sets_nothing_for_other_dtypes_nor_beside_tunable_op(monkeypatch):
    matmul.fp32_precision = "ieee"
    with matmul_in(""):
        assert matmul.fp32_precision == "ieee"
    monkeypatch.setattr(precision, "_tunes", lambda: True)
    with matmul_in("tf32"):
        assert matmul.fp32_precision == "ieee"


def test_matmul_in_leaves_the_default_unset():
    before = matmul.fp32_precision
    with matmul_in("ieee"):
        assert matmul.fp32_precision == before
    with matmul_in("tf32"):
        pass
    assert matmul.fp32_precision == before


def test_a_call_runs_its_products_in_the_lstms_precision(monkeypatch, device):
    seen = []

    def record(launch):
        def call(*args):
            seen.append(matmul.fp32_precision)
            return launch(*args)

        return call

    monkeypatch.setattr(forward, "lstm_forward", record(forward.lstm_forward))
    monkeypatch.setattr(backward, "lstm_backward", record(backward.lstm_backward))

    # A CPU has no such switch, and is spared it.
    def on_device_of(function, call, *arguments):
        with matmul_in(call.precision):
            return function(call, *arguments)

    monkeypatch.setattr(layer, "on_device_of", on_device_of)
    monkeypatch.setattr(plain, "on_device_of", on_device_of)
    before = matmul.fp32_precision
    output, _ = LSTM(5, 20, device=device)(torch.zeros(2, 3, 5, device=device))
    assert matmul.fp32_precision == before
    output.sum().backward()
    assert matmul.fp32_precision == before
    assert seen == ["tf32", "tf32"]
