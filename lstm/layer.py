"""Several layers, in one direction or both, on the kernels, as one differentiable function."""

import torch

from . import reference
from .precision import matmul_in


def lstm(input, h_0, c_0, layers, masks, tile, precision, D=1, packing=None):
    """A stack of LSTM layers over a whole sequence.

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

    Shapes: D directions, 1 or 2; input (T, B, I), any strides; h_0, c_0 (L D, B, H), or None for
        zeros; layers: L D tuples, directions of a layer side by side, of weight_ih (4H, I), above
        the first layer (4H, D H), weight_hh (4H, H), and, with bias, bias_ih and bias_hh (4H,);
        masks: None, or L - 1 dropout masks (T, B, D H) that multiply the output of all layers but
        the last; tile: Plan.tile, as a dict; precision: of float32 products, "tf32" or "ieee".
        Packed: packing says where the rows lie, and one dimension of rows stands for T and B.
    Returns: output (T, B, D H) of the last layer; h_n, c_n (L D, B, H), all in input.dtype.
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
        options = len(layers), masks, tile, precision, D, packing
        return _LSTM.apply(*options, input, h_0, c_0, *weights)
    with torch.cuda.device_of(input), matmul_in(precision):
        return _forward(input, h_0, c_0, layers, masks, tile, D, packing, save=False)[:3]


class _LSTM(torch.autograd.Function):
    """One node for the whole stack: a node for each layer would cost 20 us of host time more."""

    @staticmethod
    def forward(ctx, count, masks, tile, precision, D, packing, input, h_0, c_0, *weights):
        layers = by_layer(weights, count)
        with torch.cuda.device_of(input), matmul_in(precision):
            output, h_n, c_n, saved = _forward(
                input, h_0, c_0, layers, masks, tile, D, packing, save=True
            )
        ctx.count, ctx.tile, ctx.precision, ctx.D, ctx.packing = count, tile, precision, D, packing
        ctx.num_masks = len(masks or ())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(masks or ()), *saved, input, h_0, c_0, *weights)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx, *grads):
        count, D, num_masks = ctx.count, ctx.D, ctx.num_masks
        num_saved = 3 * count // D
        masks = ctx.saved_tensors[:num_masks]
        saved = ctx.saved_tensors[num_masks : num_masks + num_saved]
        inputs = ctx.saved_tensors[num_masks + num_saved :]
        needs = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():
            grads = _differentiable_backward(grads, inputs, needs, masks, count, D, ctx.packing)
            return None, None, None, None, None, None, *grads
        input, h_0, _, *weights = inputs
        needs_input, needs_h_0, needs_c_0, *needs_weights = needs
        with torch.cuda.device_of(input), matmul_in(ctx.precision):
            grads = _backward(
                *grads, input, h_0, by_layer(weights, count), masks, by_layer(saved, count // D),
                ctx.tile, D, ctx.packing,
                needs_input, needs_h_0, needs_c_0, by_layer(needs_weights, count),
            )  # fmt: skip
        return None, None, None, None, None, None, *grads


def _differentiable_backward(grads, inputs, needs, masks, count, D, packing):
    """The gradients by plain torch, for create_graph=True: the kernels' own have no derivative."""
    # Views are new nodes that hang on the caller's graph, so that it ends at them here.
    input, h_0, c_0, *weights = inputs = [x if x is None else x.view_as(x) for x in inputs]
    layers, sizes = by_layer(weights, count), packing and packing.batch_sizes
    outputs = reference.lstm(input, h_0, c_0, layers, masks, D=D, batch_sizes=sizes)
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


def by_layer(flat, count):
    """A flat list in `count` tuples of one length."""
    size = len(flat) // count
    return [tuple(flat[at : at + size]) for at in range(0, len(flat), size)]


