"""What is timed: cases by name, and every implementation at work on one with the same numbers.

A case is a mode of use and its sizes. Modes:

    forward             a sequence in training: what backward needs is saved
    forward+backward    the same, and all gradients, of the input too
    step                one time step of inference, its state carried in: T is 1
    cell                the same of an LSTMCell
    cell+backward       the same in training, and all gradients
    mnist step          loss, gradients and Adam on a batch of MNIST rows, as train_mnist.py has it
"""

from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench import mnist
from bench.train_mnist import SEED, Classifier
from bench.training import Training, flatten_weights
from lstm import LSTM, LSTMCell, reference
from lstm.reference import relative_error

# Far above the rounding of any dtype here: an error beyond it is no rounding, and gets no time.
WRONG = 0.05

# Multiply-adds of one call above which a CPU takes more than about a second.
CPU_WORK = 3e9


@dataclass(frozen=True)
class Case:
    """Sizes as nn.LSTM has them: T steps, B sequences, I input_size, H hidden_size."""

    mode: str
    T: int
    B: int
    I: int
    H: int
    num_layers: int = 1
    dtype: str = "float32"

    def __str__(self):
        layers = f" {self.num_layers} layers" if self.num_layers > 1 else ""
        return f"{self.mode} T{self.T} B{self.B} I{self.I} H{self.H}{layers} {self.dtype}"

    @property
    def work(self) -> float:
        """Multiply-adds of the products of one call."""
        inputs = self.I + (self.num_layers - 1) * self.H
        forward = self.T * self.B * 4 * self.H * (inputs + self.num_layers * self.H)
        return forward if self.mode in ("forward", "step", "cell") else 3 * forward

    @property
    def cell(self) -> bool:
        """Whether it is of an LSTMCell."""
        return self.mode in CELL_MODES

    def record(self) -> dict:
        """The case as a record has it, with the precision switch that float32 follows."""
        return {**asdict(self), "fp32_precision": torch.backends.cudnn.rnn.fp32_precision}


def layers(modes, sizes, dtypes, num_layers=1):
    """A case for each mode, each (T, B, H) and dtype, its input as wide as the hidden state."""
    return [
        Case(mode, T, B, H, H, num_layers, dtype)
        for (T, B, H), dtype, mode in product(sizes, dtypes, modes)
    ]


SEQUENCE = ("forward", "forward+backward")
CELL_MODES = ("cell", "cell+backward")
DTYPES = ("float32", "bfloat16", "float16")

# A line of MNIST's main job; one sequence; a long one; the sizes around cuDNN's own switches at 128
# and 192; its best shape (one layer, float16, H=768, B=16); the widest.
LAYER = [
    *(Case(mode, 28, 100, 28, 128, 1, dtype) for dtype in DTYPES[:2] for mode in SEQUENCE),
    *layers(SEQUENCE, [(28, 16, 32)], ["float32"]),
    *layers(SEQUENCE, [(128, 1, 128)], ["float32"]),
    *layers(SEQUENCE, [(1024, 64, 128), (128, 64, 192), (128, 64, 256)], ["bfloat16"]),
    *layers(SEQUENCE, [(128, 64, 512)], ["float32"]),
    *layers(SEQUENCE, [(128, 16, 768), (128, 64, 1024)], ["float16"]),
]
STEP = layers(["step"], [(1, 1, 128), (1, 64, 128)], ["float32"]) + layers(
    ["step"], [(1, 1, 512)], ["float16"]
)
CELL = layers(CELL_MODES, [(1, 1, 128), (1, 64, 128)], ["float32"]) + layers(
    CELL_MODES, [(1, 64, 512)], ["bfloat16"]
)
MODULE = [
    *(Case(mode, 28, 100, 28, 128, 2) for mode in SEQUENCE),
    *layers(SEQUENCE, [(128, 64, 64), (128, 64, 256)], ["bfloat16"], 2),
    *layers(SEQUENCE, [(128, 16, 128)], ["float32"], 4),
]
MNIST = [Case("mnist step", 28, 100, 28, 128, 2, dtype) for dtype in DTYPES]

HIDDEN, BATCHES, LENGTHS = (
    (32, 64, 128, 192, 256, 512, 768, 1024),
    (1, 16, 64, 100, 128, 256),
    (28, 128, 1024),
)
SIZES = list(product(LENGTHS, BATCHES, HIDDEN))
LAYER_GRID = layers(SEQUENCE, SIZES, DTYPES)
STEP_GRID = layers(["step"], product([1], BATCHES, HIDDEN), DTYPES)
CELL_GRID = layers(CELL_MODES, product([1], BATCHES, HIDDEN), DTYPES)
MODULE_GRID = layers(SEQUENCE, SIZES, DTYPES, 2)


