"""One training by several processes: each has the whole model and its part of every batch.

    torchrun --standalone --nproc-per-node 2 bench/train_mnist.py

torchrun starts the processes, and ends the others when one fails; DistributedDataParallel averages
their gradients. Parts of a batch are equally large, so that the mean over processes is the mean of
the whole batch. Without torchrun, or with one process, nothing here does anything.
"""

import os
import sys
from contextlib import contextmanager

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def processes():
    """How many processes train, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if _torchrun() else 1


def rank():
    """Which of all processes this is, from 0."""
    return int(os.environ["RANK"]) if _torchrun() else 0


def local():
    """Which of the processes on this machine this is, from 0, and how many they are."""
    if not _torchrun():
        return 0, 1
    return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])


def _torchrun():
    # Clusters set WORLD_SIZE for programs of one process too.
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def group(device):
    """The processes know each other inside: nccl between GPUs, gloo between CPUs."""
    if processes() == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield
    finally:
        dist.destroy_process_group()


def parallel(model):
    """`model` with gradients that are the mean over all processes."""
    return model if processes() == 1 else DistributedDataParallel(model)


def part(x, dim=0):
    """What this process has of `x`; sizes differ by one where they must."""
    return x.tensor_split(processes(), dim)[rank()]


def total(x):
    """The sum of all processes' `x`, the same in each."""
    if processes() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def mean(x):
    """The mean of all processes' `x`, the same in each."""
    return total(x) / processes()


def leave(reason):
    """sys.exit(reason), in all processes at once; the first alone prints it."""
    if processes() > 1:
        if rank() == 0:
            print(reason, file=sys.stderr, flush=True)
        # torchrun ends the others as soon as one has left, and the reason would be lost.
        dist.barrier()
        reason = 1
    sys.exit(reason)
