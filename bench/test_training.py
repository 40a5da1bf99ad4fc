"""The whole training step of the main job: loss, gradients, Adam."""

from bench.cases import MNIST

SHORT = GRID = MNIST


def test_training(measure, impl, case, clock):
    measure(impl, case, clock)
