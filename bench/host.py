"""Host time of a training step: what Python and PyTorch take around the kernels, which are stubs.

    python -m bench.host                    # prints microseconds
    python -m bench.host --json host.json   # and leaves a record

A small LSTM is bound by it. T=16, of which two layers are one launch, B=1 and H=8, so that
arithmetic is nothing; the input needs no gradient, and `.backward(grad)` finds no gradients in the
parameters. On a CPU, in Triton's interpreter, so neither a launch of a kernel nor CUDA's dispatch
is in it. The least of several repeats: whatever else runs only adds.
"""

import argparse
import os
import time

# Before Triton is imported, which reads it once.
os.environ["TRITON_INTERPRET"] = "1"

import torch

from bench import record

LAYERS = (1, 2, 4)
REPEATS = 9


def stub_kernels():
    """From here on launches do nothing."""
    from lstm.kernels import backward, forward, joint_backward, joint_forward

    forward.lstm_forward = backward.lstm_backward = lambda *_: None
    joint_forward.lstm_joint_forward = joint_backward.lstm_joint_backward = lambda *_: None


def microseconds(function, steps):
    """Of one call, the least mean of REPEATS times so many."""
    means = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(steps):
            function()
        means.append((time.perf_counter() - begin) / steps)
    return round(1e6 * min(means), 1)


def measure(layers, steps):
    """A run for forward without gradients and one for a training step, both of a module."""
    from lstm import LSTM

    module, x = LSTM(8, 8, layers), torch.randn(16, 1, 8)
    parameters, grad = list(module.parameters()), torch.randn(16, 1, 8)

    def training_step():
        output, _ = module(x)
        output.backward(grad)
        for parameter in parameters:
            parameter.grad = None

    with torch.no_grad():
        inference = microseconds(lambda: module(x), steps)
    return {
        "layers": layers,
        "inference_us": inference,
        "training_step_us": microseconds(training_step, steps),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=record.writable, help="file for a record")
    parser.add_argument("--steps", type=int, default=3000, help="of each repeat")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stub_kernels()
    runs = [measure(layers, options.steps) for layers in LAYERS]
    print("layers  inference  training step   us, kernels stubbed")
    for run in runs:
        print(f"{run['layers']:6}  {run['inference_us']:9}  {run['training_step_us']:13}")
    if options.json:
        case = {"T": 16, "B": 1, "I": 8, "H": 8, "dtype": "float32"}
        record.write(options.json, record.new_record("host", "cpu", case, runs))


if __name__ == "__main__":
    main()
