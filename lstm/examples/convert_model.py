"""A published model on the kernels and back: lstm.convert, training steps, lstm.revert.

    python lstm/examples/convert_model.py                      # a language model, learns this file
    python lstm/examples/convert_model.py --model open-unmix   # needs: pip install openunmix

One should see what was replaced, the same loss before and after, a loss that falls while it trains,
and the trained model's loss on PyTorch's own LSTM again.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import lstm


class RNNModel(nn.Module):
    """The language model of PyTorch's examples, shortened: tied weights, states from call to call.

    Source: https://github.com/pytorch/examples/blob/main/word_language_model/model.py
    """

    def __init__(self, ntoken, ninp, nhid, nlayers, dropout=0.0):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, input, hidden=None):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return self.decoder(self.drop(output)), hidden


def language_model(device):
    """The model, and the loss of a call of it: to guess the next character of this file."""
    text = torch.tensor(list(Path(__file__).read_bytes()), device=device)
    columns = text[: len(text) // 16 * 16].view(16, -1).t()
    inputs, targets = columns[:32], columns[1:33]
    model = RNNModel(ntoken=128, ninp=64, nhid=64, nlayers=2).to(device)
    return model, lambda: cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())


def open_unmix(device):
    """The model, and the loss of a call of it: to give a spectrogram back."""
    try:
        from openunmix.model import OpenUnmix
    except ImportError:
        sys.exit("convert_model: openunmix is not installed: pip install openunmix")
    model = OpenUnmix(nb_bins=65, nb_channels=2, hidden_size=64, nb_layers=3).to(device)
    # Dropout is switched off, so that the loss before and after is of the same computation.
    model.lstm.dropout = 0.0
    spectrogram = torch.rand(4, 2, 65, 16, device=device)
    return model, lambda: mse_loss(model(spectrogram), spectrogram)


MODELS = {"language": language_model, "open-unmix": open_unmix}


def main(arguments=None):
    """Convert, train, revert, and print. Returns: {"before", "converted", "trained", "reverted":
    the loss at this point}.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="language")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model, call = MODELS[args.model]("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = {"before": call().item()}
    print(f"torch.nn.LSTM: loss {losses['before']:.5f}")

    # In place, so the optimizer and everybody else who holds the model or its parameters go on.
    print(lstm.convert(model))
    losses["converted"] = call().item()
    print(f"lstm.LSTM:     loss {losses['converted']:.5f}")

    for _ in range(args.steps):
        optimizer.zero_grad()
        call().backward()
        optimizer.step()
    losses["trained"] = call().item()
    print(f"after {args.steps} steps: loss {losses['trained']:.5f}")

    lstm.revert(model)
    losses["reverted"] = call().item()
    print(f"torch.nn.LSTM: loss {losses['reverted']:.5f}")
    return losses


if __name__ == "__main__":
    main()
