"""Thousands of training steps on ever new sizes: flat memory, finite losses, an exact resume.

    python -m bench.soak                 # 20,000 steps
    python -m bench.soak --steps 800     # without a GPU: five minutes of Triton's interpreter

Two-layer LSTMs, of one direction and of both, take packed and padded batches in turn. Halfway all
that decides the next step is saved; in the end a fresh model goes on from there, and must come to
the same losses and weights, bit for bit. The exit status is 1, with the reason, if a loss is not
finite, memory grows or the resumed steps differ.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

# Both before they are read: one thread, because the interpreter's products are too small to share,
# and a workspace with which cuBLAS gives the same bits again.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_padded_sequence
from tqdm import tqdm

from bench import record

STEPS = 20_000
MAX_T, MAX_B, I, H = 12, 9, 8, 16
# A batch of each kind in turn: (packed, both directions).
KINDS = ((False, False), (False, True), (True, False), (True, True))

# Steps between two looks at losses and memory, which wait for the device.
CHUNK = 100
# What memory may grow by after the warm-up, a tenth of the steps. torch counts a GPU's to the byte,
# in blocks of at least 512: one tensor kept every nine steps is 1 MiB in the other 18,000. The
# resident set of a process moves by itself: by 18 MiB in as many steps of PyTorch's own LSTM, ever
# more slowly.
BOUND = {"cuda": 2**20, "cpu": 32 * 2**20}


class Failed(Exception):
    """What a soak is there to find: which step, and what is wrong."""


class Model(nn.Module):
    """A number for each sequence, from the last states of a two-layer LSTM and a linear layer.

    Shapes: input (T, B, I), lengths (B,) or None to (B,).
    """

    def __init__(self):
        super().__init__()
        # Late: importing it reads TRITON_INTERPRET.
        from lstm import LSTM

        options = [dict(bidirectional=both) for both in (False, True)]
        self.lstms = nn.ModuleList(LSTM(I, H, 2, dropout=0.1, **some) for some in options)
        self.linears = nn.ModuleList(nn.Linear(D * H, 1) for D in (1, 2))

    def forward(self, input, lengths, both):
        if lengths is not None:
            input = pack_padded_sequence(input, lengths, enforce_sorted=False)
        _, (h_n, _) = self.lstms[both](input)
        D = 2 if both else 1
        last = h_n[-D:].transpose(0, 1).flatten(1)
        return self.linears[both](last).squeeze(1)


class Soak:
    """A training that can be saved after any step and go on from there in a fresh one."""

    def __init__(self, seed, device):
        self.device = device
        torch.manual_seed(seed)
        self.model = Model().to(device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-3, fused=device.type == "cuda"
        )
        # Sizes are drawn where they are needed, so that nothing waits for the device.
        self.sizes = torch.Generator().manual_seed(seed)
        self.numbers = torch.Generator(device).manual_seed(seed)
        self.steps = 0

    def step(self):
        """Train once. Returns: the loss before it, on the device."""
        packed, both = KINDS[self.steps % len(KINDS)]
        input, lengths = self.draw(packed)
        # What the first step of each sequence holds, so that it has to be carried to the last.
        loss = mse_loss(self.model(input, lengths, both), input[0].mean(1))
        loss.backward()
        self.optimizer.step()
        # Not before the next step: gradients are no part of what memory has to hold between two.
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.detach()

    def draw(self, packed):
        """A batch. Returns: input (T, B, I), and lengths (B,) if it is to be packed, else None."""

        def integers(most, *shape):
            return torch.randint(1, most + 1, shape, generator=self.sizes)

        # The largest first, so that no later batch needs more memory than the first ones.
        largest = self.steps < len(KINDS)
        T, B = (MAX_T, MAX_B) if largest else (int(integers(most)) for most in (MAX_T, MAX_B))
        input = torch.randn(T, B, I, generator=self.numbers, device=self.device)
        if not packed:
            return input, None
        return input, torch.full((B,), T) if largest else integers(T, B)

    def state(self):
        """All that decides the steps to come."""
        state = {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sizes": self.sizes.get_state(),
            "numbers": self.numbers.get_state(),
            # Dropout draws from torch's own generator, on a GPU from the card's.
            "torch": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load(self, state):
        """Go on from where `state` was taken."""
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sizes.set_state(state["sizes"])
        self.numbers.set_state(state["numbers"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


class Memory:
    """Bytes in use from here on, which may not grow.

    On a GPU what torch's tensors take, between two steps and at most within one; on a CPU the
    resident set of the process.
    """

    def __init__(self, device):
        self.device = device
        self.first = self.last = self.read()

    def read(self):
        """{what: bytes}."""
        if self.device.type == "cuda":
            return {
                "allocated": torch.cuda.memory_allocated(self.device),
                "peak": torch.cuda.max_memory_allocated(self.device),
            }
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"resident": pages * os.sysconf("SC_PAGE_SIZE")}

    def check(self, steps):
        """Raises: Failed if it has grown by more than BOUND."""
        self.last = self.read()
        for what, now in self.last.items():
            before, bound = self.first[what], BOUND[self.device.type]
            if now - before > bound:
                raise Failed(
                    f"after step {steps} {what} memory is {mib(now)}, {mib(before)} after the "
                    f"warm-up, and may grow by {mib(bound)}"
                )

    def __str__(self):
        return ", ".join(
            f"{what} {mib(self.first[what])} after the warm-up, {mib(now)} in the end"
            for what, now in self.last.items()
        )


def mib(count):
    """Bytes in words."""
    return f"{count / 2**20:.2f} MiB"


def train(soak, steps, tick, memory=None):
    """So many steps, looked at in chunks. Returns: their losses, on the CPU.

    Raises: Failed if one is not finite, or if memory has grown.
    """
    losses = [torch.zeros(0)]
    for begin in range(0, steps, CHUNK):
        some = []
        for _ in range(min(CHUNK, steps - begin)):
            some.append(soak.step())
            tick()
        some = torch.stack(some).cpu()
        wrong = (~some.isfinite()).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise Failed(f"step {soak.steps - len(some) + at + 1}: the loss is {some[at]}")
        if memory:
            memory.check(soak.steps)
        losses.append(some)
    return torch.cat(losses)


def same(losses, again, weights, resumed):
    """Raises: Failed unless two trainings have the same losses and weights, bit for bit."""
    wrong = (losses != again).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise Failed(
            f"{at + 1} steps after the checkpoint the loss is {again[at]}, and was {losses[at]}"
        )
    for name, weight in weights.items():
        if not torch.equal(weight, resumed[name]):
            raise Failed(f"{name} differs after the resumed steps")


def soak_for(args, made, tick):
    """The whole soak; `made` is its run for a record, and has what is known when it fails."""
    soak = Soak(args.seed, args.device)
    plan = soak.model.lstms[0].explain(torch.zeros(MAX_T, MAX_B, I, device=args.device))
    made["path"] = plan.path
    print(f"lstm.LSTM, {plan.reason}, path {plan.path}", flush=True)

    begin = time.perf_counter()
    warm_up, half = max(len(KINDS), args.steps // 10), args.steps // 2
    first = train(soak, warm_up, tick)
    memory = Memory(args.device)
    train(soak, half - warm_up, tick, memory)
    with TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        torch.save(soak.state(), path)
        losses = train(soak, args.steps - half, tick, memory)
        made["time_s"] = round(time.perf_counter() - begin, 3)
        made["memory_bytes"] = {"warm_up": memory.first, "end": memory.last}
        made["losses"] = [first.mean().item(), losses[-warm_up:].mean().item()]
        # Of another seed, so that nothing is right that is not in the file.
        resumed = Soak(args.seed + 1, args.device)
        resumed.load(torch.load(path, weights_only=True))
    again = train(resumed, args.steps - half, tick)
    same(losses, again, soak.model.state_dict(), resumed.model.state_dict())
    made["resumed_steps"] = len(again)

    print(f"{args.steps:,} steps in {made['time_s']:.1f} s, all losses finite")
    print("Mean loss: {:.4f} in the warm-up, {:.4f} in the end".format(*made["losses"]))
    print(f"Memory: {memory}")
    print(f"Resumed: {len(again):,} steps with the same losses and weights, bit for bit")


def parse(arguments):
    """The command line, with what depends on the machine filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, default=STEPS, help=f"default: {STEPS}; half of them are done twice")
    add("--seed", type=int, default=0, help="of the weights, the sizes and the numbers")
    add("--device", help="default: cuda if there is a GPU, else cpu")
    add("--json", type=record.writable, metavar="FILE", help="write a record of the run")
    args = parser.parse_args(arguments)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in BOUND:
        parser.error(f"--device {args.device}: cuda or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU")
    args.device = torch.device("cuda", device.index or 0) if device.type == "cuda" else device
    if args.steps < 2 * len(KINDS):
        parser.error(f"--steps must be at least {2 * len(KINDS)}, so that each half has all kinds")
    return args


