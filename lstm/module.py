"""LSTM: torch.nn.LSTM's interface over the kernels, or PyTorch's LSTM where they don't serve."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from . import layer, ops, recompute, reference
from . import plan as plans
from .call import plan_call
from .checks import (
    alike,
    check_resets,
    differentiable,
    shape_of,
    two_tensors,
    weight_sizes,
)
from .packing import Packing
from .precision import autocasts, compute_dtype, fp32_precision
from .tracing import scripted, traced_call


class LSTM(RNNBase):
    """A drop-in torch.nn.LSTM: the same constructor, parameters, state_dict, outputs and errors.

        lstm = LSTM(28, 128, num_layers=2, batch_first=True, device="cuda")
        output, (h_n, c_n) = lstm(input)

    Args, shapes, returns and errors are those of torch.nn.LSTM: (input_size, hidden_size,
    num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0,
    device=None, dtype=None), and one more, by name:
        recompute: of long sequences, how many steps to compute again together in backward, which
            saves the memory of their gates until then, for the time of a second forward; 0, the
            default: none. Results are the same, but that states between parts are rounded to the
            dtype of the call. It may be set later: lstm.recompute = 512.

    Calls the kernels do not serve (`explain` tells which, and why) run PyTorch's own LSTM: same
    result, its speed, and no recompute. In torch.compile and torch.export a call is one operator,
    but for a PackedSequence, which breaks the graph; ONNX gets its own LSTM.

    Numerics: float32 follows torch.backends.cudnn.rnn.fp32_precision, as nn.LSTM does on a GPU. The
    default, "tf32", has 10 bits of mantissa in products; "ieee" is float32's own precision, on the
    kernels up to 64 units. Sums, cells and activations are float32 in every dtype.

    It is not a subclass of nn.LSTM: torch.compile refuses those.

    Source: equations as in torch.nn.LSTM; forget gate from Gers et al., 2000,
        doi.org/10.1162/089976600300015015; projection from Sak et al., 2014,
        arxiv.org/abs/1402.1128.
    """

    # Also of modules that `convert` made, or that were pickled before there was one.
    recompute = 0

    def __init__(self, *args, recompute=0, **kwargs):
        super().__init__("LSTM", *args, **kwargs)
        if not isinstance(recompute, int) or isinstance(recompute, bool):
            raise TypeError(f"recompute must be a number of steps, got {recompute!r}")
        if recompute < 0:
            raise ValueError(f"recompute must be a number of steps or 0, got {recompute}")
        if recompute:
            self.recompute = recompute

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def __prepare_scriptable__(self):
        return scripted(self, LSTM, nn.LSTM)

    def extra_repr(self):
        return super().extra_repr() + (f", recompute={self.recompute}" if self.recompute else "")

    def forward(self, input, hx=None, resets=None):
        """nn.LSTM's forward.

        Args: input (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, or a PackedSequence; hx:
            (h_0, c_0), (D num_layers, B, P) and (D num_layers, B, H), without B unbatched, of D
            directions, P being proj_size or else H; zeros if None; resets: bool, input's shape
            without I, or a PackedSequence like input's: True where a new sequence begins, into
            which no state passes from the step before, nor, in the other direction, back. At the
            first step it drops hx. None for no such step.
        Returns: output, with input's layout and D P for I, and (h_n, c_n), with hx's shapes.
        Raises: what nn.LSTM raises; for resets TypeError if they are not bool or not packed as
            input is, ValueError for another shape, RuntimeError for another device; for an hx of
            other sizes RuntimeError with a PackedSequence too, where nn.LSTM may crash.
        """
        if torch.compiler.is_compiling():
            if isinstance(input, PackedSequence):
                # No decorator: that would import the compiler, and with it Triton, for everybody.
                return torch.compiler.disable(self._planned)(input, hx, resets)
            return self._compiled(input, hx, resets)
        return self._planned(input, hx, resets)

    def _planned(self, input, hx, resets):
        """A call on the path that `explain` names."""
        weights = self._weights()
        plan = self._explain(input, hx, resets, weights)
        if plan.path == "torch":
            if isinstance(input, torch.fx.Proxy):
                return traced_call(self, input, hx=hx, resets=resets)
            if isinstance(input, PackedSequence):
                self._check_packed_states(input, hx)
            return nn.LSTM.forward(self, input, hx)

        def run(input, h_0, c_0, weights, masks, resets, L, D, packing):
            if plan.path == "reference":
                layers, sizes = reference.by_layer(weights, L * D), packing and packing.batch_sizes
                return reference.lstm(input, h_0, c_0, layers, masks, resets, D, sizes)
            call = plan_call(
                plan, L, D, self.hidden_size, self.proj_size, self.bias,
                packing.B if packing else input.shape[1],
            )  # fmt: skip
            call = call._replace(packing=packing) if packing else call
            return layer.lstm(call, input, h_0, c_0, weights, masks, resets)

        return self._call(run, input, hx, resets, weights)

    def _compiled(self, input, hx, resets):
        """A call within torch.compile or torch.export, as an operator that plans when it runs."""
        if torch.onnx.is_in_onnx_export() and resets is None:
            # Which has a node for it.
            return nn.LSTM.forward(self, input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batch_dim = 0 if self.batch_first else 1
        batched = input if input.dim() == 3 else input.unsqueeze(batch_dim)
        if hx is None:
            self.check_input(batched, None)
        else:
            states = hx if input.dim() == 3 else tuple(x.unsqueeze(1) for x in hx)
            self.check_forward_args(batched, states, None)
        if resets is not None:
            check_resets(resets, input)
        precision, transformed = fp32_precision(), plans.transformed()

        def run(input, h_0, c_0, weights, masks, resets, L, D, packing):
            if transformed:
                layers = reference.by_layer(weights, L * D)
                return reference.lstm(input, h_0, c_0, layers, masks, resets, D)
            return ops.lstm(input, h_0, c_0, weights, masks, resets, L * D, D, precision)

        return self._call(run, input, hx, resets, self._weights())

    def _call(self, run, input, hx, resets, weights):
        """What `run` computes, of tensors as layer.lstm has them, in the form that nn.LSTM returns.

        run(input, h_0, c_0, weights, masks, resets, L, D, packing) gives output, h_n, c_n, of L
        layers in D directions; weights: flat.
        """
        packing = None
        if isinstance(input, PackedSequence):
            input, batch_sizes, order, restore = input
            packing = Packing(batch_sizes, input.device)
            hx = hx if hx is None else self.permute_hidden(hx, order)
            resets = resets if resets is None else resets.data
        h_0, c_0 = (None, None) if hx is None else hx
        if autocasts(input):
            dtype = compute_dtype(input)
            weights = [weight.to(dtype) for weight in weights]
            input, h_0, c_0 = (x if x is None else x.to(dtype) for x in (input, h_0, c_0))
        batched = packing or input.dim() == 3
        if not batched:
            input, h_0, c_0, resets = (
                x if x is None else x.unsqueeze(1) for x in (input, h_0, c_0, resets)
            )
        elif self.batch_first and not packing:
            input, resets = (x if x is None else x.transpose(0, 1) for x in (input, resets))

        L, D = self.num_layers, 2 if self.bidirectional else 1
        masks = self._dropout_masks(input, D) if self.dropout > 0 else None
        arguments = input, h_0, c_0, weights, masks, resets, L, D, packing
        if self.recompute and differentiable((input, h_0, c_0, *weights)):
            output, h_n, c_n = recompute.lstm(run, *arguments, self.recompute)
        else:
            output, h_n, c_n = run(*arguments)
        if packing:
            output = PackedSequence(output, batch_sizes, order, restore)
            return output, self.permute_hidden((h_n, c_n), restore)
        if not batched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, (h_n, c_n)

    def explain(self, input, hx=None, resets=None):
        """Which path a call with these takes, its tiles and warps, and the reason. Runs nothing.

        Args: as a call has them; of the tensors only sizes, dtype, device and whether a gradient is
            asked for count. Gradient mode, autocast and precision are those of the moment.
        Returns: lstm.Plan, which prints well.
        Raises: what the call raises for resets that do not go with the input.
        """
        return self._explain(input, hx, resets, self._weights())

    def _explain(self, input, hx, resets, weights):
        x = input.data if isinstance(input, PackedSequence) else input
        plan = plans.refusal(x) or self._plan(input, x, hx, weights)
        if resets is not None and isinstance(x, torch.Tensor):
            check_resets(resets, input)
            if plan.path == "torch":
                # Which has none.
                plan = replace(plan, path="reference")
        if plan.path != "torch" and not self._accepts(input, hx, weights):
            return plans.MISFIT
        return plan

    def _plan(self, input, x, hx, weights):
        H, dtype, precision = self.hidden_size, compute_dtype(x), fp32_precision()
        T, B = self._steps_and_batch(input)
        # As in streaming inference. A launch does such a step of one direction, not projected.
        if T == 1 and x is input and not self.bidirectional and not self.proj_size:
            states = hx if two_tensors(hx) else ()
            if not differentiable((*weights, x, *states)):
                plan = plans.cell_plan(
                    self.input_size, H, B, dtype, plans.capability(x.device), plans.interpreted(),
                    precision, self.num_layers,
                )  # fmt: skip
                if plan.path == "fused":
                    return plan
        layers = plans.joinable(T, self.num_layers, self.proj_size)
        return plans.plan_on(x.device, H, B, dtype, precision, self.bidirectional, layers)

    def _steps_and_batch(self, input):
        """Steps and sequences; 0 where nobody could say."""
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes
            known = isinstance(sizes, torch.Tensor) and sizes.dim() == 1 and len(sizes) > 0
            return (len(sizes), int(sizes[0])) if known else (0, 0)
        shape = input.shape
        if len(shape) != 3:
            return shape[0] if shape else 0, 1
        return (shape[1], shape[0]) if self.batch_first else (shape[0], shape[1])

    def _accepts(self, input, hx, weights):
        """Whether shapes, dtypes and devices are as the kernels take them."""
        x = input
        if isinstance(input, PackedSequence):
            x, batch_sizes, *_ = input
            if x.dim() != 2 or not Packing.valid(batch_sizes, len(x)):
                return False
        I, H, L, P = self.input_size, self.hidden_size, self.num_layers, self.proj_size
        D, shape, tensors = 2 if self.bidirectional else 1, x.shape, [x, *weights]
        if len(shape) not in (2, 3) or shape[-1] != I or 0 in shape:
            return False
        # A replaced parameter may have any shape, and the kernels would read past its end.
        if list(map(shape_of, weights)) != weight_sizes(I, H, L, self.bias, D, P):
            return False
        if hx is not None:
            if not two_tensors(hx):
                return False
            batch = self._steps_and_batch(input)[1:] if x is not input or x.dim() == 3 else ()
            if hx[0].shape != (L * D, *batch, P or H) or hx[1].shape != (L * D, *batch, H):
                return False
            tensors += hx
        return alike(tensors)

    def _check_packed_states(self, input, hx):
        """nn.LSTM looks at no sizes of these, and of some it writes past the end (2.14)."""
        if hx is None:
            return
        _, batch = self._steps_and_batch(input)
        if batch and isinstance(hx, (tuple, list)) and two_tensors(hx[:2]):
            rows = self.num_layers * (2 if self.bidirectional else 1)
            for n, size in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
                message = f"Expected hidden[{n}] size {{}}, got {{}}"
                self.check_hidden_size(hx[n], (rows, batch, size), message)

    def _weights(self):
        """The weights in nn.LSTM's order: parameters, or what a parametrization put there."""
        own, names = self._parameters, self._flat_weights_names
        try:
            return [own[name] for name in names]
        except KeyError:
            return [own[name] if name in own else getattr(self, name) for name in names]

    def _dropout_masks(self, input, D):
        """What multiplies the outputs between layers, drawn as nn.LSTM draws it on a CPU."""
        if not self.training or self.num_layers == 1:
            return None
        size = (*input.shape[:-1], D * (self.proj_size or self.hidden_size))
        return [F.dropout(input.new_ones(size), self.dropout) for _ in range(self.num_layers - 1)]