SHORT = MNIST + LAYER + MODULE + STEP + CELL


def why_not(case, impl, device, kernels=True):
    """The reason why an implementation cannot, or need not, be timed on a device; None if it can.

    kernels: whether a CPU is to run the kernels, in Triton's interpreter, and not PyTorch's LSTM.
    """
    if device.type == "cpu" and not kernels:
        if case.dtype != "float32":
            return f"{case.dtype} is for a GPU"
        if case.work > CPU_WORK:
            return "too large for a CPU"
    if impl in PEERS and case.cell:
        return f"{impl} has no LSTMCell"
    if impl in PEERS and PEERS[impl].missing():
        return f"{impl} cannot be imported"
    return None


class Naive(nn.Module):
    """The plain torch loop, as a module around nn.LSTM's own parameters."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.lstm = nn.LSTM(*args, **kwargs)

    def forward(self, input, hx=None):
        """nn.LSTM's forward, time first unless batch_first."""
        h_0, c_0 = hx or (None, None)
        weights = [self.lstm._parameters[name] for name in self.lstm._flat_weights_names]
        by_layer = [weights[at : at + 4] for at in range(0, len(weights), 4)]
        if self.lstm.batch_first:
            input = input.transpose(0, 1)
        output, h_n, c_n = reference.lstm(input, h_0, c_0, by_layer)
        return output.transpose(0, 1) if self.lstm.batch_first else output, (h_n, c_n)


class NaiveCell(nn.Module):
    """The equations in plain torch, as a module around nn.LSTMCell's own parameters."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.cell = nn.LSTMCell(*args, **kwargs)

    def forward(self, input, hx):
        """nn.LSTMCell's forward, batched."""
        states = (x[None] for x in hx)
        _, h_n, c_n = reference.lstm(input[None], *states, [tuple(self.cell.parameters())])
        return h_n[0], c_n[0]


class FlashRNN:
    """FlashRNN's LSTM, one layer, as a call on nn.LSTM's parameters.

    Source: the flashrnn package, github.com/NX-AI/flashrnn; its gates are in nn.LSTM's order.
    """

    package = "flashrnn"

    @staticmethod
    def missing():
        return _missing("flashrnn")

    @staticmethod
    def call(module, input):
        """output of a whole sequence, (T, B, H)."""
        from flashrnn import flashrnn

        H = module.hidden_size
        gates_ih = nn.functional.linear(input, module.weight_ih_l0)
        gates_ih = gates_ih.transpose(0, 1).unflatten(2, (4, 1, H))
        recurrent = module.weight_hh_l0.view(4, 1, H, H)
        bias = (module.bias_ih_l0 + module.bias_hh_l0).view(4, 1, H)
        states, _ = flashrnn(gates_ih, recurrent, bias, function="lstm", backend="cuda_fused")
        return states[0].squeeze(2).transpose(0, 1)


class TorchRL:
    """TorchRL's Triton LSTM, one layer, as a call on nn.LSTM's parameters.

    Source: torchrl/modules/tensordict_module/_rnn_triton.py, github.com/pytorch/rl.
    """

    package = "torchrl"

    @staticmethod
    def missing():
        return _missing("torchrl.modules.tensordict_module._rnn_triton")

    @staticmethod
    def call(module, input):
        """output of a whole sequence, (T, B, H)."""
        from torchrl.modules.tensordict_module._rnn_triton import lstm_triton

        T, B, _ = input.shape
        zeros = input.new_zeros(B, T, module.hidden_size)
        no_reset = torch.zeros(B, T, dtype=torch.bool, device=input.device)
        weights = [module._parameters[name] for name in module._flat_weights_names]
        output, *_ = lstm_triton(input.transpose(0, 1), zeros, zeros, *weights, no_reset)
        return output.transpose(0, 1)


def _missing(name):
    """Whether an optional package, which may fail in any way as it loads, is not to be had."""
    try:
        __import__(name)
    except Exception:
        return True
    return False


IMPLS = {"lstm": LSTM, "torch": nn.LSTM, "naive": Naive}
CELLS = {"lstm": LSTMCell, "torch": nn.LSTMCell, "naive": NaiveCell}
PEERS = {"flashrnn": FlashRNN, "torchrl": TorchRL}


