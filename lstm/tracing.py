"""What records a call, or imitates it without numbers. A launch is no operation, so it would not be
seen.
"""

import copy

import torch

_mode = torch._C._get_dispatch_mode
_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY
_PYTHON = torch._C.DispatchKey.Python


def traced(input):
    """Whether operations on the input are recorded, or it has no numbers of its own."""
    unseen = torch._C._is_tracing() or torch._C._dispatch_keys(input).has(_PYTHON)
    return unseen or _mode(_FAKE) is not None or _mode(_PROXY) is not None


def traced_call(module, input, **others):
    """A module's call as torch.fx.symbolic_trace records it, which keeps whole only the modules of
    torch.nn. input: torch.fx.Proxy; others: arguments that may be None.
    """
    given = {name: x for name, x in others.items() if x is not None}
    path = input.tracer.path_of_module(module)
    return input.tracer.create_proxy("call_module", path, (input,), given)


def scripted(module, ours, theirs):
    """What torch.jit.script compiles for a module of class ours: a copy of PyTorch's class, theirs,
    with the same parameters. Of a subclass itself, since it may do anything.
    """
    if type(module) is not ours:
        return module
    module = copy.copy(module)
    module.__class__ = theirs
    return module
