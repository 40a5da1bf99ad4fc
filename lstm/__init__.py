"""torch.nn.LSTM with its time loop in one fused Triton kernel.

    from lstm import LSTM, LSTMCell

They have nn.LSTM's and nn.LSTMCell's constructors, parameters, state_dict, outputs and errors;
`explain` says which calls run on the kernels. `convert` makes those of a whole model ours.
Importing needs no GPU, and loads Triton only when a kernel first runs.
"""

from importlib.metadata import version

from .cell import LSTMCell
from .convert import Conversion, convert, revert
from .module import LSTM
from .plan import Plan

__all__ = ["LSTM", "Conversion", "LSTMCell", "Plan", "convert", "revert"]
__version__ = version("fused-lstm")
