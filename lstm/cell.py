"""LSTMCell: torch.nn.LSTMCell's interface, one step in one launch."""

import torch
from torch import nn

from . import plan as plans
from . import reference
from .checks import alike, beyond_kernels, differentiable, two_tensors
from .pieces import contiguous
from .precision import autocasts, compute_dtype, matmul_fp32_precision, outside_autocast
from .tracing import scripted, traced_call


class LSTMCell(nn.LSTMCell):
    """A drop-in torch.nn.LSTMCell: same constructor, parameters, state_dict, outputs and errors.

        cell = LSTMCell(28, 128, device="cuda")
        h_1, c_1 = cell(input, (h_0, c_0))

    Args, shapes, returns and errors are those of torch.nn.LSTMCell, of which it is a subclass:
    (input_size, hidden_size, bias=True, device=None, dtype=None).

    Both products and the cell are one kernel. Calls it does not serve (`explain` tells which, and
    why) run PyTorch's own, as they do under torch.compile.

    Numerics: float32 follows torch.backends.cuda.matmul.fp32_precision, as nn.LSTMCell does on a
    GPU; its default, "ieee", is float32's own precision. Sums, cell and activations are float32 in
    every dtype.

    Source: equations as in torch.nn.LSTMCell.
    """

    def __prepare_scriptable__(self):
        return scripted(self, LSTMCell, nn.LSTMCell)

    def forward(self, input, hx=None):
        """nn.LSTMCell's forward.

        Args: input (B, I), or (I,) unbatched; hx: (h_0, c_0), each (B, H), or (H,); zeros if None.
        Returns: h_1, c_1, with hx's shapes.
        Raises: what nn.LSTMCell raises.
        """
        if torch.compiler.is_compiling():
            return super().forward(input, hx)
        plan = self.explain(input, hx)
        if plan.path == "torch":
            if isinstance(input, torch.fx.Proxy):
                return traced_call(self, input, hx=hx)
            self._check_one_unit(input, hx)
            return super().forward(input, hx)
        tensors = [input, *(hx or (None, None)), *self._weights()]
        if autocasts(input):
            dtype = compute_dtype(input)
            tensors = [x if x is None else x.to(dtype) for x in tensors]
        if input.dim() == 1:
            tensors[:3] = [x if x is None else x.unsqueeze(0) for x in tensors[:3]]
        if plan.path == "reference":
            h_1, c_1 = _one_step(*tensors)
        else:
            h_1, c_1 = lstm_cell(*tensors, dict(plan.tile))
        return (h_1.squeeze(0), c_1.squeeze(0)) if input.dim() == 1 else (h_1, c_1)

    def explain(self, input, hx=None):
        """Which path a call with these takes, its tiles and warps, and the reason. Runs nothing.

        Args: as a call has them.
        Returns: lstm.Plan, which prints well.
        """
        plan = plans.refusal(input) or plans.cell_plan(
            self.input_size,
            self.hidden_size,
            len(input) if input.dim() == 2 else 1,
            compute_dtype(input),
            plans.capability(input.device),
            plans.interpreted(),
            matmul_fp32_precision(),
        )
        return plan if plan.path == "torch" or self._accepts(input, hx) else plans.MISFIT

    def _accepts(self, input, hx):
        """Whether shapes, dtypes and devices are as the kernel takes them."""
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            return False
        rows, weights = 4 * self.hidden_size, self._weights()
        # A replaced parameter may have any shape, and the kernel would read past its end.
        sizes = (rows, self.input_size), (rows, self.hidden_size), (rows,), (rows,)
        weights = [(x, size) for x, size in zip(weights, sizes, strict=True) if x is not None]
        if len(weights) == 3 or any(x.shape != size for x, size in weights):
            return False
        tensors = [input, *(x for x, _ in weights)]
        if hx is not None:
            shape = (*input.shape[:-1], self.hidden_size)
            if not two_tensors(hx) or any(x.shape != shape for x in hx):
                return False
            tensors += hx
        return alike(tensors)

    def _check_one_unit(self, input, hx):
        """nn.LSTMCell takes a batch of one unit for no batch, and crashes (2.14)."""
        if self.hidden_size > 1 or not isinstance(input, torch.Tensor) or input.dim() != 1:
            return
        if isinstance(hx, (tuple, list)) and two_tensors(hx[:2]) and hx[0].dim() == 2:
            size = tuple(hx[0].shape)
            raise RuntimeError(f"hidden0 is a batch, and input is not: expected (1,), got {size}")

    def _weights(self):
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


