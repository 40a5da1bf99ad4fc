"""Several layers in one direction, on the kernels, as one differentiable function."""

import torch

from . import reference
from .precision import matmul_in


def lstm(input, h_0, c_0, layers, masks, tile, precision):
    """A stack of LSTM layers over a whole sequence.

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

    Shapes: input (T, B, I), any strides; h_0, c_0 (L, B, H), or None for zeros; layers: L tuples
        of weight_ih (4H, I), in layers above the first (4H, H), weight_hh (4H, H), and, with bias,
        bias_ih and bias_hh (4H,); masks: None, or L - 1 dropout masks (T, B, H) that multiply the
        output of all layers but the last; tile: Plan.tile, as a dict; precision: of float32
        products, "tf32" or "ieee".
    Returns: output (T, B, H) of the last layer; h_n, c_n (L, B, H), all in input.dtype.
    Numerics: products accumulate and c_t lives in float32; h_t is rounded to the operand dtype
        before W_hh reads it, and to input.dtype where it is written.
    Source: equations as in torch.nn.LSTM; forget gate from Gers et al., 2000,
        doi.org/10.1162/089976600300015015.
    """
    weights = [weight for layer in layers for weight in layer]
    # Not left to the Function: its ctx.needs_input_grad stays true under no_grad.
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (input, h_0, c_0, *weights)
    ):
        return _LSTM.apply(len(layers), masks, tile, precision, input, h_0, c_0, *weights)
    with torch.cuda.device_of(input), matmul_in(precision):
        return _forward(input, h_0, c_0, layers, masks, tile, save=False)[:3]


class _LSTM(torch.autograd.Function):
    """One node for the whole stack: a node for each layer would cost 20 us of host time more."""

    @staticmethod
    def forward(ctx, num_layers, masks, tile, precision, input, h_0, c_0, *weights):
        layers = _by_layer(weights, num_layers)
        with torch.cuda.device_of(input), matmul_in(precision):
            output, h_n, c_n, saved = _forward(input, h_0, c_0, layers, masks, tile, save=True)
        ctx.num_layers, ctx.tile, ctx.precision = num_layers, tile, precision
        ctx.num_masks = len(masks or ())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(masks or ()), *saved, input, h_0, c_0, *weights)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx, *grads):
        L, num_masks = ctx.num_layers, ctx.num_masks
        masks = ctx.saved_tensors[:num_masks]
        saved = ctx.saved_tensors[num_masks : num_masks + 3 * L]
        inputs = ctx.saved_tensors[num_masks + 3 * L :]
        needs = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            return None, None, None, None, *_differentiable_backward(grads, inputs, needs, masks, L)
        input, h_0, _, *weights = inputs
        needs_input, needs_h_0, needs_c_0, *needs_weights = needs
        with torch.cuda.device_of(input), matmul_in(ctx.precision):
            grads = _backward(
                *grads, input, h_0, _by_layer(weights, L), masks, _by_layer(saved, L), ctx.tile,
                needs_input, needs_h_0, needs_c_0, _by_layer(needs_weights, L),
            )  # fmt: skip
        return None, None, None, None, *grads


