"""Has the interpreter run all programs of a launch side by side, so that slices can meet."""

import inspect
import random
import threading

import triton.language as tl

from lstm.kernels import sliced_backward, sliced_forward, words


class Stuck(Exception):
    """All programs wait for a word that nobody will write."""


class Programs:
    """The programs of one launch, each a thread of which one runs at a time.

    They change wherever one is about to read or write words, in random order.
    """

    def __init__(self, builder, count, rng):
        self.builder, self.count, self.rng = builder, count, rng
        self.threads, self.error = [], None
        self.main = threading.Semaphore(0)

    def add(self, call):
        """One more program; with the last all of them run."""
        program = Program(self, call, self.builder.grid_idx)
        self.threads.append(program)
        if len(self.threads) == self.count:
            self.run()

    def run(self):
        alive = list(self.threads)
        waits = 0
        while alive:
            program = self.rng.choice(alive)
            self.builder.grid_idx = program.grid_idx
            program.go()
            if self.error:
                raise self.error
            waits = waits + 1 if program.waits else 0
            # In so many draws everybody has had a turn.
            if waits > 100 * self.count:
                raise Stuck
            alive = [program for program in alive if not program.done]


class Program:
    """One program, which runs in `go` until it lets others go on."""

    def __init__(self, programs, call, grid_idx):
        self.programs, self.grid_idx = programs, grid_idx
        self.turn, self.done, self.waits = threading.Semaphore(0), False, False
        self.thread = threading.Thread(target=self.main, args=(call,), daemon=True)
        self.thread.program = self
        self.thread.start()

    def main(self, call):
        self.turn.acquire()
        try:
            call()
        except Exception as error:
            self.programs.error = error
        self.done, self.waits = True, False
        self.programs.main.release()

    def go(self):
        self.turn.release()
        self.programs.main.acquire()

    def let_others(self, waits):
        self.waits = waits
        self.programs.main.release()
        self.turn.acquire()


def side_by_side(monkeypatch, seed=0):
    """From here on the programs of each launch run side by side."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    rng, init = random.Random(seed), GridExecutor.__init__
    launch = []

    def __init__(self, fn, arg_names, grid, *args, **kwargs):
        def collected(**arguments):
            if not launch:
                x, y, z = interpreter_builder.grid_dim
                launch.append(Programs(interpreter_builder, x * y * z, rng))
            programs = launch[0]
            if len(programs.threads) + 1 == programs.count:
                launch.clear()
            programs.add(lambda: fn(**arguments))

        init(self, fn, arg_names, grid, *args, **kwargs)
        collected.__signature__ = inspect.signature(fn)
        self.fn = collected

    def spin(pointers, t):
        program = threading.current_thread().program
        program.let_others(waits=False)
        while _stale(pointers, t):
            program.let_others(waits=True)

    def after_others(write):
        def written(*args):
            threading.current_thread().program.let_others(waits=False)
            write(*args)

        return written

    monkeypatch.setattr(GridExecutor, "__init__", __init__)
    monkeypatch.setattr(words, "_spin", spin)
    for kernel, name in ((sliced_forward, "write_h"), (sliced_backward, "write_words")):
        monkeypatch.setattr(kernel, name, after_others(getattr(words, name)))


def _stale(pointers, t):
    """Whether a word is not the one that step t reads."""
    return bool(words._stale(tl.load(pointers, volatile=True), t).handle.data.any())
