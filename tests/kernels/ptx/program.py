"""The programs of a grid, each with its threads, from the first instruction to the last."""

from itertools import count

import numpy as np

from .arithmetic import NUMBERS, WIDTH, compute
from .memory import Shared
from .parser import parse
from .statements import Negated, PTXError
from .warps import CONTROL, OTHERS

# Between two tensors, further than any wrong address is off
APART = 1 << 40
# Of a program, after which it is taken to wait for ever
MOST_JUMPS = 1_000_000
# Turns of which a slow program takes one
SLOW = 8


class Program:
    """One program of a grid."""

    def __init__(self, kernel, parameters, tensors, index, grid, shared_bytes):
        self.code, self.threads, self.index = kernel.code, kernel.threads, index
        self.parameters = dict(zip(kernel.parameters, parameters, strict=True))
        self.tensors = tensors
        # As shared memory: NaN until it is written.
        self.registers = [
            np.full(self.threads, *((False, bool) if w == 1 else (2**w - 1, f"u{w // 8}")))
            for w in kernel.registers
        ]
        thread = np.arange(self.threads)
        given = {"%laneid": thread % 32, "%warpid": thread // 32, "%tid.x": thread}
        given |= {"%tid.y": 0, "%tid.z": 0, "%ntid.x": self.threads, "%ntid.y": 1, "%ntid.z": 1}
        given |= {f"%ctaid.{axis}": i for axis, i in zip("xyz", index, strict=True)}
        given |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", grid, strict=True)}
        for name, register in kernel.special.items():
            self.registers[register][:] = given[name]
        self.shared = Shared(kernel.static_bytes + shared_bytes, self.threads // 32)

    def bits(self, operand, of):
        if isinstance(operand, int):
            return self.registers[operand]
        if isinstance(operand, Negated):
            return ~self.registers[operand.register]
        return operand.bits(WIDTH[of])

    def full(self, operand, of):
        return np.broadcast_to(self.bits(operand, of), self.threads)

    def write(self, register, bits, mask):
        if register is None:
            return
        if mask is None:
            self.registers[register][:] = bits
        else:
            np.copyto(self.registers[register], bits, where=mask, casting="unsafe")

    def _bytes(self, at, address, threads, size):
        """Where in which memory: pairs of a tensor's bytes, the threads' places among `threads`,
        and their offsets, one for each byte.
        """
        base = self.full(address.base, "b64")[threads]
        base = base.astype(np.int64) + address.offset
        if (base % size).any():
            at.fail(f"an address is not aligned to {size} bytes")
        if {"shared", "shared::cta"} & set(at.modifiers):
            memories = [(self.shared.data, 0, np.ones(len(base), bool))]
        elif "global" in at.modifiers:
            memories = []
            for region in np.unique(base // APART):
                if region not in self.tensors:
                    at.fail("an address is in no tensor")
                memories.append((*self.tensors[region], base // APART == region))
        else:
            at.fail("unknown memory")
        for memory, begin, here in memories:
            offsets = base[here] - begin
            if len(offsets) and (offsets.min() < 0 or offsets.max() + size > len(memory)):
                worst = offsets.min() if offsets.min() < 0 else offsets.max()
                at.fail(f"out of bounds: byte {worst} and on of {len(memory)}, {size} bytes")
            yield memory, here, offsets[:, None] + np.arange(size)

    def read(self, at, address, threads, size):
        data = np.empty((len(threads), size), np.uint8)
        for memory, here, offsets in self._bytes(at, address, threads, size):
            if memory is self.shared.data:
                self.shared.reads(at, threads[here], offsets)
            data[here] = memory[offsets]
        return data

    def modify(self, at, address, threads, data):
        for memory, here, offsets in self._bytes(at, address, threads, data.shape[1]):
            if memory is self.shared.data:
                self.shared.writes(at, threads[here], offsets)
            memory[offsets] = data[here]
            if (memory[offsets] != data[here]).any():
                at.fail("race: two threads write different values to the same byte")

    def steps(self):
        """Run; yields at every jump back, where others may have a turn."""
        fronts = {0: np.ones(self.threads, bool)}
        waiting = {}
        jumps = 0
        while fronts or waiting:
            if not fronts:
                (pc,) = waiting
                fronts = {pc + 1: waiting.pop(pc)}
                self._barrier(self.code[pc], fronts[pc + 1])
            # Who is behind goes first, until he is where others are.
            pc = min(fronts)
            threads = fronts.pop(pc)
            following = min(fronts, default=len(self.code))
            mask = None if threads.all() else threads
            while pc < following:
                at = self.code[pc]
                here = mask
                if at.guard is not None:
                    here = self.bits(at.guard, "pred")
                    here = here.copy() if mask is None else here & mask
                    here = None if here.all() else here
                if at.name not in CONTROL:
                    function = compute if at.name in NUMBERS else OTHERS[at.name][0]
                    if function is not None and (here is None or here.any()):
                        function(self, at, here)
                    pc += 1
                    continue
                here = np.ones(self.threads, bool) if here is None else here
                if at.name == "bra":
                    if (target := at.operands[0]) <= pc and here.any():
                        jumps += 1
                        if jumps > MOST_JUMPS:
                            at.fail("the program does not end")
                        yield
                    _join(fronts, target, here)
                elif at.name == "bar":
                    if waiting.keys() - {pc}:
                        at.fail("threads wait at different barriers")
                    _join(waiting, pc, here)
                _join(fronts, pc + 1, threads & ~here)
                break
            else:
                _join(fronts, pc, threads)

    def _barrier(self, at, threads):
        # A name of the barrier alone, or after a result; a count is of some threads only.
        if "red" in at.modifiers:
            value = self.full(at.operands[-1], "pred")[threads]
            kinds = {"popc": value.sum(), "and": value.all(), "or": value.any()}
            self.write(at.operands[0], kinds[(kinds.keys() & set(at.modifiers)).pop()], threads)
        elif len(at.operands) > 1:
            at.fail("a barrier of some threads is unknown")
        self.shared.barrier()


def _join(fronts, pc, threads):
    if threads.any():
        fronts[pc] = fronts[pc] | threads if pc in fronts else threads


def run(ptx, arguments, grid, shared_bytes=0, together=False, slow=None):
    """Run a kernel over a grid.

    Args: arguments: of the kernel, in its order: contiguous numpy arrays, which it changes, at
        addresses aligned as their own are modulo 16; numbers; None for what was compiled in.
        shared_bytes: compiled.metadata.shared; together: programs take turns, as those have to that
        wait for each other, else one after the other; slow: but those with this second index in the
        grid, which take one turn of SLOW.
    Returns: accesses to shared memory that its banks made of one, beyond the first.
    Raises: PTXError.
    """
    kernel = parse(ptx)
    given = [x for x in arguments if x is not None]
    # Triton has two more pointers, of scratch memory that none of our kernels has.
    more = len(kernel.parameters) - len(given)
    if not 0 <= more <= 2:
        raise PTXError(f"{len(given)} arguments given, {len(kernel.parameters)} needed")
    tensors, parameters = {}, []
    for n, x in enumerate(given, 1):
        if isinstance(x, np.ndarray):
            begin = n * APART + APART // 2 + x.ctypes.data % 16
            tensors[begin // APART] = x.reshape(-1).view(np.uint8), begin
            assert np.shares_memory(tensors[n][0], x) or not x.size
            x = begin
        parameters.append(x)
    parameters += [0] * more
    grid = (*grid, 1, 1)[:3]
    programs = (
        Program(kernel, parameters, tensors, index[::-1], grid, shared_bytes)
        for index in np.ndindex(*grid[::-1])
    )
    conflicts = 0
    with np.errstate(all="ignore"):
        for some in [list(programs)] if together else ([program] for program in programs):
            left = [(program.steps(), program.index[1] == slow) for program in some]
            for turn in count():
                left = [
                    (steps, late)
                    for steps, late in left
                    if (late and turn % SLOW) or next(steps, steps) is not steps
                ]
                if not left:
                    break
            conflicts += sum(program.shared.conflicts for program in some)
    return conflicts