def _differentiable_backward(grads, inputs, needs, masks, num_layers):
    """The gradients by plain torch, for create_graph=True: the kernels' own have no derivative."""
    # Views are new nodes that hang on the caller's graph, so that it ends at them here.
    input, h_0, c_0, *weights = inputs = [x if x is None else x.view_as(x) for x in inputs]
    outputs = reference.lstm(input, h_0, c_0, _by_layer(weights, num_layers), masks)
    given = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if grad is not None]
    needed = iter(
        torch.autograd.grad(
            [x for x, _ in given],
            [x for x, need in zip(inputs, needs, strict=True) if need],
            [grad for _, grad in given],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(needed) if need else None for need in needs]


def _by_layer(flat, num_layers):
    size = len(flat) // num_layers
    return [tuple(flat[at : at + size]) for at in range(0, len(flat), size)]


def _forward(input, h_0, c_0, layers, masks, tile, save):
    """output, h_n, c_n, and, for each layer, its output, gates and cells if save."""
    from .kernels.forward import lstm_forward

    T, B, _ = input.shape
    H = layers[0][1].shape[1]
    # Not two views of one tensor: nobody could change them in place.
    h_n, c_n = (input.new_empty(len(layers), B, H) for _ in range(2))
    h_0, c_0 = _contiguous(h_0), _contiguous(c_0)
    programs, size = -(-B // tile["BLOCK_B"]), tile["BLOCK_H"] * tile["BLOCK_B"]
    saved = []
    x = input
    for layer, (weight_ih, weight_hh, *biases) in enumerate(layers):
        x = x.reshape(T * B, -1)
        if biases:
            gates_ih = torch.addmm(biases[0] + biases[1], x, weight_ih.t())
        else:
            gates_ih = x @ weight_ih.t()
        output = input.new_empty(T, B, H)
        gates = cells = None
        if save:
            gates = input.new_empty(programs, T, 4, size)
            cells = input.new_empty(programs, T + 1, size)
            saved += [output, gates, cells]
        lstm_forward(
            gates_ih, weight_hh.contiguous(), _at(h_0, layer), _at(c_0, layer),
            output, h_n[layer], c_n[layer], gates, cells, tile,
        )  # fmt: skip
        x = output * masks[layer] if layer < len(masks or ()) else output
    return output, h_n, c_n, saved


def _backward(
    grad_output, grad_h_n, grad_c_n, input, h_0, layers, masks, saved,
    tile, needs_input, needs_h_0, needs_c_0, needs_weights,
):  # fmt: skip
    """Gradients of input, h_0, c_0 and all weights; None for those not needed."""
    from .kernels.backward import lstm_backward

    T, B, _ = input.shape
    H = layers[0][1].shape[1]
    grad_h_n, grad_c_n, h_0 = _contiguous(grad_h_n), _contiguous(grad_c_n), _contiguous(h_0)
    grad_h_0 = input.new_empty(len(layers), B, H) if needs_h_0 else None
    grad_c_0 = input.new_empty(len(layers), B, H) if needs_c_0 else None
    grad_weights = [[None] * len(layer) for layer in layers]
    for layer in reversed(range(len(layers))):
        weight_ih, weight_hh, *_ = layers[layer]
        needs_ih, needs_hh, *needs_bias = needs_weights[layer]
        output, gates, cells = saved[layer]
        grad_gates = input.new_empty(T, B, 4, H)
        lstm_backward(
            gates, cells, weight_hh.t().contiguous(), _aligned(grad_output),
            _at(grad_h_n, layer), _at(grad_c_n, layer),
            grad_gates, _at(grad_h_0, layer), _at(grad_c_0, layer), tile,
        )  # fmt: skip
        grad_gates = grad_gates.view(T * B, 4 * H)
        if needs_ih:
            x = input if layer == 0 else saved[layer - 1][0]
            x = x * masks[layer - 1] if masks and layer > 0 else x
            grad_weights[layer][0] = grad_gates.t() @ x.reshape(T * B, -1)
        if needs_hh:
            # Row t of output met the gates of step t + 1.
            grad = grad_gates[B:].t() @ output[:-1].view((T - 1) * B, H)
            if h_0 is not None:
                grad = grad.addmm_(grad_gates[:B].t(), h_0[layer])
            grad_weights[layer][1] = grad
        if any(needs_bias):
            # The same for both, but not the same tensor, which callers may write to.
            grad = grad_gates.sum(0)
            grad_weights[layer][2:] = [
                grad if needs_bias[0] else None,
                grad.clone() if needs_bias[1] else None,
            ]
        grad_output = None
        if needs_input or needs_h_0 or needs_c_0 or any(map(any, needs_weights[:layer])):
            if layer > 0 or needs_input:
                grad_output = (grad_gates @ weight_ih).view(T, B, -1)
            if masks and layer > 0:
                grad_output = grad_output * masks[layer - 1]
        else:
            break
    return grad_output, grad_h_0, grad_c_0, *(grad for layer in grad_weights for grad in layer)


def _contiguous(x):
    return x if x is None else x.contiguous()


def _aligned(x):
    """Contiguous, and where the loop's vector loads can read it: elsewhere it compiles without."""
    x = _contiguous(x)
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


def _at(x, layer):
    return x if x is None else x[layer]