def lstm_cell(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, tile):
    """One step of one layer on the kernels, differentiable.

        i, f, g, o = split(W_ih x + b_ih + W_hh h_0 + b_hh)
        c_1 = sigmoid(f) * c_0 + sigmoid(i) * tanh(g);   h_1 = sigmoid(o) * tanh(c_1)

    Shapes: input (B, I), any strides; h_0, c_0 (B, H), or both None for zeros; weight_ih (4H, I);
        weight_hh (4H, H); biases (4H,), or both None; tile: Plan.tile, as a dict.
    Returns: h_1, c_1 (B, H), in input.dtype.
    """
    tensors = input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh
    if differentiable(tensors):
        return _LSTMCell.apply(tile, *tensors)
    return _forward(tile, *tensors, save=False)[:2]


class _LSTMCell(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tile, *tensors):
        h_1, c_1, gates = _forward(tile, *tensors, save=True)
        ctx.tile = tile
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gates, c_1, *tensors)
        return h_1, c_1

    @staticmethod
    def backward(ctx, grad_h_1, grad_c_1):
        gates, c_1, *inputs = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if beyond_kernels((grad_h_1, grad_c_1)):
            grads = reference.backward(_one_step, inputs, needs, (grad_h_1, grad_c_1))
        else:
            with torch.cuda.device_of(gates), outside_autocast(gates):
                grads = _backward(grad_h_1, grad_c_1, gates, c_1, *inputs, needs, ctx.tile)
        return None, *grads


def _forward(tile, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, save):
    """h_1, c_1, and the gates if save."""
    from .kernels.step import lstm_step

    B, H = len(input), weight_hh.shape[1]
    h_1, c_1 = input.new_empty(B, H), input.new_empty(B, H)
    gates = input.new_empty(B, 4, H) if save else None
    weights = map(contiguous, (weight_ih, weight_hh, bias_ih, bias_hh))
    with torch.cuda.device_of(input):
        lstm_step(_rows(input), *weights, _rows(h_0), _rows(c_0), h_1, c_1, None, gates, tile)
    return h_1, c_1, gates


def _backward(
    grad_h_1, grad_c_1, gates, c_1, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
    needs, tile,
):  # fmt: skip
    """Gradients of what forward was given; None for those not needed."""
    from .kernels.step import lstm_step_backward

    grads = dict.fromkeys(("input", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    needed = dict(zip(grads, needs, strict=True))
    grad_gates = torch.empty_like(gates)
    if needed["c_0"]:
        grads["c_0"] = torch.empty_like(c_1)
    lstm_step_backward(
        gates, _rows(c_0), c_1, contiguous(grad_h_1), contiguous(grad_c_1),
        grad_gates, grads["c_0"], tile,
    )  # fmt: skip
    grad_gates = grad_gates.view(len(input), -1)
    if needed["input"]:
        grads["input"] = grad_gates @ weight_ih
    if needed["h_0"]:
        grads["h_0"] = grad_gates @ weight_hh
    if needed["weight_ih"]:
        grads["weight_ih"] = grad_gates.t() @ input
    if needed["weight_hh"]:
        grads["weight_hh"] = torch.zeros_like(weight_hh) if h_0 is None else grad_gates.t() @ h_0
    if needed["bias_ih"] or needed["bias_hh"]:
        # The same for both, but not the same numbers in memory, which callers may write to.
        sums = zip(("bias_ih", "bias_hh"), grad_gates.expand(2, -1, -1).sum(1), strict=True)
        grads |= {name: grad for name, grad in sums if needed[name]}
    return grads.values()


def _one_step(input, h_0, c_0, *weights):
    """`lstm_cell` by the equations."""
    h_0, c_0 = (x if x is None else x[None] for x in (h_0, c_0))
    weights = tuple(x for x in weights if x is not None)
    _, h_n, c_n = reference.lstm(input[None], h_0, c_0, [weights])
    return h_n[0], c_n[0]


def _rows(x):
    """Each row contiguous, as far apart as they are."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()
