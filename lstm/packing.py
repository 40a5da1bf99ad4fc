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
            isinstance(batch_sizes, torch.Tensor)
            and batch_sizes.dtype == torch.int64
            and batch_sizes.dim() == 1
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

    def prepare(self):
        """Make `previous` and `first` now: later several streams may ask for them."""
        return self.previous, self.first

    @cached_property
    def host_offsets(self):
        """`offsets` as a list."""
        return [0, *self.batch_sizes.cumsum(0).tolist()]

    def part(self, begin, end):
        """The rows of the steps from begin to end, as a batch of their own."""
        return Packing(self.batch_sizes[begin:end], self.offsets.device)

    @cached_property
    def turned(self):
        """Of each row of the batch with its sequences turned around: the row that comes there, and
        the row of the step after that one in time, or as many as there are rows after the last.
        """
        device = self.offsets.device
        step = self._spread(torch.arange(self.T, device=device))
        sequence = torch.arange(self.rows, device=device) - self._spread(self.offsets[:-1])
        lengths = (self.offsets.diff()[:, None] > torch.arange(self.B, device=device)).sum(0)
        time = lengths[sequence] - 1 - step
        later = self.offsets[time + 1] + sequence
        return self.offsets[time] + sequence, torch.where(step == 0, self.rows, later)

    def _spread(self, steps):
        """A number for each step to one for each row."""
        return torch.repeat_interleave(steps, self.offsets.diff(), output_size=self.rows)
