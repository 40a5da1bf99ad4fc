"""Make the LSTMs of a model ours, in place, and theirs again."""

from dataclasses import dataclass, field

from torch import nn

from .module import LSTM


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
    """Make every torch.nn.LSTM in a model, or the model itself, an lstm.LSTM, in place.

    Each stays the object that it is, with its parameters, buffers, hooks, training flag and whoever
    holds it, so optimizers and checkpoints go on as before; only its class changes. A subclass of
    nn.LSTM is left alone, as are parametrized ones: convert first, then parametrize.

    Returns: Conversion, which prints well.
    """
    return _change(model, nn.LSTM, LSTM)


def revert(model):
    """Make every lstm.LSTM in a model a torch.nn.LSTM, in place: `convert` undone.

    Returns: Conversion, which prints well.
    """
    done = _change(model, LSTM, nn.LSTM)
    for name in done.replaced:
        # cuDNN wants the weights in one piece, which ours are free not to be.
        model.get_submodule(name).flatten_parameters()
    return done


def _change(model, old, new):
    done = Conversion()
    for name, module in model.named_modules():
        if type(module) is old:
            module.__class__ = new
            done.replaced.append(name)
        elif isinstance(module, old):
            done.skipped[name] = f"{type(module).__name__} is a subclass of {old.__name__}"
    return done
