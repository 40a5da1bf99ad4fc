"""The training step: its warm-up leaves no trace, and lower types train from float32 weights."""

import pytest
import torch
from torch import nn

from bench.train_mnist import Classifier
from bench.training import Training

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(dtype=torch.float32, device="cpu", cuda_graph=False):
    """A small training on images whose brightness is their label."""
    torch.manual_seed(0)
    labels = torch.randint(10, (200,))
    images = labels[:, None, None] / 10 + torch.zeros(200, 28, 28)
    model = Classifier(nn.LSTM, 16, 2).to(device)
    images, labels = images.to(device, dtype), labels.to(device)
    return Training(model, images, labels, 20, 0.01, dtype, cuda_graph)


def batches(training, steps=20):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(200, (steps, 20), generator=generator).to(training.images.device)


def losses(training):
    training.run(batches(training))
    return torch.stack(training.losses)


@pytest.mark.parametrize("dtype", DTYPES)
def test_warm_up_changes_no_loss(dtype):
    warm = make(dtype)
    warm.warm_up()
    assert torch.equal(losses(warm), losses(make(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_type_learns_and_adam_keeps_float32(dtype):
    training = make(dtype)
    falling = losses(training)
    assert falling[-5:].mean() < 0.9 * falling[:5].mean()
    for weight, parameter in zip(training.weights, training.model.parameters(), strict=True):
        assert (weight.dtype, parameter.dtype) == (torch.float32, dtype)
        assert torch.equal(weight.to(dtype), parameter)


def test_first_call_is_the_first_step_on_a_clock_of_its_own():
    whole, parts = make(), make()
    rows = batches(parts)
    parts.first_call(rows[0])
    assert parts.first_call_s > 0 and parts.time_s == 0
    parts.run(rows[1:])
    assert torch.equal(torch.stack(parts.losses), losses(whole))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_graph_changes_no_loss(dtype):
    graphed = make(dtype, "cuda", cuda_graph=True)
    rows = batches(graphed)
    graphed.first_call(rows[0])
    graphed.run(rows[1:])
    eager = losses(make(dtype, "cuda"))
    # cuDNN may pick another algorithm on another stream, so equal up to rounding.
    torch.testing.assert_close(torch.stack(graphed.losses), eager, rtol=1e-2, atol=1e-3)
