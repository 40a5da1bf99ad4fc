"""Where the rows of a PackedSequence lie: its steps one after the other, each the sequences alive.

Sequences are sorted by length, longest first, so that step t has the first batch_sizes[t] of them.
"""

from functools import cached_property

import torch


class Packing:
    """The rows of one packed batch, as the kernels and the products around them index them.

    Args: batch_sizes (T,), int64 on the CPU; device: of the data.
    Attributes: T steps; B sequences; rows in all; offsets (T + 1,), the first row of each step and
        the end of the last, on the device.

    Nothing here waits for the device.
    """

    def __init__(self, batch_sizes, device):
        self.batch_sizes = batch_sizes
        self.T, self.B, self.rows = len(batch_sizes), int(batch_sizes[0]), int(batch_sizes.sum())
        ends = batch_sizes.cumsum(0)
        self.offsets = torch.cat((ends.new_zeros(1), ends)).to(device, non_blocking=True)

    @staticmethod
    def valid(batch_sizes, rows):
        """Whether a PackedSequence, which can be made by hand, is what pack_sequence makes."""
        return (
            batch_sizes.dim() == 1
            and len(batch_sizes) > 0
            and bool((batch_sizes[:-1] >= batch_sizes[1:]).all())
            and int(batch_sizes[-1]) > 0
            and int(batch_sizes.sum()) == rows
        )

    @cached_property
    def previous(self):
        """For each direction the row that comes before each row, or rows + b where sequence b
        begins: two (rows,) tensors.
        """
        begin, size = self.offsets[:-1], self.offsets.diff()
        zero = size.new_zeros(1)
        row = torch.arange(self.rows, device=size.device)
        sequence = row - self._spread(begin)
        before, after = self._spread(torch.cat((zero, size[:-1]))), self._spread(size)
        has_after = sequence < self._spread(torch.cat((size[1:], zero)))
        starts = self.rows + sequence
        return (
            torch.where(row < self.B, starts, row - before),
            torch.where(has_after, row + after, starts),
        )

    @cached_property
    def first(self):
        """For each direction the row with which each sequence begins: two (B,) tensors."""
        sequence = torch.arange(self.B, device=self.offsets.device)
        lengths = (self.offsets.diff()[:, None] > sequence).sum(0)
        return sequence, self.offsets[lengths - 1] + sequence

    def _spread(self, steps):
        """A number for each step to one for each row."""
        return torch.repeat_interleave(steps, self.offsets.diff(), output_size=self.rows)
