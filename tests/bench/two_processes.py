"""What torchrun starts for test_distributed.py: each process leaves what it found in a folder.

torchrun --standalone --nproc-per-node 2 tests/bench/two_processes.py FOLDER DEVICE
torchrun --standalone --nproc-per-node 2 tests/bench/two_processes.py FOLDER DEVICE fail
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parents[2]))

from bench import distributed, train_mnist
from bench.training import Training

SMALL = ["--impl", "cudnn", "--hidden", "16", "--batch-size", "30", "--train-images", "240"]


def train(device, *options):
    """The main job. Returns: its exit status and, in the end, the weights that Adam keeps."""
    weights, result = [], train_mnist.result

    def keeping(impl, training, accuracies):
        weights.extend(weight.cpu() for weight in training.weights)
        return result(impl, training, accuracies)

    train_mnist.result = keeping
    try:
        train_mnist.main(["--device", device, *SMALL, *options])
    except SystemExit as exit:
        return {"status": exit.code, "weights": weights}
    finally:
        train_mnist.result = result
    return {"status": 0, "weights": weights}


def gradients(device):
    """Gradients of lstm.LSTM over the whole batch, and of the same in DDP over a half each."""
    from lstm import LSTM

    torch.manual_seed(0)
    module = LSTM(5, 16, 2)
    module, input, upstream = (
        x.to(device) for x in (module, torch.randn(7, 6, 5), torch.randn(7, 6, 16))
    )

    def of(call, input, upstream):
        module.zero_grad()
        (call(input)[0] * upstream).mean().backward()
        return [parameter.grad.cpu() for parameter in module.parameters()]

    whole = of(module, input, upstream)
    halves = distributed.part(input, 1), distributed.part(upstream, 1)
    path = module.explain(halves[0]).path
    return {"path": path, "whole": whole, "shared": of(DistributedDataParallel(module), *halves)}


def fail(device):
    """The main job, and in its third step the second process raises."""
    step = Training.step

    def failing(training):
        if distributed.rank() == 1 and len(training.losses) == 2:
            raise RuntimeError("the second process has had enough")
        return step(training)

    Training.step = failing
    train_mnist.main(["--device", device, *SMALL])


def main(folder, device, *what):
    if what:
        fail(device)
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        card = torch.device("cpu")
    else:
        card = torch.device("cuda", distributed.local()[0])
        torch.cuda.set_device(card)
    group = distributed.group
    # One for all: a second one may find the addresses of the first in torchrun's store.
    distributed.group = lambda device: nullcontext()
    with group(card):
        options = ["--dtype", "bfloat16", "--json", f"{folder}/bfloat16.json"]
        found = {
            "bfloat16": train(device, *options),
            # Two epochs of one batch, so that all losses are one.
            "no fall": train(device, "--lr", "0", "--train-images", "30"),
            "gradients": gradients(card),
        }
    torch.save(found, f"{folder}/{distributed.rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
