"""Make the LSTMs of a model ours, in place, and theirs again."""

from dataclasses import dataclass, field

from torch import nn

from .cell import LSTMCell
from .module import LSTM

OURS = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}


@dataclass(frozen=True)
class Conversion:
    """What `convert` or `revert` did.

    replaced: names of the modules that changed, as model.named_modules() has them, a shared module
    by its first; skipped: {name: reason} of those that look like an LSTM and were left alone.
    """

    replaced: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"replaced {name or 'the model itself'}" for name in self.replaced]
        lines += [f"left {name} alone: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines) or "found no LSTM"


def convert(model):
    """Make every torch.nn.LSTM and nn.LSTMCell in a model, or the model itself, ours, in place.

    Each stays the object that it is, with its parameters, buffers, hooks, training flag and whoever
    holds it, so optimizers and checkpoints go on as before; only its class changes. A subclass of
    theirs is left alone, as are parametrized ones: convert first, then parametrize.

    Args: model: any torch.nn.Module, on any device.
    Returns: Conversion, which prints well, of what was replaced and what was left alone. Finding
        nothing is no error.
    """
    return _change(model, OURS)


def revert(model):
    """Make every lstm.LSTM and lstm.LSTMCell in a model PyTorch's, in place: `convert` undone.

    Also those that were made as ours. On a GPU their weights move into one piece of memory, as
    cuDNN wants them.

    Args, returns: as `convert`.
    """
    return _change(model, {ours: theirs for theirs, ours in OURS.items()})


def _change(model, classes):
    done = Conversion()
    for name, module in model.named_modules():
        kind = type(module)
        if kind in classes:
            module.__class__ = classes[kind]
            if classes[kind] is nn.LSTM:
                # cuDNN wants the weights in one piece, which ours are free not to be.
                module.flatten_parameters()
            done.replaced.append(name)
        elif kind not in classes.values():
            for old in classes:
                if isinstance(module, old):
                    done.skipped[name] = f"{kind.__name__} is a subclass of {old.__name__}"
    return done
