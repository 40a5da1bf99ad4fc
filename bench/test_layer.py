"""One layer: a sequence forward, forward and backward, and one step of inference."""

from bench.cases import LAYER, LAYER_GRID, STEP, STEP_GRID

SHORT, GRID = LAYER + STEP, LAYER_GRID + STEP_GRID


def test_layer(measure, impl, case, clock):
    measure(impl, case, clock)
