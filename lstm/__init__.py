"""torch.nn.LSTM with its time loop in one fused Triton kernel.

    from lstm import LSTM

`LSTM` has nn.LSTM's constructor, parameters, state_dict, outputs and errors; `LSTM.explain` says
which calls run on the kernels. `convert` makes the LSTMs of a whole model ours. Importing needs no
GPU, and loads Triton only when a kernel first runs.
"""

from importlib.metadata import version

from .convert import Conversion, convert, revert
from .module import LSTM
from .plan import Plan

__all__ = ["LSTM", "Conversion", "Plan", "convert", "revert"]
__version__ = version("fused-lstm")
