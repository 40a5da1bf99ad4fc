"""Swap the LSTMs of a model for ours, in place, and back."""

from dataclasses import dataclass, field

from torch import nn

from .module import LSTM


@dataclass(frozen=True)
class Conversion:
    """What `convert` or `revert` did.

    replaced: names of the modules that were swapped, as in model.named_modules(), every name of a
    shared one; skipped: {name: reason} of those that look like an LSTM and were left alone.
    """

    replaced: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"replaced {name}" for name in self.replaced]
        lines += [f"left {name} alone: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines) or "found no LSTM"


def convert(model):
    """Replace every torch.nn.LSTM in a model by lstm.LSTM, in place.

    Parameters are the same objects, so optimizers and checkpoints go on as before; shared modules
    stay shared; hooks, the training flag and requires_grad are kept. Subclasses of nn.LSTM are left
    alone: what they add would be lost.

    Returns: Conversion.
    Raises: ValueError if the model itself is an nn.LSTM, which nothing holds in which to swap it.
    """
    return _swap(model, nn.LSTM, LSTM)


def revert(model):
    """Replace every lstm.LSTM in a model by torch.nn.LSTM, in place: `convert` undone.

    Returns: Conversion.
    Raises: ValueError if the model itself is an lstm.LSTM.
    """
    return _swap(model, LSTM, nn.LSTM)


def _swap(model, old, new):
    if type(model) is old:
        raise ValueError(
            f"the model is itself a {_name(old)}: put it in another module, such as nn.Sequential"
        )
    done = Conversion()
    # By identity: a shared module is swapped for one module.
    swapped = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is old:
            if id(module) not in swapped:
                swapped[id(module)] = module, _as(module, new)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, swapped[id(module)][1])
            done.replaced.append(name)
        elif isinstance(module, old):
            done.skipped[name] = f"{_name(type(module))} is a subclass of {_name(old)}"
    return done


def _as(module, new):
    """A module of another class with this one's attributes: the same objects, hooks and all."""
    made = new.__new__(new)
    nn.Module.__init__(made)
    made.__dict__.update(module.__dict__)
    return made


def _name(cls):
    return f"{cls.__module__.split('.modules')[0]}.{cls.__name__}"
