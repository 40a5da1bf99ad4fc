"""The exchange of slices (kernels/words.py) in every order that a few programs can take, and the
PTX of its reads, which the interpreter never runs.

A search through all states of a model. Its threads write and read words as the kernels do; what
else orders them, a warp or a cache, is left out, so memory is weaker than any card's: a read finds
any word that was written to its place, but none older than what its thread found there before.
"""

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import triton.language as tl

from lstm.kernels.words import _read_four, _sum, tag
from tests.kernels.states import Wrong, changed, search


@dataclass(frozen=True)
class Protocol:
    """The exchange, or a wrong one.

    tag(t): of the words that step t reads; buffers; barrier: whether the threads of a program write
    only after all of them have read; joined: whether a tag travels in the word of its number;
    zeroed: whether the buffers are, before a launch; else they have what one before it left there.
    """

    tag: object = getattr(tag, "fn", tag)
    buffers: int = 2
    barrier: bool = True
    joined: bool = True
    zeroed: bool = True


EARLIER = 2  # steps of a launch before


class Model:
    """Programs of some threads. In step t, 0 to steps - 1, a thread reads the words of some of the
    programs, its part, and writes one for step t + 1.

    A state is, for each thread, its step, which of its words it has read, and whether it has
    written. Step t reads what was written in step t - 1, which for step 0 is what was there before.
    """

    def __init__(self, programs, threads, steps, protocol):
        self.steps, self.protocol = steps, protocol
        self.threads = list(product(range(programs), range(threads)))
        # The words that a thread reads: all of each program that is its part.
        self.part = {
            thread: [writer for writer in self.threads if writer[0] % threads == thread[1]]
            for thread in self.threads
        }

    def start(self):
        return tuple((0, frozenset(), False) for _ in self.threads)

    def written(self, state, writer):
        """Steps that found their words of this writer written, from the first launch's end on."""
        t, _, has_written = state[self.threads.index(writer)]
        return t + has_written

    def place(self, t):
        return t % self.protocol.buffers

    def before(self, place):
        """What is in a place at the start: its tag, and the step it is taken for, none of this."""
        if self.protocol.zeroed:
            return 0
        # The last step of an earlier launch that wrote there.
        return self.protocol.tag(max(t for t in range(1, EARLIER + 1) if self.place(t) == place))

    def found(self, state, reader_step, writer):
        """All (step, tag) that a read for a step can find in its place, oldest first; the step of
        what was there at the start is 0, which is right for step 0 alone.
        """
        place = self.place(reader_step)
        # What its thread read there before, or what was there at the start: nothing older.
        oldest = max(0, reader_step - self.protocol.buffers)
        steps = [
            t for t in range(oldest, self.written(state, writer) + 1) if self.place(t) == place
        ]
        there = [(t, self.protocol.tag(t) if t else self.before(place)) for t in steps if t]
        if oldest == 0:
            there.insert(0, (0, self.before(place)))
        return there

    def check(self, state):
        """Raises: Wrong, if a state is."""
        for thread, (t, read, _) in zip(self.threads, state, strict=True):
            for writer in self.part[thread]:
                # Nothing is read of what was there at the start: the kernels take zeros for it.
                if t == 0 or t >= self.steps or writer in read:
                    continue
                for step, its_tag in self.found(state, t, writer):
                    if step > t:
                        raise Wrong(f"step {t} finds the word of step {step} in place of its own")
                    if step < t and its_tag == self.protocol.tag(t):
                        raise Wrong(f"step {t} takes the word of step {step} for its own")

    def finished(self, state):
        return all(t >= self.steps for t, _, _ in state)

    def torn(self, state, t, writer):
        """Whether a number apart from its tag may still be an older one."""
        return not self.protocol.joined and len(self.found(state, t, writer)) > 1

    def next(self, state):
        """All states one access further. Raises: Wrong, if this one is."""
        self.check(state)
        for n, (thread, (t, read, written)) in enumerate(zip(self.threads, state, strict=True)):
            if t >= self.steps:
                continue
            part = self.part[thread]
            for writer in part:
                if writer not in read and self.written(state, writer) >= t:
                    if t > 0 and self.torn(state, t, writer):
                        raise Wrong(f"step {t} takes an older number with its tag")
                    yield changed(state, n, (t, read | {writer}, written))
            if not written and self.may_write(state, thread, t):
                yield changed(state, n, (t, read, True))
            if written and len(read) == len(part):
                yield changed(state, n, (t + 1, frozenset(), False))

    def may_write(self, state, thread, t):
        """Whether a thread has read its words of step t, and the others of its program theirs."""
        for other, (step, read, _) in zip(self.threads, state, strict=True):
            same = other == thread or (self.protocol.barrier and other[0] == thread[0])
            if same and step == t and len(read) < len(self.part[other]):
                return False
            if same and step < t:
                return False
        return True