def _forward(input, h_0, c_0, layers, masks, tile, D, packing, save):
    """output, h_n, c_n, and, for each layer, its output, gates and cells if save."""
    from .kernels.forward import lstm_forward

    rows, H = input.shape[:-1], layers[0][1].shape[1]
    T, B = (packing.T, packing.B) if packing else rows
    # Not two views of one tensor: nobody could change them in place.
    h_n, c_n = (input.new_empty(len(layers), B, H) for _ in range(2))
    h_0, c_0 = _contiguous(h_0), _contiguous(c_0)
    programs, size = -(-B // tile["BLOCK_B"]), tile["BLOCK_H"] * tile["BLOCK_B"]
    saved = []
    x = input
    for layer, directions in enumerate(by_layer(layers, len(layers) // D)):
        x = x.reshape(rows.numel(), -1)
        gates_ih = input.new_empty(D, len(x), 4 * H)
        for (weight_ih, _, *biases), out in zip(directions, gates_ih, strict=True):
            if biases:
                torch.addmm(biases[0] + biases[1], x, weight_ih.t(), out=out)
            else:
                torch.mm(x, weight_ih.t(), out=out)
        h = _at(h_0, layer, D)
        if packing and h is not None:
            # Sequences begin at different steps, and h_0 may be larger than the kernel's h is.
            for n, (_, weight_hh, *_) in enumerate(directions):
                gates_ih[n].index_add_(0, packing.first[n], h[n] @ weight_hh.t())
            h = None
        # No view of another tensor: autograd would forbid to change it in place.
        output = input.new_empty(*rows, D * H)
        gates = cells = None
        if save:
            gates = input.new_empty(D, programs, T, 4, size)
            cells = input.new_empty(D, programs, T + 1, size)
            saved += [output, gates, cells]
        lstm_forward(
            gates_ih, _stack([weight_hh for _, weight_hh, *_ in directions]),
            h, _at(c_0, layer, D), output.view(*rows, D, H), _at(h_n, layer, D), _at(c_n, layer, D),
            gates, cells, tile, packing and packing.offsets,
        )  # fmt: skip
        x = output * masks[layer] if layer < len(masks or ()) else output
    return x, h_n, c_n, saved


def _backward(
    grad_output, grad_h_n, grad_c_n, input, h_0, layers, masks, saved,
    tile, D, packing, needs_input, needs_h_0, needs_c_0, needs_weights,
):  # fmt: skip
    """Gradients of input, h_0, c_0 and all weights; None for those not needed."""
    from .kernels.backward import lstm_backward

    rows, H = input.shape[:-1], layers[0][1].shape[1]
    B = packing.B if packing else rows[1]
    grad_h_n, grad_c_n, h_0 = _contiguous(grad_h_n), _contiguous(grad_c_n), _contiguous(h_0)
    grad_h_0 = input.new_empty(len(layers), B, H) if needs_h_0 else None
    grad_c_0 = input.new_empty(len(layers), B, H) if needs_c_0 else None
    grad_weights = [[None] * len(layer) for layer in layers]
    for layer in reversed(range(len(saved))):
        first = layer * D
        directions = range(first, first + D)
        output, gates, cells = saved[layer]
        grad_gates = input.new_empty(D, *rows, 4, H)
        lstm_backward(
            gates, cells, _stack([layers[n][1].t() for n in directions]), _aligned(grad_output),
            _at(grad_h_n, layer, D), _at(grad_c_n, layer, D),
            grad_gates, _at(grad_h_0, layer, D), _at(grad_c_0, layer, D), tile, B,
            packing and packing.offsets,
        )  # fmt: skip
        grad_gates = grad_gates.view(D, rows.numel(), 4 * H)
        x = None
        if any(needs_weights[n][0] for n in directions):
            x = input if layer == 0 else saved[layer - 1][0]
            x = x * masks[layer - 1] if masks and layer > 0 else x
            x = x.reshape(rows.numel(), -1)
        for direction, n in enumerate(directions):
            h = output.view(*rows, D, H)[..., direction, :]
            initial = None if h_0 is None else h_0[n]
            grad_weights[n] = _grad_weights(
                grad_gates[direction], x, h, initial, direction, packing, needs_weights[n]
            )
        grad_output = None
        if not (needs_input or needs_h_0 or needs_c_0 or any(map(any, needs_weights[:first]))):
            break
        if layer > 0 or needs_input:
            grad_output = grad_gates[0] @ layers[first][0]
            if D == 2:
                grad_output = grad_output.addmm_(grad_gates[1], layers[first + 1][0])
            grad_output = grad_output.view(*rows, -1)
        if masks and layer > 0:
            grad_output = grad_output * masks[layer - 1]
    return grad_output, grad_h_0, grad_c_0, *(grad for layer in grad_weights for grad in layer)


def _grad_weights(grad_gates, x, output, h_0, reverse, packing, needs):
    """Gradients of one direction's weights, for those needed. Rows: of grad_gates (rows, 4H) and x
    (rows, I); output (T, B, H), or (rows, H) packed.
    """
    needs_ih, needs_hh, *needs_bias = needs
    grads = [grad_gates.t() @ x if needs_ih else None, None, *(None for _ in needs_bias)]
    if needs_hh and packing:
        initial = output.new_zeros(packing.B, output.shape[1]) if h_0 is None else h_0
        h = torch.cat((output, initial)).index_select(0, packing.previous[reverse])
        grads[1] = grad_gates.t() @ h
    elif needs_hh:
        # Each row of output met the gates of the step taken next.
        T, B, H = output.shape
        gates, h = (grad_gates[:-B], output[1:]) if reverse else (grad_gates[B:], output[:-1])
        grads[1] = gates.t() @ h.reshape((T - 1) * B, H)
        if h_0 is not None:
            gates = grad_gates[-B:] if reverse else grad_gates[:B]
            grads[1].addmm_(gates.t(), h_0)
    if any(needs_bias):
        # The same for both, but not the same tensor, which callers may write to.
        grad = grad_gates.sum(0)
        grads[2:] = [grad if needs_bias[0] else None, grad.clone() if needs_bias[1] else None]
    return grads


def _stack(matrices):
    """Matrices one after the other in memory; a single one that lies so is not copied."""
    return matrices[0].contiguous() if len(matrices) == 1 else torch.stack(matrices)


def _contiguous(x):
    return x if x is None else x.contiguous()


def _aligned(x):
    """Contiguous, and where the loop's vector loads can read it: elsewhere it compiles without."""
    x = _contiguous(x)
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


def _at(x, layer, D):
    """The D states of a layer."""
    return x if x is None else x[layer * D : (layer + 1) * D]
