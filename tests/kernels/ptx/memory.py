"""Instructions that read and write memory, and who has touched what of shared memory."""

import numpy as np

from .arithmetic import WIDTH, numbers


def as_list(x):
    return x if isinstance(x, list) else [x]


def active(mask, threads):
    return np.arange(threads) if mask is None else np.flatnonzero(mask)


def load(program, at, mask):
    if "param" in at.modifiers:
        base, dtype = at.operands[1].base, f"u{WIDTH[at.types[0]] // 8}"
        if isinstance(base, str):
            value = program.parameters[base]
        else:
            # One of several, whose addresses are their places
            value = np.array(list(program.parameters.values()))[program.full(base, "b64")]
        program.write(at.operands[0], np.array(value, "i8").astype(dtype), mask)
        return
    registers, of = as_list(at.operands[0]), at.types[0]
    threads = active(mask, program.threads)
    size = WIDTH[of] // 8
    data = program.read(at, at.operands[1], threads, len(registers) * size)
    values = numbers(data.view(f"u{size}"), of if of[0] in "su" else f"b{WIDTH[of]}")
    for n, register in enumerate(registers):
        whole = np.zeros(program.threads, values.dtype)
        whole[threads] = values[:, n]
        program.write(register, whole, mask)


def store(program, at, mask):
    threads = active(mask, program.threads)
    width = f"b{WIDTH[at.types[0]]}"
    parts = [
        np.broadcast_to(numbers(program.bits(x, width), width), program.threads)[threads]
        for x in as_list(at.operands[1])
    ]
    data = np.ascontiguousarray(np.stack(parts, axis=-1)).view(np.uint8)
    program.modify(at, at.operands[0], threads, data)


class Shared:
    """Shared memory, and who has touched each byte since the last barrier of all threads.

    Of readers the first and the last by number, and when: an epoch of a warp ends where its threads
    meet.
    """

    def __init__(self, size, warps):
        # NaN in every type, so that what nobody wrote shows.
        self.data = np.full(size, 255, np.uint8)
        self.epoch = np.zeros(warps, np.int64)
        self.conflicts = 0
        self.barrier()

    def barrier(self):
        size = len(self.data)
        self.writer, self.last = np.full(size, -1), np.full(size, -1)
        self.first = np.full(size, 1 << 30)
        self.written, self.read = np.full(size, -1), np.full(size, -1)

    def _unordered(self, others, then, threads):
        same = others // 32 == threads // 32
        return (others != threads) & (~same | (then >= self.epoch[threads // 32]))

    def _count_conflicts(self, threads, offsets):
        """Accesses beyond the first for each 128 bytes that a warp moves: those of so many lanes go
        together, if they are of different banks or of the same numbers.
        """
        width = max(4, offsets.shape[1])
        lanes, banks = 128 // width, 128 // width
        group, place = threads // lanes, offsets[:, 0] // width
        group, place = np.unique(np.stack((group, place)), axis=1)
        uses = np.zeros((group.max(initial=0) + 1, banks), np.int64)
        np.add.at(uses, (group, place % banks), 1)
        self.conflicts += int(np.maximum(uses.max(1) - 1, 0).sum())

    def reads(self, at, threads, offsets):
        self._count_conflicts(threads, offsets)
        threads = threads[:, None]
        writer = self.writer[offsets]
        if ((writer >= 0) & self._unordered(writer, self.written[offsets], threads)).any():
            at.fail("race: shared memory is read with no barrier after another thread's write")
        np.minimum.at(self.first, offsets, threads)
        np.maximum.at(self.last, offsets, threads)
        np.maximum.at(self.read, offsets, self.epoch[threads // 32])

    def writes(self, at, threads, offsets):
        self._count_conflicts(threads, offsets)
        threads = threads[:, None]
        writer, first, last = self.writer[offsets], self.first[offsets], self.last[offsets]
        if ((writer >= 0) & self._unordered(writer, self.written[offsets], threads)).any():
            at.fail("race: shared memory is written with no barrier after another thread's write")
        read = self.read[offsets]
        late = self._unordered(first, read, threads) | self._unordered(last, read, threads)
        if ((last >= 0) & late).any():
            at.fail("race: shared memory is written with no barrier after another thread's read")
        self.writer[offsets] = threads
        self.written[offsets] = self.epoch[threads // 32]
