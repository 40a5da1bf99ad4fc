"""Figures from records, in one place so that a colour means one implementation everywhere."""

from pathlib import Path

from matplotlib.figure import Figure

COLOUR = {"triton": "tab:orange", "cudnn": "tab:blue"}


def draw_losses(path, record):
    """Loss against step, a line per run of a train_mnist record; the suffix says the file type."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run in record["runs"]:
        losses = [float("nan") if loss is None else loss for loss in run["losses"]]
        axes.plot(
            range(1, len(losses) + 1),
            losses,
            color=COLOUR[run["impl"]],
            label=run["what"],
            linewidth=0.8,
        )
    axes.set(xlabel="step", ylabel="cross entropy of the batch (nats)", title="MNIST training loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