def main(arguments=None):
    """Soak and record; exits with the reason if something is wrong."""
    args = parse(arguments)
    interpreter = args.device.type == "cpu"
    if interpreter:
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)
        print("On the CPU Triton's interpreter runs the kernels (TRITON_INTERPRET=1), and slowly.")
    else:
        torch.cuda.set_device(args.device)
    torch.use_deterministic_algorithms(True)
    case = {
        "mode": "soak",
        "T": [1, MAX_T],
        "B": [1, MAX_B],
        "I": I,
        "H": H,
        "num_layers": 2,
        "dtype": "float32",
        "fp32_precision": torch.backends.cudnn.rnn.fp32_precision,
        "steps": args.steps,
        "seed": args.seed,
        "interpreter": interpreter,
    }
    made = {"impl": "lstm"}
    # disable=None means a bar on a terminal and nothing in a file or pipe.
    total = args.steps + args.steps - args.steps // 2
    with tqdm(total=total, disable=None, leave=False) as bar:
        try:
            soak_for(args, made, bar.update)
        except Failed as failure:
            made["failed"] = str(failure)
    try:
        if args.json:
            record.write(args.json, record.new_record("soak", args.device, case, [made]))
    except OSError as error:
        sys.exit(f"soak: {error}")
    if "failed" in made:
        sys.exit(f"soak: {made['failed']}")


if __name__ == "__main__":
    main()
