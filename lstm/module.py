"""LSTM: torch.nn.LSTM's interface over the kernels, or PyTorch's LSTM where they don't serve."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from . import plan as plans
from .checks import alike, two_tensors
from .layer import by_layer, lstm
from .packing import Packing
from .precision import compute_dtype, fp32_precision


class LSTM(RNNBase):
    """A drop-in torch.nn.LSTM: the same constructor, parameters, state_dict, outputs and errors.

        lstm = LSTM(28, 128, num_layers=2, batch_first=True, device="cuda")
        output, (h_n, c_n) = lstm(input)

    Args, shapes, returns and errors are those of torch.nn.LSTM: (input_size, hidden_size,
    num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0,
    device=None, dtype=None).

    Calls the kernels do not serve, `explain` tells which and why, run PyTorch's own LSTM: same
    result, its speed.

    Numerics: float32 follows torch.backends.cudnn.rnn.fp32_precision, as nn.LSTM does on a GPU. The
    default, "tf32", has 10 bits of mantissa in products; "ieee" is float32's own precision, on the
    kernels up to 64 units. Sums, cells and activations are float32 in every dtype.

    It is no subclass of nn.LSTM, which torch.compile does not take.
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def forward(self, input, hx=None):
        """nn.LSTM's forward.

        Args: input (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, or a PackedSequence; hx:
            (h_0, c_0), each (D num_layers, B, H), (D num_layers, H) unbatched, of D directions;
            zeros if None.
        Returns: output, (h_n, c_n), with input's layout and hx's shapes.
        """
        if torch.compiler.is_compiling():
            # It does not see into a Triton launch behind an autograd.Function. No decorator: that
            # would import the compiler, and with it Triton, for everybody.
            return torch.compiler.disable(self._forward)(input, hx)
        return self._forward(input, hx)

    def _forward(self, input, hx):
        plan = self.explain(input, hx)
        if plan.path == "torch":
            return nn.LSTM.forward(self, input, hx)

        weights = self._weights()
        packing = None
        if isinstance(input, PackedSequence):
            input, batch_sizes, order, restore = input
            packing = Packing(batch_sizes, input.device)
            hx = hx if hx is None else self.permute_hidden(hx, order)
        h_0, c_0 = (None, None) if hx is None else hx
        dtype = compute_dtype(input)
        if torch.is_autocast_enabled(input.device.type):
            weights = [weight.to(dtype) for weight in weights]
            input, h_0, c_0 = (x if x is None else x.to(dtype) for x in (input, h_0, c_0))
        batched = packing or input.dim() == 3
        if not batched:
            input = input.unsqueeze(1)
            h_0, c_0 = (x if x is None else x.unsqueeze(1) for x in (h_0, c_0))
        elif self.batch_first and not packing:
            input = input.transpose(0, 1)

        D = 2 if self.bidirectional else 1
        output, h_n, c_n = lstm(
            input, h_0, c_0, by_layer(weights, self.num_layers * D), self._dropout_masks(input, D),
            dict(plan.tile), fp32_precision(), D, packing, plan.at_once,
        )  # fmt: skip
        if packing:
            output = PackedSequence(output, batch_sizes, order, restore)
            return output, self.permute_hidden((h_n, c_n), restore)
        if not batched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, (h_n, c_n)

    def explain(self, input, hx=None):
        """Which path a call with this input takes, its tiles and warps, and the reason.

        Returns: lstm.Plan, which prints well.
        """
        x = input.data if isinstance(input, PackedSequence) else input
        refusal = plans.refusal(x)
        if refusal:
            return refusal
        plan = plans.plan(
            self.hidden_size,
            self._batch(input),
            compute_dtype(x),
            plans.capability(x.device),
            plans.interpreted(),
            fp32_precision(),
            self.bidirectional,
            plans.multiprocessors(x.device),
        )
        if plan.path == "fused" and not self._accepts(input, hx):
            return plans.MISFIT
        return plans.forced(plan)

    def _batch(self, input):
        """Sequences in an input of any kind."""
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0])
        return 1 if input.dim() != 3 else input.shape[0 if self.batch_first else 1]

    def _accepts(self, input, hx):
        """Whether shapes, dtypes and devices are as the kernels take them."""
        batch = [self._batch(input)]
        if isinstance(input, PackedSequence):
            input, batch_sizes, *_ = input
            if input.dim() != 2 or not Packing.valid(batch_sizes, len(input)):
                return False
        elif input.dim() == 2:
            batch = []
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size or input.numel() == 0:
            return False
        weights = self._weights()
        D = 2 if self.bidirectional else 1
        # A replaced parameter may have any shape, and the kernels would read past its end.
        sizes = self.input_size, self.hidden_size, self.num_layers, self.bias, D, self.proj_size
        if any(x.shape != size for x, size in zip(weights, _weight_sizes(*sizes), strict=True)):
            return False
        tensors = [input, *weights]
        if hx is not None:
            if not two_tensors(hx):
                return False
            states, size = (self.num_layers * D, *batch), self.proj_size or self.hidden_size
            if hx[0].shape != (*states, size) or hx[1].shape != (*states, self.hidden_size):
                return False
            tensors += hx
        return alike(tensors)

    def _weights(self):
        """The weights in nn.LSTM's order: parameters, or what a parametrization put there."""
        own = self._parameters
        return [
            own[name] if name in own else getattr(self, name) for name in self._flat_weights_names
        ]

    def _dropout_masks(self, input, D):
        """What multiplies the outputs between layers, drawn as nn.LSTM draws it on a CPU."""
        if not (self.training and self.dropout > 0 and self.num_layers > 1):
            return None
        size = (*input.shape[:-1], D * (self.proj_size or self.hidden_size))
        return [F.dropout(input.new_ones(size), self.dropout) for _ in range(self.num_layers - 1)]


@lru_cache
def _weight_sizes(input_size, hidden_size, num_layers, bias, D, proj_size):
    """The shape of each weight, in nn.LSTM's order."""
    rows, h_size, sizes = 4 * hidden_size, proj_size or hidden_size, []
    for layer in range(num_layers):
        weights = [(rows, D * h_size if layer else input_size), (rows, h_size)]
        weights += 2 * [(rows,)] if bias else []
        weights += [(proj_size, hidden_size)] if proj_size else []
        sizes += D * weights
    return sizes
