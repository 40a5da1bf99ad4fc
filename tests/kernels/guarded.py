"""Tensors that show a launcher's reads and writes out of bounds."""

import mmap

import numpy as np
import torch
import triton.language as tl

from lstm.plan import interpreted

GUARD = 256  # numbers on either side: more than a tile's padding reaches past its end


class Guarded:
    """Tensors amid NaN. What is read beyond their ends spreads, what is written there shows.

    The interpreter moreover refuses any access beyond them, also one that nothing comes of.
    """

    def __init__(self, device, dtype, monkeypatch):
        self.device, self.dtype = device, dtype
        self.whole, self.read_only = [], []
        if interpreted():
            self._watch(monkeypatch)

    def _watch(self, monkeypatch):
        from triton.runtime.interpreter import InterpreterBuilder

        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def checked_load(builder, ptrs, mask, *args):
            self._check(ptrs.data[mask.data.astype(bool)])
            return load(builder, ptrs, mask, *args)

        def checked_store(builder, ptrs, value, mask, *args):
            self._check(ptrs.data[mask.data.astype(bool)])
            return store(builder, ptrs, value, mask, *args)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)

    def _check(self, addresses):
        inside = np.zeros(addresses.shape, dtype=bool)
        for inner in [*self.read_only, *(whole[GUARD:-GUARD] for whole in self.whole)]:
            inside |= (addresses >= inner.data_ptr()) & (
                addresses < inner.data_ptr() + inner.nbytes
            )
        assert inside.all(), "an access beyond the ends of all tensors"

    def empty(self, *size, dtype=None):
        return self.full(torch.full(size, torch.nan), dtype)

    def full(self, x, dtype=None):
        whole = torch.full((x.numel() + 2 * GUARD,), torch.nan, device=self.device)
        whole = whole.to(dtype or self.dtype)
        inner = whole[GUARD:-GUARD].view(x.shape)
        self.whole.append(whole)
        return inner.copy_(x)

    def integers(self, numbers):
        """To read only, of another type, and so without NaN at the ends."""
        self.read_only.append(torch.tensor(numbers, device=self.device))
        return self.read_only[-1]

    def flags(self, count):
        """Random bytes of 0 and 1, to read only."""
        flags = torch.rand(count, device=self.device) < 0.3
        self.read_only.append(flags.view(torch.uint8))
        return self.read_only[-1]

    def intact(self):
        """Whether nothing was written beyond the ends, and everything between them."""
        return all(
            whole[:GUARD].isnan().all()
            and whole[-GUARD:].isnan().all()
            and whole[GUARD:-GUARD].isfinite().all()
            for whole in self.whole
        )


def sparse(*size, dtype):
    """Zeros that take memory only where they are touched.

    So do 2^31 more before them, where an offset lands that 32 bits could not hold.
    """
    no_reserve = 0x4000  # MAP_NORESERVE, which mmap does not name
    margin, numel = 2**31, torch.Size(size).numel()
    memory = mmap.mmap(
        -1,
        (margin + numel) * dtype.itemsize,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve,
    )
    return torch.frombuffer(memory, dtype=dtype)[margin:].view(size)


def far_pair(sizes, batches, few, many):
    """Random tensors of few sequences, and the same numbers as the last of many, by name.

    sizes: of the first; batches: for each name which dimension counts sequences, and how many one
    of its rows holds; None where none does. Returns: the first, the others whole, their last part.
    """
    near = {name: torch.randn(size).half() for name, size in sizes.items()}
    far, last = {}, {}
    for name, x in near.items():
        if batches[name] is None:
            far[name] = x
            continue
        dimension, sequences = batches[name]
        whole = list(x.shape)
        whole[dimension] = many // sequences
        far[name] = sparse(*whole, dtype=x.dtype)
        start = (many - few) // sequences
        last[name] = far[name].narrow(dimension, start, few // sequences)
        last[name].copy_(x)
    return near, far, last


def run_only_program(monkeypatch, number):
    """Has the interpreter run one program of each grid, with this number on its first axis."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

    def program_id(self, axis):
        return TensorHandle(np.array([0 if axis else number], dtype=np.int32), tl.int32)

    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", program_id)
    init = GridExecutor.__init__

    def init_for_one(self, fn, arg_names, grid, *others, **more):
        init(self, fn, arg_names, (1, 1, 1), *others, **more)

    monkeypatch.setattr(GridExecutor, "__init__", init_for_one)
