"""MNIST, read row by row by a two-layer LSTM: one whole training on our kernels, on cuDNN, or both.

    python bench/train_mnist.py --impl triton     # lstm.LSTM; with no GPU in Triton's interpreter
    python bench/train_mnist.py --impl cudnn      # torch.nn.LSTM, which is cuDNN on an NVIDIA GPU
    python bench/train_mnist.py --compare         # both, from the same weights, on the same batches
    torchrun --standalone --nproc-per-node 2 bench/train_mnist.py     # a batch on two GPUs, or CPUs

On a GPU the data is on the card before the clock starts, and each step is one CUDA graph, with
several processes one launch after the other. An epoch is the full batches of a fresh permutation: a
ragged rest is left out, so that all steps have one shape. The exit status is 1 if the loss did not
fall.
"""

import argparse
import copy
import math
import os
import sys
from pathlib import Path
from statistics import fmean

# Before NumPy loads. The interpreter's products are too small to share: on two busy cores a step is
# three times as fast with one thread in NumPy and in torch as with two.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from torch import nn
from tqdm import tqdm

# Last in the list: it decides where `bench` comes from, and never where `lstm` does.
sys.path.append(str(Path(__file__).parents[1]))

from bench import distributed, mnist, record
from bench.training import Training

# Images of either set. About a minute of Triton's interpreter on two cores.
INTERPRETER_IMAGES = 1_000
# Test images at a time: in the interpreter 128 take three times as long in all, 4,000 no less.
TEST_BATCH = 1_000

# Adam at 0.01 overshoots within ten steps and amplifies rounding there: noise of 1.3e-4 in the
# gradients, what TF32 makes, moves nn.LSTM's own loss by up to 2e-1 with seed 1, and by 3e-3 with
# this one. Seeds 0 to 7 end between 96.0 and 98.0 %, this one at 97.6 (nn.LSTM, one CPU thread).
SEED = 7


class Classifier(nn.Module):
    """The 28 rows of an image are the sequence; the output after the last one decides the digit.

    Shapes: images (B, 28, 28) to logits (B, 10).
    """

    def __init__(self, lstm, hidden_size, num_layers):
        super().__init__()
        self.lstm = lstm(28, hidden_size, num_layers, batch_first=True)
        self.linear = nn.Linear(hidden_size, 10)

    def forward(self, images):
        output, _ = self.lstm(images)
        return self.linear(output[:, -1])


def lstm_class(impl):
    """The class behind a name; ours comes late, since importing it reads TRITON_INTERPRET."""
    if impl == "cudnn":
        return nn.LSTM
    from lstm import LSTM

    return LSTM


def describe(impl, training):
    """What a name stands for on this machine, in words, and the path that its calls take."""
    if impl == "triton":
        plan = training.model.lstm.explain(training.images[: len(training.batch)])
        return {"impl": impl, "what": f"lstm.LSTM, {plan.reason}", "path": plan.path}
    if not training.images.is_cuda:
        what = "PyTorch's CPU kernels, not cuDNN"
    elif torch.version.hip:
        what = "MIOpen, not cuDNN"
    elif not torch.backends.cudnn.is_available():
        what = "PyTorch's CUDA kernels, not cuDNN"
    else:
        what = f"cuDNN {torch.backends.cudnn.version()}"
    return {"impl": impl, "what": f"torch.nn.LSTM, {what}", "path": "torch"}


def permutations(images, args):
    """The batches as indices, (epochs, steps, batch size); drawn on the CPU, one order per seed."""
    steps = images // args.batch_size
    generator = torch.Generator().manual_seed(args.seed)
    epochs = [torch.randperm(images, generator=generator) for _ in range(args.epochs)]
    order = torch.stack(epochs)[:, : steps * args.batch_size]
    return order.reshape(args.epochs, steps, args.batch_size).to(args.device)


def train(trainings, order, test_set):
    """Train each of {name: Training} in turns of 100 steps; returns the accuracies per epoch.

    In turns, so that a machine that warms up or is shared treats both alike.
    """
    accuracies = {impl: [] for impl in trainings}
    epochs, steps, _ = order.shape
    # None means a bar on a terminal and nothing in a file or pipe.
    hidden = None if distributed.rank() == 0 else True
    with tqdm(total=epochs * steps * len(trainings), disable=hidden, leave=False) as bar:
        for training in trainings.values():
            training.first_call(order[0, 0])
            bar.update()
        for epoch in range(epochs):
            for begin in range(0, steps, 100):
                end = min(begin + 100, steps)
                # The very first step has had its call.
                first = 1 if epoch == begin == 0 else begin
                for training in trainings.values():
                    training.run(order[epoch, first:end], bar.update)
                losses = {
                    impl: f"{distributed.mean(training.losses[-1]).item():.4f}"
                    for impl, training in trainings.items()
                }
                say(f"epoch: {epoch + 1}/{epochs}, step: {end}/{steps}, loss: {join(losses)}")
            for impl, training in trainings.items():
                accuracies[impl].append(accuracy(training.model, *test_set))
    return accuracies


