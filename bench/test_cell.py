"""One step of an LSTMCell, its state carried in."""

from bench.cases import CELL, CELL_GRID

SHORT, GRID = CELL, CELL_GRID


def test_cell(measure, impl, case, clock):
    measure(impl, case, clock)
