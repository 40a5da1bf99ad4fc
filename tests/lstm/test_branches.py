"""Backward as a CUDA graph captures it: the same results, and streams wait for what they read.

Without a GPU: streams are stand-ins that count what they have been given, and what of others they
have waited for.
"""

from collections import Counter
from contextlib import contextmanager
from itertools import count

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstm import LSTM, branches, layer, plain
from lstm.kernels import backward, joint_backward
from tests.lstm.pairs import assert_equal, make_input

LAUNCHERS = [(backward, "lstm_backward"), (joint_backward, "lstm_joint_backward")]


def storages(values):
    return {x.untyped_storage()._cdata: x for x in tree_leaves(values) if torch.is_tensor(x)}


class Stream:
    """What it has been given, and of every stream how much has run before what comes next."""

    def __init__(self, machine):
        self.machine, self.seen = machine, Counter()

    def wait_stream(self, other):
        self.seen |= other.seen
        self.machine.check_memory(other)


class Machine(TorchDispatchMode):
    """Follows which stream writes each tensor, and fails where another reads it without waiting, or
    where it is freed while another may still read it.
    """

    def __init__(self):
        super().__init__()
        self.current = self.active = Stream(self)
        self.others = [Stream(self) for _ in range(branches.STREAMS)]
        self.written, self.read, self.moment, self.used = {}, [], count(1), Counter()

    @contextmanager
    def stream(self, stream):
        self.active, before = stream, self.active
        yield
        self.active = before

    def check_memory(self, stream):
        """Nothing that this stream read of others' memory is freed until somebody waits for it."""
        assert not [x for reader, x in self.read if reader is stream and x.expired()]
        self.read = [(reader, x) for reader, x in self.read if reader is not stream]

    def runs(self, given, results):
        """Something on the active stream that reads what it is given and writes its results."""
        stream = self.active
        for memory, x in storages(given).items():
            writer, moment = self.written.get(memory, (stream, 0))
            assert stream.seen[writer] >= moment, "read before it is written"
            if writer is not stream:
                self.read.append((stream, StorageWeakRef(x.untyped_storage())))
        stream.seen[stream] = next(self.moment)
        self.used[stream] += 1
        for memory in results:
            self.written[memory] = stream, stream.seen[stream]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        arguments = function._schema.arguments
        named = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        changed = [
            named.get(argument.name)
            for argument in arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        # A view is of the memory it is given, and writes nothing.
        made = storages(results).keys() - storages((args, kwargs)).keys()
        self.runs((args, kwargs), made | storages(changed).keys())
        return results


@pytest.fixture
def machine(monkeypatch):
    made = Machine()

    def launching(launch):
        def call(*args):
            launch(*args)
            made.runs(args, storages(args))

        return call

    for module, name in LAUNCHERS:
        monkeypatch.setattr(module, name, launching(getattr(module, name)))
    for module in (layer, plain):
        monkeypatch.setattr(module, "captured", lambda x: True)
    monkeypatch.setattr(branches, "_streams", lambda device: made.others)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    return made


CASES = {
    "one layer": dict(T=3),
    "plain": dict(num_layers=3, T=3),
    "plain, at once": dict(num_layers=3, T=8),
    "states": dict(num_layers=2, T=3, hx=True),
    "states, at once": dict(num_layers=2, T=8, hx=True),
    "bidirectional": dict(num_layers=2, T=3, bidirectional=True),
    "projected": dict(num_layers=2, T=3, proj_size=3, hx=True),
    "dropout": dict(num_layers=2, T=3, dropout=0.5),
    "resets": dict(num_layers=2, T=3, resets=True, hx=True),
    "packed": dict(num_layers=2, T=3, packed=True, bidirectional=True),
    "slices": dict(num_layers=2, T=3, hidden_size=144),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="streams are a CPU's stand-ins here")
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_stream_waits_for_what_it_reads(options, machine, monkeypatch):
    options = dict(options)
    T, hx, packed = options.pop("T"), options.pop("hx", False), options.pop("packed", False)
    resets = torch.rand(T, 4) < 0.5 if options.pop("resets", False) else None
    sizes = dict(input_size=5, hidden_size=16) | options
    module, x = LSTM(**sizes), make_input(T, 4, 5)
    D, P = 1 + module.bidirectional, module.proj_size or module.hidden_size
    states = [make_input(module.num_layers * D, 4, n) for n in (P, module.hidden_size)]
    fed = [x, *states] if hx else [x]
    for tensor in fed:
        tensor.requires_grad_()
    hx = tuple(states) if hx else None
    if packed:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, [3, 3, 2, 1])
    output, _ = module(x, hx, **({} if resets is None else {"resets": resets}))
    output = output.data if packed else output
    given, grad = [*fed, *module.parameters()], torch.ones_like(output)
    with machine:
        grads = torch.autograd.grad(output, given, grad, retain_graph=True)
        # Whoever asked for the gradients reads them on the stream it asked on.
        machine.runs(grads, {})
    assert all(machine.used[stream] for stream in (machine.current, *machine.others[:2]))
    assert not [stream for stream, _ in machine.read if stream is not machine.current]
    # Not before, or what is made once and kept would be there.
    machine.used.clear()
    with monkeypatch.context() as patch, machine:
        patch.setattr(layer, "captured", lambda x: False)
        patch.setattr(plain, "captured", lambda x: False)
        expected = torch.autograd.grad(output, given, grad)
    assert machine.used.keys() == {machine.current}
    assert_equal(grads, expected)
