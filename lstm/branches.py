"""Gradients of weights beside the rest of a backward, in a CUDA graph.

Nobody waits for a weight's gradient before a backward ends: it takes no more than the gates'
gradients of its layer, and the layer below goes on meanwhile. What a graph has captured on
different streams is such branches, and they run at the same time. Launched one by one, a change of
streams costs the host more time than a small product takes the GPU; so only graphs have branches.
"""

from functools import cache

import torch

# Two layers have four products, which are small; more or larger ones fill a card (not measured).
STREAMS = 4


def captured(x):
    """Whether this becomes part of a CUDA graph, which may run more than once."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@cache
def _streams(device):
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]


class Branches:
    """A context in which `run` runs on other streams, and at whose end the current one waits for
    them. Args: device: a GPU.
    """

    def __init__(self, device):
        self.current, self.streams = torch.cuda.current_stream(device), _streams(device)
        self.kept = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in self.streams[: len(self.kept)]:
            self.current.wait_stream(stream)
        self.kept.clear()

    def run(self, function, *args):
        """function(*args) on one of the streams, after what the current one was given before."""
        stream = self.streams[len(self.kept) % STREAMS]
        # Freed, the memory of these could be written to before the stream has read it.
        self.kept.append(args)
        stream.wait_stream(self.current)
        with torch.cuda.stream(stream):
            return function(*args)

    def mm(self, x, y):
        """`run` of the product of two matrices."""
        return self.run(torch.mm, x, y)