def tag_of_h(t):
    """Of one bit."""
    return Protocol().tag(t) % 2


@pytest.mark.parametrize("of", [Protocol(), Protocol(tag=tag_of_h)], ids=["parts", "h"])
@pytest.mark.parametrize(("programs", "threads", "steps"), [(2, 1, 8), (2, 2, 6), (3, 1, 6)])
def test_every_step_reads_its_own_words_in_every_order(programs, threads, steps, of):
    assert search(Model(programs, threads, steps, of)) > 100


WRONG = {
    "no_barrier": (dict(barrier=False), "finds the word of step"),
    "one_buffer": (dict(buffers=1), "finds the word of step|takes the word"),
    "one_tag": (dict(tag=lambda t: 1), "takes the word of step"),
    "tag_of_the_zeros": (dict(tag=lambda t: (t + 3) // 2 % 2), "takes the word of step 0"),
    "tag_beside_the_word": (dict(joined=False), "takes an older number"),
    "buffers_of_an_earlier_launch": (dict(zeroed=False), "takes the word of step 0"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_other_protocols_is_found(change, reason):
    with pytest.raises(Wrong, match=reason):
        search(Model(2, 2, 4, Protocol(**change)))


@pytest.mark.parametrize("count", [4, 2])
def test_tags_differ_from_one_write_of_a_buffer_to_the_next(count):
    tags = [Protocol().tag(t) % count for t in range(100)]
    assert set(tags) == set(range(count)) and tags[0] == 0
    assert all(tags[t] != tags[t + 2] for t in range(98))
    # In the first words of a launch it is not that of zeros.
    assert tags[1] and tags[2]


BINARY = {
    "or.b32": np.bitwise_or, "and.b32": np.bitwise_and, "xor.b32": np.bitwise_xor,
    "add.u32": np.add, "shr.u32": np.right_shift, "mul.lo.u32": np.multiply,
}  # fmt: skip


class PTX:
    """Runs the few instructions of the reads, on 32-bit words. memory: words by address."""

    def __init__(self, text, registers, memory):
        self.registers, self.memory, self.reads, self.turns = dict(registers), memory, [], 0
        body = text.split("again_${:uid}:")[1]
        body = re.split(r" (?:all|none)_\$\{:uid\}: \}", body)[0]
        again = True
        while again:
            again = False
            self.turns += 1
            for line in filter(None, map(str.strip, body.split(";"))):
                if line.startswith("@!p bra"):
                    if self.registers["p"]:
                        continue
                    break
                if line.startswith("@p bra"):
                    if self.registers["p"]:
                        self.memory = next(self.later)
                        again = True
                        break
                    continue
                name, _, operands = line.partition(" ")
                into, *given = self.split(operands)
                self.step(name, into, given)

    later = iter(())

    @staticmethod
    def split(operands):
        return re.findall(r"\{.*?\}|\[.*?\]|[^,\s]+", operands)

    def value(self, operand):
        return self.registers[operand] if operand in self.registers else np.uint32(int(operand, 0))

    def step(self, name, into, given):
        if name.startswith("ld.relaxed.gpu.global"):
            register, _, offset = given[0].strip("[]").partition(" + ")
            address = self.registers[register] + int(offset or 0)
            names = re.findall(r"[^,\s{}]+", into)
            assert len(names) == (4 if ".v4" in name else 1)
            size = 2 if name.endswith("b16") else 4
            for n, register in enumerate(names):
                self.registers[register] = self.memory[address + size * n]
            return
        if given[0].startswith("{"):
            low, high = map(self.value, re.findall(r"[^,\s{}]+", given[0]))
            self.registers[into] = low | high << 16
            return
        values = [self.value(operand) for operand in given]
        if name == "mov.b32":
            self.registers[into] = values[0]
        elif name == "lop3.b32":
            assert values[3] == 0xBE
            self.registers[into] = (values[0] ^ values[1]) | values[2]
        elif name in BINARY:
            self.registers[into] = BINARY[name](*values)
        elif name == "setp.ne.b32":
            self.registers[into] = values[0] != values[1]
        elif name == "add.f32":
            a, b = (value.view(np.float32) for value in values)
            self.registers[into] = np.float32(a + b).view(np.uint32)
        else:
            raise AssertionError(f"unknown: {name}")


def tagged(numbers, tag):
    return (np.asarray(numbers, np.float32).view(np.uint32) & ~np.uint32(3)) | np.uint32(tag)


def text(function, *args):
    """What a constexpr_function makes of numbers."""
    made = function(*args)
    return getattr(made, "value", made)


@pytest.mark.parametrize("count", [9, 16, 64])
def test_the_ptx_of_a_sum_waits_for_every_tag_and_adds_in_order(count):
    numbers = np.random.default_rng(0).standard_normal(count)
    words, ptx = tagged(numbers, 2), text(_sum, count, 512)
    stale = [dict(zip(range(64, 64 + 512 * count, 512), tagged(numbers, 2), strict=True))]
    for n in range(count):
        stale.append(stale[0] | {64 + 512 * n: tagged([7.0], n % 2)[0]})
    run = type("Run", (PTX,), {"later": iter([*stale[2:], stale[0]])})
    done = run(ptx, {"$1": 64, "$2": np.uint32(2)}, stale[1])
    assert done.turns == count + 1
    parts = [np.float32(0)] * 4
    for n, x in enumerate(words.view(np.float32)):
        parts[n % 4] = x if n < 4 else np.float32(parts[n % 4] + x)
    expected = np.float32(parts[0] + parts[1]) + np.float32(parts[2] + parts[3])
    assert done.registers["$0"].view(np.float32) == np.float32(expected)


# Numbers up to 1 in size, and what stands for a NaN, of either sign
@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        (tl.float16, {0x0000: 0x0000, 0xBC00: 0xBC00, 0x3C00: 0x3C00, 0x3FFF: 0x7FFF}),
        (tl.bfloat16, {0x8000: 0x8000, 0xBF80: 0xBF80, 0x3F80: 0x3F80, 0xBF81: 0xFFFF}),
    ],
)
@pytest.mark.parametrize("count", [4, 8])
def test_the_ptx_of_four_numbers_waits_for_every_tag_and_takes_them_away(count, dtype, numbers):
    addresses = [128 * j + 2 * q for j in range(count) for q in range(4)]
    written = dict(zip(addresses, list(numbers) * count, strict=True))
    good = {address: np.uint32(x | 0x4000) for address, x in written.items()}
    stale = [good | {address: np.uint32(written[address])} for address in addresses]
    pointers = {f"${2 * count + j}": 128 * j for j in range(count)}
    run = type("Run", (PTX,), {"later": iter([*stale[1:], good])})
    given = pointers | {f"${3 * count}": np.uint32(0x40004000)}
    done = run(text(_read_four, count, dtype), given, stale[0])
    assert done.turns == 4 * count + 1
    for j, pair in product(range(count), range(2)):
        low, high = (numbers[written[128 * j + 4 * pair + n]] for n in (0, 2))
        assert done.registers[f"${pair * count + j}"] == low | high << 16
