"""A notebook's MNIST classifier with one import changed: the rows of an image are 28 steps.

    python lstm/examples/mnist_rows.py                # one epoch
    python lstm/examples/mnist_rows.py --batches 3    # three batches of it

One should see a loss that falls from 2.3, which is guessing, and the accuracy on the last batch.
Clocks, a test set and the same beside cuDNN are in bench/train_mnist.py.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lstm import LSTM  # was: from torch.nn import LSTM

# Last in the list: it decides where `bench` comes from, and never where `lstm` does.
sys.path.append(str(Path(__file__).parents[2]))

from bench import mnist

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

sequence_length = 28
input_size = 28
hidden_size = 128
num_layers = 2
num_classes = 10
batch_size = 100
learning_rate = 0.01


class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x):
        h0 = torch.zeros(num_layers, x.size(0), hidden_size, device=x.device)
        c0 = torch.zeros(num_layers, x.size(0), hidden_size, device=x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


def main(arguments=None):
    """Train and print. Returns: the loss of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, help="of 100 images; default: all 600")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    (images, labels), _ = mnist.load()
    train_loader = DataLoader(TensorDataset(images, labels), batch_size, shuffle=True)
    model = RNN().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    losses = []
    for images, labels in islice(train_loader, args.batches):
        images = images.reshape(-1, sequence_length, input_size).to(device)
        labels = labels.to(device)
        outputs = model(images)
        loss = criterion(outputs, labels)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 100 == 0 or len(losses) == args.batches:
            print(f"batch {len(losses)}, loss: {losses[-1]:.4f}")
    accuracy = (outputs.argmax(1) == labels).float().mean()
    print(f"last batch before its step: {accuracy:.0%} right")
    return losses


if __name__ == "__main__":
    main()