class Subject:
    """One implementation at work on a case: calling it does the work once, without waiting for it.

    All implementations of a case get the same weights, input and upstream gradients.
    """

    def __init__(self, impl, case, device):
        if impl not in IMPLS | PEERS:
            raise ValueError(f"impl is {impl!r}, expected one of {', '.join(IMPLS | PEERS)}")
        self.impl, self.case, self.device = impl, case, device
        dtype = getattr(torch, case.dtype)
        generator = torch.Generator().manual_seed(SEED)

        def normal(*size):
            return torch.randn(*size, generator=generator).to(device, dtype)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            impls, sizes = IMPLS, (case.I, case.H, case.num_layers)
            if case.cell:
                impls, sizes = CELLS, sizes[:2]
            original = impls["torch"](*sizes)
            self.module = impls.get(impl, nn.LSTM)(*sizes)
        for own, given in zip(self.module.parameters(), original.parameters(), strict=True):
            own.data.copy_(given.data)
        flatten_weights(self.module.to(device, dtype))
        steps = () if case.cell else (case.T,)
        self.input = normal(*steps, case.B, case.I)
        self.hx = None
        if case.mode == "step":
            self.hx = tuple(normal(case.num_layers, case.B, case.H) for _ in range(2))
        elif case.cell:
            self.hx = tuple(normal(case.B, case.H) for _ in range(2))
        self.backward = case.mode.endswith("+backward")
        self.input.requires_grad_(self.backward)
        self.grad_output = normal(*steps, case.B, case.H)

    def __call__(self):
        if self.case.mode in ("step", "cell"):
            with torch.inference_mode():
                return self.output()
        if not self.backward:
            return self.output()
        self.module.zero_grad(set_to_none=True)
        self.input.grad = None
        output = self.output()
        output.backward(self.grad_output)
        return output

    def output(self):
        if self.impl in PEERS:
            return PEERS[self.impl].call(self.module, self.input)
        return self.module(self.input, self.hx)[0]

    def results(self):
        """The output and, with backward, every gradient, of one call."""
        results = [self().detach()]
        if self.backward:
            leaves = [self.input, *self.module.parameters()]
            results += [leaf.grad for leaf in leaves]
        return results

    def error(self):
        """The largest error of an output or a gradient, RMS over RMS, against float64.

        The truth is nn.LSTM on the same device in float64, from this dtype's rounded numbers.
        """
        truth = Subject("torch", self.case, self.device)
        truth.module.double()
        for name in ("input", "grad_output"):
            given = getattr(self, name).detach().double()
            setattr(truth, name, given.requires_grad_(truth.backward and name == "input"))
        truth.hx = self.hx and tuple(x.double() for x in self.hx)
        pairs = zip(self.results(), truth.results(), strict=True)
        return max(relative_error(own, true) for own, true in pairs)

    @property
    def path(self):
        """What runs: our path, or the implementation's name."""
        if self.impl == "lstm":
            return self.module.explain(self.input, self.hx).path
        return self.impl


class MNISTStep:
    """One training step of the main job, with the interface of Subject."""

    def __init__(self, impl, case, device):
        self.impl, self.case, self.device = impl, case, device
        (images, labels), _ = mnist.load()
        dtype = getattr(torch, case.dtype)
        self.images, self.labels = images[: case.B].to(device), labels[: case.B].to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.model = Classifier(IMPLS[impl], case.H, case.num_layers)
        self.model.to(device)
        self.truth = Classifier(nn.LSTM, case.H, case.num_layers).to(device)
        for own, given in zip(self.truth.parameters(), self.model.parameters(), strict=True):
            own.data.copy_(given.data.to(dtype))
        self.training = Training(
            self.model, self.images.to(dtype), self.labels, case.B, 0.01, dtype
        )
        self.training.batch.copy_(torch.arange(case.B))

    def __call__(self):
        return self.training.step()

    def error(self):
        """The largest error of a gradient of the first step, RMS over RMS, against float64."""
        model, truth, scale = self.model, self.truth.double(), self.training.scale
        images = self.training.images
        cross_entropy(truth(images.double()), self.labels).backward()
        model.zero_grad(set_to_none=True)
        (cross_entropy(model(images).float(), self.labels) * scale).backward()
        pairs = zip(model.parameters(), truth.parameters(), strict=True)
        return max(relative_error(own.grad.double() / scale, true.grad) for own, true in pairs)

    @property
    def path(self):
        """What runs: our path, or the implementation's name."""
        if self.impl == "lstm":
            return self.model.lstm.explain(self.training.images).path
        return self.impl


def subject(impl, case, device):
    """An implementation at work on a case."""
    return (MNISTStep if case.mode == "mnist step" else Subject)(impl, case, device)
