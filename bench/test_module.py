"""Several layers as one module."""

from bench.cases import MODULE, MODULE_GRID

SHORT, GRID = MODULE, MODULE_GRID


def test_module(measure, impl, case, clock):
    measure(impl, case, clock)
