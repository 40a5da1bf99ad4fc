"""Rows of a packed batch, against what pack_padded_sequence does with their numbers."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from lstm.packing import Packing

LENGTHS = [[4, 4, 3, 1, 1], [5], [1, 1, 1], [6, 5, 4, 3, 2, 1], [3] * 17 + [1]]


def packed(lengths):
    """A packing, and the step and the sequence of each of its rows."""
    T, B = lengths[0], len(lengths)
    where = torch.stack(torch.meshgrid(torch.arange(T), torch.arange(B), indexing="ij"), dim=2)
    given = pack_padded_sequence(where, lengths)
    return Packing(given.batch_sizes, torch.device("cpu")), given.data


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_previous_is_the_row_of_the_step_before_in_each_direction(lengths):
    packing, where = packed(lengths)
    assert (packing.T, packing.B, packing.rows) == (lengths[0], len(lengths), sum(lengths))
    row = {tuple(at.tolist()): n for n, at in enumerate(where)}
    for direction, index in zip((1, -1), packing.previous, strict=True):
        for (t, b), previous in zip(where.tolist(), index.tolist(), strict=True):
            assert previous == row.get((t - direction, b), packing.rows + b)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_first_is_where_each_sequence_begins(lengths):
    packing, where = packed(lengths)
    forwards, backwards = packing.first
    assert where[forwards].tolist() == [[0, b] for b in range(len(lengths))]
    assert where[backwards].tolist() == [[length - 1, b] for b, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("batch_sizes", "rows", "valid"),
    [
        ([3, 2, 1], 6, True),
        ([3, 2, 1], 5, False),
        ([2, 3], 5, False),
        ([3, 0], 3, False),
        ([], 0, False),
        ([[3]], 3, False),
    ],
)
def test_only_what_packing_makes_is_valid(batch_sizes, rows, valid):
    assert Packing.valid(torch.tensor(batch_sizes, dtype=torch.int64), rows) is valid
