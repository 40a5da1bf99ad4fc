"""What stages hand each other (kernels/rings.py) in every order that two of them can take.

A search through all states of a model. Its threads write and read words as the kernels do; what
else orders them, a warp or a cache, is left out, so memory is weaker than any card's: a read finds
any word that was written to its place, but none older than what its thread found there before.
"""

from dataclasses import dataclass, replace

import pytest

from lstm.kernels import rings
from tests.kernels.states import Wrong, changed, search


class Step(int):
    """A number as `tag` asks it."""

    def __and__(self, other):
        return Step(int(self) & other)

    __hash__ = int.__hash__

    def __eq__(self, other):
        return Flag(int(self) == other)


class Flag(int):
    def to(self, dtype):
        return int(self)


def tag(step, slots):
    return getattr(rings.tag, "fn", rings.tag)(Step(step), slots)


@dataclass(frozen=True)
class Protocol:
    """The exchange, or a wrong one.

    tag(step, slots): of a step's words; needed(step, slots): what a stage's `ask` must have said
    before it writes a step; met: whether a stage says how many steps it has taken only after all
    its threads have; emptied: whether a ring is, at first; else it has what was there before.
    """

    tag: object = tag
    needed: object = lambda step, slots: step + 2 - slots
    begins_at: int = 1
    met: bool = True
    emptied: bool = True


@dataclass(frozen=True)
class State:
    """empty: the reader's threads that have written their zeros; lost: of each writer's thread, its
    words below which they overwrote; said: by the reader; taken: steps, by each of its threads;
    written, room: of each of the writer's, steps, and what it was told last.
    """

    empty: tuple
    lost: tuple
    said: int
    taken: tuple
    written: tuple
    room: tuple


class Model:
    """A stage that writes, one that reads, each of so many threads. Each thread of the reader reads
    a word of each thread of the writer, in every step.
    """

    def __init__(self, threads, steps, slots, protocol):
        self.threads, self.steps, self.slots, self.protocol = threads, steps, slots, protocol

    def start(self):
        zeros = (0,) * self.threads
        return State((not self.protocol.emptied,) * self.threads, zeros, 0, zeros, zeros, zeros)

    def finished(self, state):
        return min(state.taken) == self.steps

    def found(self, state, reader, writer):
        """Steps whose word a thread can find in place of the one it needs, oldest first; None: what
        was there at first.
        """
        needed = state.taken[reader]
        at = range(needed % self.slots, state.written[writer], self.slots)
        there = [t for t in at if t >= max(needed - self.slots, state.lost[writer])]
        return there if needed >= self.slots else [None, *there]

    def reads(self, state, reader):
        """Whether a thread can find all words of its next step. Raises: Wrong, if it can take other
        words for them.
        """
        needed, ready = state.taken[reader], True
        for writer in range(self.threads):
            there = self.found(state, reader, writer)
            for t in there:
                if t is None:
                    its_tag = 0 if self.protocol.emptied else 1
                else:
                    its_tag = self.protocol.tag(t, self.slots)
                if t is not None and t > needed:
                    raise Wrong(f"step {needed} has been overwritten by step {t}")
                if t != needed and its_tag == self.protocol.tag(needed, self.slots):
                    raise Wrong(f"step {needed} takes the word of step {t} for its own")
            ready = ready and needed in there
        return ready

    def next(self, state):
        """All states one access further."""
        for n in range(self.threads):
            if not state.empty[n]:
                lost = changed(state.lost, n, state.written[n])
                yield replace(state, empty=changed(state.empty, n, True), lost=lost)
            # All have met between two steps, and before the first.
            taken = state.taken[n]
            turn = all(state.empty) and taken < self.steps and taken <= min(state.taken)
            if turn and self.reads(state, n):
                yield replace(state, taken=changed(state.taken, n, taken + 1))
            written = state.written[n]
            needed = max(self.protocol.needed(written, self.slots), self.protocol.begins_at)
            if written < self.steps and state.room[n] >= needed:
                yield replace(state, written=changed(state.written, n, written + 1))
            # What it is told may be old, but not older than before.
            for room in range(state.room[n] + 1, state.said + 1):
                yield replace(state, room=changed(state.room, n, room))
        taken = min(state.taken) if self.protocol.met else state.taken[0]
        if all(state.empty) and taken + 1 > state.said:
            yield replace(state, said=taken + 1)


@pytest.mark.parametrize(("threads", "steps", "slots"), [(1, 9, 2), (1, 13, 4), (2, 5, 2)])
def test_every_step_takes_its_own_words_in_every_order(threads, steps, slots):
    assert search(Model(threads, steps, slots, Protocol())) > 50


WRONG = {
    "one_slot_less": (dict(needed=lambda step, slots: step + 1 - slots), "has been overwritten"),
    "one_tag": (dict(tag=lambda step, slots: 1), "takes the word of step"),
    "the_tag_of_zeros": (dict(tag=lambda step, slots: step // slots % 2), "the word of step None"),
    "a_tag_for_each_step": (dict(tag=lambda step, slots: 1 - step % 2), "takes the word of step"),
    "said_before_all_have": (dict(met=False), "has been overwritten"),
    "not_emptied": (dict(emptied=False), "takes the word of step None"),
    "written_before_it_is_empty": (dict(begins_at=0), "nobody can go on"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_other_protocols_is_found(change, reason):
    with pytest.raises(Wrong, match=reason):
        search(Model(2, 5, 2, Protocol(**change)))


def test_a_ring_of_the_kernels_has_a_power_of_two_of_slots():
    assert rings.SLOTS & (rings.SLOTS - 1) == 0
    tags = [tag(step, rings.SLOTS) for step in range(4 * rings.SLOTS)]
    assert tags == 2 * (rings.SLOTS * [1] + rings.SLOTS * [0])
