"""A critic of sequences with a gradient penalty (WGAN-GP), which cuDNN's LSTM cannot train.

    python lstm/examples/gradient_penalty.py
    python lstm/examples/gradient_penalty.py --steps 3

The penalty is a function of a gradient, so its own gradient is a second one: create_graph=True.
cuDNN has none for LSTMs. Here the first comes from the equations in plain torch, a step at a time,
which can be differentiated again; only forward is on the kernels.

One should see the critic put sines about 1 above noise, and the norm of its gradient go from 0 to
1, which the penalty asks for.

Source: Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028
"""

import argparse
import math

import torch
from torch import nn

from lstm import LSTM

T, B, PENALTY = 12, 16, 10.0


class Critic(nn.Module):
    """A number for each sequence. Shapes: x (T, B, 1) to (B,)."""

    def __init__(self, lstm=LSTM):
        super().__init__()
        self.lstm = lstm(1, 32)
        self.linear = nn.Linear(32, 1)

    def forward(self, x):
        output, _ = self.lstm(x)
        return self.linear(output).mean(0).squeeze(1)


def gradient_norms(critic, real, fake):
    """The norm of the critic's gradient at a point between each real and each fake sequence."""
    share = torch.rand(1, B, 1).to(real.device)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return gradient.square().sum((0, 2)).sqrt()


def train(critic, steps, device):
    """Yields: of each step how far real and fake are apart, the mean norm, and the loss."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.005, betas=(0.0, 0.9))
    time = torch.arange(T)[:, None, None] / T
    for _ in range(steps):
        real = torch.sin(2 * math.pi * (time + torch.rand(B, 1) / 4)).to(device)
        fake = torch.randn(T, B, 1).to(device)
        apart = critic(real).mean() - critic(fake).mean()
        norms = gradient_norms(critic, real, fake)
        loss = PENALTY * (norms - 1).square().mean() - apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield apart.item(), norms.mean().item(), loss.item()


def main(arguments=None):
    """Train and print. Returns: what `train` yields, as a list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    critic = Critic().to(device)
    history = []
    for apart, norm, loss in train(critic, args.steps, device):
        history.append((apart, norm, loss))
        step = len(history)
        if step % 10 == 0 or step in (1, args.steps):
            print(f"step {step}: apart {apart:.3f}, gradient norm {norm:.3f}, loss {loss:.3f}")
    return history


if __name__ == "__main__":
    main()