@torch.no_grad()
def accuracy(model, images, labels):
    """The percentage of all processes' `images` that `model` reads as `labels` say."""
    pieces = zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)
    right = sum((model(image).argmax(1) == label).sum().item() for image, label in pieces)
    counts = torch.tensor([right, len(labels)], device=images.device)
    right, count = distributed.total(counts).tolist()
    return 100 * right / count


def result(impl, training, accuracies):
    """One run for a record; a loss that is not finite is None there, and `failed` is the reason."""
    losses = distributed.mean(torch.stack(training.losses)).tolist()
    run = {
        **describe(impl, training),
        "first_call_s": round(training.first_call_s, 4),
        "time_s": round(training.time_s, 4),
        "accuracy": accuracies,
        "losses": [round(loss, 6) if math.isfinite(loss) else None for loss in losses],
    }
    return run if fell(losses) else {**run, "failed": "the loss did not fall"}


def fell(losses):
    """Whether the last tenth of the losses is on average 1 % below the first; NaN never is.

    1 %, because batches differ by about that much while nothing is learnt.
    """
    tenth = max(1, len(losses) // 10)
    return fmean(losses[-tenth:]) < 0.99 * fmean(losses[:tenth])


def report(runs, interpreter):
    """Print accuracy and time, and for two runs how far they are apart."""
    total = {run["impl"]: f"{run['first_call_s'] + run['time_s']:.2f} s" for run in runs}
    rest = {run["impl"]: f"{run['time_s']:.2f} s" for run in runs}
    say(f"Time: {join(total)}; without the first call: {join(rest)}")
    if len(runs) == 2:
        ours, peer = runs
        pairs = zip(ours["losses"][:10], peer["losses"][:10], strict=True)
        apart = max(math.inf if None in pair else abs(pair[0] - pair[1]) for pair in pairs)
        say(f"Largest loss difference in the first 10 steps: {apart:.1e}")
        if not interpreter:
            say(f"Speed-up without the first call: {peer['time_s'] / ours['time_s']:.2f}")
    final = {run["impl"]: f"{run['accuracy'][-1]:.2f}%" for run in runs}
    say(f"Accuracy: {join(final)}")


def join(values):
    """One run's value alone, two runs' values with their names."""
    if len(values) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({impl})" for impl, value in values.items())


def say(line):
    """Print a line at once, above the progress bar if there is one; of several processes once."""
    if distributed.rank() > 0:
        return
    with tqdm.external_write_mode():
        print(line, flush=True)


def parse(arguments):
    """The command line, with what depends on the machine filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--impl", choices=["triton", "cudnn"], default="triton", help="default: triton")
    add("--compare", action="store_true", help="both implementations, side by side")
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=100)
    add("--lr", type=float, default=0.01, help="Adam's learning rate")
    add("--hidden", type=int, default=128, help="hidden size of the LSTM")
    add("--layers", type=int, default=2, help="layers of the LSTM")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the whole model; Adam keeps float32 weights",
    )
    add("--seed", type=int, default=SEED, help="of the weights and the order of the images")
    add("--device", help="default: cuda if there is a GPU, else cpu")
    add("--train-images", type=int, metavar="N", help="train on the first N of 60000")
    add("--test-images", type=int, metavar="N", help="test on the first N of 10000")
    add("--data-root", metavar="DIR", help="a torchvision root instead of bench/data")
    add("--json", type=record.writable, metavar="FILE", help="write a record of the run")
    add("--plot", type=figure, metavar="FILE", help="draw loss against step: .svg, .png or .pdf")
    add("--no-cuda-graph", action="store_true", help="launch each kernel of a step by itself")
    args = parser.parse_args(arguments)

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU")
    processes, (local_rank, local_processes) = distributed.processes(), distributed.local()
    if device.type == "cuda" and processes > 1:
        if device.index is not None:
            parser.error(f"--device {args.device}: of several processes each has its own GPU")
        if local_processes > torch.cuda.device_count():
            parser.error(
                f"{local_processes} processes need as many GPUs, torch sees "
                f"{torch.cuda.device_count()}; --device cpu needs none"
            )
        device = torch.device("cuda", local_rank)
    args.device = torch.device("cuda", device.index or 0) if device.type == "cuda" else device
    # Gradients travel between processes in the middle of a step.
    args.cuda_graph = device.type == "cuda" and not args.no_cuda_graph and processes == 1
    args.dtype = getattr(torch, args.dtype)
    args.impls = ["triton", "cudnn"] if args.compare else [args.impl]
    args.interpreter = device.type == "cpu" and "triton" in args.impls
    if args.train_images is None:
        args.train_images = INTERPRETER_IMAGES if args.interpreter else 60_000
    if args.test_images is None:
        args.test_images = INTERPRETER_IMAGES if args.interpreter else 10_000
    if min(args.epochs, args.batch_size, args.hidden, args.layers) < 1:
        parser.error("--epochs, --batch-size, --hidden and --layers must be at least 1")
    if args.batch_size % processes:
        parser.error(f"--batch-size must be divisible by the number of processes, {processes}")
    if not args.batch_size <= args.train_images <= 60_000:
        parser.error("--train-images must be at least --batch-size and at most 60000")
    if not processes <= args.test_images <= 10_000:
        parser.error(f"--test-images must be at least {processes} and at most 10000")
    if args.train_images // args.batch_size * args.epochs < 2:
        parser.error("one step cannot show a falling loss: raise --train-images or --epochs")
    return args


def figure(text):
    """An argument that names a figure to write later."""
    path = record.writable(text)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} is no .svg, .png or .pdf")
    return path


def case(args):
    """What the runs share, for the record; `processes` only where there are several."""
    processes = distributed.processes()
    return {
        "T": 28,
        "B": args.batch_size,
        "I": 28,
        "H": args.hidden,
        "num_layers": args.layers,
        "dtype": str(args.dtype).removeprefix("torch."),
        "fp32_precision": torch.backends.cudnn.rnn.fp32_precision,
        "mode": "training",
        "epochs": args.epochs,
        "lr": args.lr,
        "seed": args.seed,
        "train_images": args.train_images,
        "test_images": args.test_images,
        "cuda_graph": args.cuda_graph,
        "interpreter": args.interpreter,
        **({"processes": processes} if processes > 1 else {}),
    }


def compare(args, images, labels, test_set):
    """Train with each implementation, all from the same weights; returns their runs."""
    torch.manual_seed(args.seed)
    models = [Classifier(lstm_class(impl), args.hidden, args.layers) for impl in args.impls]
    initial = copy.deepcopy(models[0].state_dict())
    batch_size = args.batch_size // distributed.processes()
    trainings = {}
    for impl, model in zip(args.impls, models, strict=True):
        model.load_state_dict(initial)
        model.to(args.device)
        options = batch_size, args.lr, args.dtype, args.cuda_graph
        trainings[impl] = Training(model, images, labels, *options)
        say("{impl}: {what}, path {path}".format(**describe(impl, trainings[impl])))
    order = distributed.part(permutations(len(images), args), dim=-1)
    accuracies = train(trainings, order, tuple(map(distributed.part, test_set)))
    return [result(impl, trainings[impl], accuracies[impl]) for impl in args.impls]


def first(name, n, images, labels, args):
    """The first n images and labels of a set, where they are needed."""
    if n < len(images):
        total = len(images)
        say(f"The first {n:,} of {total:,} {name} images; --{name}-images {total} takes them all.")
    return images[:n].to(args.device, args.dtype), labels[:n].to(args.device)


def main(arguments=None):
    """Load, train, report and record; exits with the reason if the data or the loss is no good."""
    args = parse(arguments)
    if args.interpreter:
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)
        say("On the CPU Triton's interpreter runs the kernels (TRITON_INTERPRET=1), and slowly.")
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    if args.plot:
        # Here, so that a missing matplotlib is known before the training.
        from bench.plot import draw_losses
    try:
        (images, labels), (test_images, test_labels) = mnist.load(args.data_root)
    except mnist.DataError as error:
        sys.exit(f"train_mnist: {error}")
    images, labels = first("train", args.train_images, images, labels, args)
    test_set = first("test", args.test_images, test_images, test_labels, args)

    with distributed.group(args.device):
        runs = compare(args, images, labels, test_set)
        report(runs, args.interpreter)
        if distributed.rank() == 0:
            made = record.new_record("train_mnist", args.device, case(args), runs)
            try:
                if args.json:
                    record.write(args.json, made)
                if args.plot:
                    draw_losses(args.plot, made)
            except OSError as error:
                sys.exit(f"train_mnist: {error}")
        failures = [f"{run['impl']}: {run['failed']}" for run in runs if "failed" in run]
        if failures:
            distributed.leave(f"train_mnist: {'; '.join(failures)}")


if __name__ == "__main__":
    main()
