"""Rows of a packed batch, against what pack_padded_sequence does with their numbers, and calls of
lstm.LSTM with one, beside nn.LSTM.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from lstm.packing import Packing
from tests.lstm.pairs import assert_same, make_hx, make_input, no_onednn, pair

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


# Calls


PACKED = {
    "sorted": ([4, 2, 2], dict(num_layers=2), None),
    "unsorted": ([2, 4, 1, 3], dict(), None),
    "unsorted_hx": ([2, 4, 1, 3], dict(num_layers=2), (2, 4, 20)),
    "both_directions": ([2, 4, 1, 3], dict(bidirectional=True, num_layers=2), (4, 4, 20)),
    "batch_first": ([2, 4, 1], dict(batch_first=True), (1, 3, 20)),
    "one_sequence": ([5], dict(), None),
    "projected": ([2, 4, 1, 3], dict(proj_size=7, num_layers=2, bidirectional=True), (4, 4, 20)),
    "single_steps": ([1, 1], dict(bidirectional=True), None),
}


@no_onednn
@pytest.mark.parametrize(("lengths", "options", "hx_size"), PACKED.values(), ids=PACKED)
def test_packed_sequences_equal_nn_lstm(lengths, options, hx_size, device, launches):
    ours, theirs = pair(5, 20, device=device, **options)
    sequences = [make_input(length, 5, device=device) for length in lengths]
    x = pack_sequence(sequences, enforce_sorted=False)
    hx = make_hx(hx_size, options, device)
    assert ours.explain(x, hx).path == "fused"

    def results(module):
        data = x.data.clone().requires_grad_()
        states = hx and tuple(state.clone().requires_grad_() for state in hx)
        output, (h_n, c_n) = module(x._replace(data=data), states)
        assert torch.equal(output.batch_sizes, x.batch_sizes)
        assert output.sorted_indices is x.sorted_indices
        assert output.unsorted_indices is x.unsorted_indices
        leaves = [data, *(states or ()), *module.parameters()]
        # A weight of its own for each sequence, or an exchange of two would not show.
        loss = output.data.square().sum()
        for state in (h_n, c_n):
            weights = torch.arange(1.0, 1 + state.numel(), device=device).view(state.shape)
            loss = loss + (state * weights).sum() / state.numel()
        return [output.data, h_n, c_n, *torch.autograd.grad(loss, leaves)]

    assert_same(results(ours), results(theirs))
    layers = options.get("num_layers", 1)
    assert launches == {"forward": layers, "backward": layers}


def test_packed_states_follow_their_sequences(device):
    """Each sequence alone gives its part of the batch."""
    ours, _ = pair(5, 20, device=device, bidirectional=True)
    sequences = [make_input(length, 5, device=device) for length in (2, 4, 1)]
    _, (h_n, c_n) = ours(pack_sequence(sequences, enforce_sorted=False))
    for number, sequence in enumerate(sequences):
        _, (h, c) = ours(sequence)
        assert_same([h_n[:, number], c_n[:, number]], [h, c])


def test_dropout_between_packed_layers_draws_as_nn_lstm_does_on_a_cpu(device):
    if device.type == "cuda":
        pytest.skip("cuDNN draws its own numbers")
    ours, theirs = pair(5, 20, 2, dropout=0.5)
    x = pack_sequence([make_input(4, 5), make_input(2, 5)])
    torch.manual_seed(3)
    output, _ = ours(x)
    torch.manual_seed(3)
    expected, _ = theirs(x)
    assert_same([output.data], [expected.data])


def test_gradient_penalty_of_packed_sequences(device):
    ours, theirs = pair(5, 20, 2, device=device, bidirectional=True)
    x = pack_sequence([make_input(4, 5, device=device), make_input(2, 5, device=device)])

    def penalty(module):
        data = x.data.double().requires_grad_() if module is theirs else x.data.requires_grad_()
        output, _ = module(x._replace(data=data))
        (grad,) = torch.autograd.grad(output.data.square().sum(), data, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), list(module.parameters()))

    theirs.double()
    with torch.backends.cudnn.flags(enabled=False):
        expected = penalty(theirs)
    assert_same(penalty(ours), [grad.float() for grad in expected])
