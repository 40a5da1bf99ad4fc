"""Several layers, in one direction or both, on the kernels, as one differentiable function."""

import torch

from . import reference
from .precision import matmul_in


def lstm(input, h_0, c_0, layers, masks, tile, precision, D=1, packing=None, at_once=0):
    """A stack of LSTM layers over a whole sequence.

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

    and h_t = W_hr h_t where it is projected.

    Shapes: D directions, 1 or 2; P numbers in h_t, H where it is not projected; input (T, B, I),
        any strides; h_0 (L D, B, P), c_0 (L D, B, H), or None for zeros; layers: L D tuples,
        directions of a layer side by side, of weight_ih (4H, I), above the first layer (4H, D P),
        weight_hh (4H, P), with bias bias_ih and bias_hh (4H,), projected weight_hr (P, H); masks:
        None, or L - 1 dropout masks (T, B, D P) that multiply the output of all layers but the
        last; tile: Plan.tile, as a dict; precision: of float32 products, "tf32" or "ieee".
        Packed: packing says where the rows lie, and one dimension of rows stands for T and B.
        at_once: Plan.at_once.
    Returns: output (T, B, D P) of the last layer; h_n (L D, B, P), c_n (L D, B, H), all in
        input.dtype.
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
        options = len(layers), masks, tile, precision, D, packing, at_once
        return _LSTM.apply(*options, input, h_0, c_0, *weights)
    with torch.cuda.device_of(input), matmul_in(precision):
        return _forward(input, h_0, c_0, layers, masks, tile, D, packing, at_once, save=False)[:3]


class _LSTM(torch.autograd.Function):
    """One node for the whole stack: a node for each layer would cost 20 us of host time more."""

    @staticmethod
    def forward(ctx, count, masks, tile, precision, D, packing, at_once, input, h_0, c_0, *weights):
        layers = by_layer(weights, count)
        with torch.cuda.device_of(input), matmul_in(precision):
            output, h_n, c_n, saved = _forward(
                input, h_0, c_0, layers, masks, tile, D, packing, at_once, save=True
            )
        ctx.count, ctx.tile, ctx.precision, ctx.D, ctx.packing = count, tile, precision, D, packing
        ctx.at_once = at_once
        ctx.num_masks = len(masks or ())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(masks or ()), *saved, input, h_0, c_0, *weights)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx, *grads):
        count, D, num_masks = ctx.count, ctx.D, ctx.num_masks
        num_saved = 4 * count // D
        masks = ctx.saved_tensors[:num_masks]
        saved = ctx.saved_tensors[num_masks : num_masks + num_saved]
        inputs = ctx.saved_tensors[num_masks + num_saved :]
        needs = ctx.needs_input_grad[7:]
        if torch.is_grad_enabled():
            sizes = ctx.packing and ctx.packing.batch_sizes

            def function(input, h_0, c_0, *weights):
                layers = by_layer(weights, count)
                return reference.lstm(input, h_0, c_0, layers, masks, D=D, batch_sizes=sizes)

            grads = reference.backward(function, inputs, needs, grads)
            return None, None, None, None, None, None, None, *grads
        input, h_0, _, *weights = inputs
        needs_input, needs_h_0, needs_c_0, *needs_weights = needs
        with torch.cuda.device_of(input), matmul_in(ctx.precision):
            grads = _backward(
                *grads, input, h_0, by_layer(weights, count), masks, by_layer(saved, count // D),
                ctx.tile, D, ctx.packing, ctx.at_once,
                needs_input, needs_h_0, needs_c_0, by_layer(needs_weights, count),
            )  # fmt: skip
        return None, None, None, None, None, None, None, *grads


def by_layer(flat, count):
    """A flat list in `count` tuples of one length."""
    size = len(flat) // count
    return [tuple(flat[at : at + size]) for at in range(0, len(flat), size)]


def _forward(input, h_0, c_0, layers, masks, tile, D, packing, at_once, save):
    """output, h_n, c_n, and, for each layer, its output, hidden, gates and cells if save."""
    from .kernels.forward import lstm_forward

    rows, count, (H, P) = input.shape[:-1], len(layers), _sizes(layers)
    T, B = (packing.T, packing.B) if packing else rows
    # Not two views of one tensor: nobody could change them in place.
    h_n, c_n = input.new_empty(count, B, P), input.new_empty(count, B, H)
    h_0, c_0 = contiguous(h_0), contiguous(c_0)
    grid, size = _grid(H, B, tile), tile["BLOCK_H"] * tile["BLOCK_B"]
    sliced = len(grid) > 1
    saved = []
    x = input
    for layer, directions in enumerate(by_layer(layers, count // D)):
        directions = [reference.named(weights) for weights in directions]
        projected = directions[0][-1] is not None
        x = x.reshape(rows.numel(), -1)
        gates_ih = input.new_empty(D, len(x), 4 * H)
        for (weight_ih, _, *biases, _), out in zip(directions, gates_ih, strict=True):
            if biases[0] is None:
                torch.mm(x, weight_ih.t(), out=out)
            else:
                torch.addmm(biases[0] + biases[1], x, weight_ih.t(), out=out)
        h = _at(h_0, layer, D)
        if h is not None and (packing or projected or sliced):
            # Packed sequences begin at different steps, the kernel's h is not projected, and
            # slices exchange what is below 1.
            for n, (_, weight_hh, *_) in enumerate(directions):
                _add_at_end(gates_ih[n], h[n] @ weight_hh.t(), n, packing)
            h = None
        # No view of another tensor: autograd would forbid to change it in place.
        output = hidden = input.new_empty(*rows, D * H)
        last = _at(h_n, layer, D)
        if projected:
            output, last = input.new_empty(*rows, D * P), input.new_empty(D, B, H)
        gates = cells = None
        if save:
            gates = input.new_empty(D, *grid, T, 4, size)
            cells = input.new_empty(D, *grid, T + 1, size)
            saved += [output, hidden, gates, cells]
        lstm_forward(
            gates_ih, _stack([_recurrent(weights) for weights in directions]),
            h, _at(c_0, layer, D), hidden.view(*rows, D, H), last, _at(c_n, layer, D),
            gates, cells, tile, packing and packing.offsets,
            _meeting(input, D, grid, tile, at_once, backward=False) if sliced else None,
        )  # fmt: skip
        if projected:
            for n, (*_, weight_hr) in enumerate(directions):
                torch.mm(_one(hidden, n, D), weight_hr.t(), out=_one(output, n, D))
                torch.mm(last[n], weight_hr.t(), out=h_n[layer * D + n])
        x = output * masks[layer] if layer < len(masks or ()) else output
    return x, h_n, c_n, saved


def _backward(
    grad_output, grad_h_n, grad_c_n, input, h_0, layers, masks, saved,
    tile, D, packing, at_once, needs_input, needs_h_0, needs_c_0, needs_weights,
):  # fmt: skip
    """Gradients of input, h_0, c_0 and all weights; None for those not needed."""
    from .kernels.backward import lstm_backward

    rows, count, (H, P) = input.shape[:-1], len(layers), _sizes(layers)
    B = packing.B if packing else rows[1]
    grid = _grid(H, B, tile)
    sliced = len(grid) > 1
    grad_h_n, grad_c_n, h_0 = contiguous(grad_h_n), contiguous(grad_c_n), contiguous(h_0)
    grad_h_0 = input.new_empty(count, B, P) if needs_h_0 else None
    grad_c_0 = input.new_empty(count, B, H) if needs_c_0 else None
    grad_weights = [[None] * len(weights) for weights in layers]
    for layer in reversed(range(len(saved))):
        first = layer * D
        directions = [reference.named(weights) for weights in layers[first : first + D]]
        projected = directions[0][-1] is not None
        _, hidden, gates, cells = saved[layer]
        grad_gates = input.new_empty(D, *rows, 4, H)
        grad_last, grad_first = _at(grad_h_n, layer, D), _at(grad_h_0, layer, D)
        grad_hidden, to_h_0 = grad_output, None if sliced else grad_first
        if projected:
            # The kernel's h is what W_hr projects, and it had no h_0.
            grad_output = contiguous(grad_output)
            if grad_output is None:
                grad_output = input.new_zeros(*rows, D * P)
            elif grad_last is not None:
                grad_output = grad_output.clone(memory_format=torch.contiguous_format)
            for n in range(D if grad_last is not None else 0):
                _add_at_end(_one(grad_output, n, D), grad_last[n], 1 - n, packing)
            grad_hidden, grad_last, to_h_0 = input.new_empty(*rows, D * H), None, None
            for n, (*_, weight_hr) in enumerate(directions):
                torch.mm(_one(grad_output, n, D), weight_hr, out=_one(grad_hidden, n, D))
        lstm_backward(
            gates, cells, _stack([_recurrent(weights).t() for weights in directions]),
            _aligned(grad_hidden), grad_last, _at(grad_c_n, layer, D),
            grad_gates, to_h_0, _at(grad_c_0, layer, D), tile, B, packing and packing.offsets,
            _meeting(input, D, grid, tile, at_once, backward=True) if sliced else None,
        )  # fmt: skip
        grad_gates = grad_gates.view(D, rows.numel(), 4 * H)
        if (projected or sliced) and needs_h_0:
            for n, (_, weight_hh, *_) in enumerate(directions):
                torch.mm(_at_end(grad_gates[n], n, B, packing), weight_hh, out=grad_first[n])
        x = None
        if any(needs_weights[n][0] for n in range(first, first + D)):
            x = input if layer == 0 else saved[layer - 1][0]
            x = x * masks[layer - 1] if masks and layer > 0 else x
            x = x.reshape(rows.numel(), -1)
        for n, weights in enumerate(directions):
            grad_weights[first + n] = _grad_weights(
                weights, grad_gates[n], x, _one(hidden, n, D), B,
                None if h_0 is None else h_0[first + n],
                _one(grad_output, n, D) if projected else None,
                n, packing, needs_weights[first + n],
            )  # fmt: skip
        grad_output = None
        if not (needs_input or needs_h_0 or needs_c_0 or any(map(any, needs_weights[:first]))):
            break
        if layer > 0 or needs_input:
            grad_output = grad_gates[0] @ directions[0][0]
            if D == 2:
                grad_output = grad_output.addmm_(grad_gates[1], directions[1][0])
            grad_output = grad_output.view(*rows, -1)
        if masks and layer > 0:
            grad_output = grad_output * masks[layer - 1]
    return grad_output, grad_h_0, grad_c_0, *(grad for layer in grad_weights for grad in layer)


def _grad_weights(
    weights, grad_gates, x, hidden, B, h_0, grad_output, reverse, packing, needs
):  # fmt: skip
    """Gradients of one direction's weights, for those needed. All have a row for each step of each
    sequence: grad_gates (rows, 4H), x (rows, I), hidden (rows, H), grad_output (rows, P) or None.
    """
    _, weight_hh, *_, weight_hr = weights
    needs_ih, needs_hh, *needs_bias = needs
    grad_hh = grad_hr = None
    needs_hr = needs_bias.pop() if weight_hr is not None else False
    if needs_hh or needs_hr:
        initial = None if weight_hr is not None else h_0
        grad_hh = _grad_recurrent(grad_gates, hidden, initial, B, reverse, packing)
    if weight_hr is not None:
        # So far it is of W_hh W_hr.
        if needs_hr:
            grad_hr = (grad_output.t() @ hidden).addmm_(weight_hh.t(), grad_hh)
        if needs_hh:
            grad_hh = grad_hh @ weight_hr.t()
            if h_0 is not None:
                grad_hh.addmm_(_at_end(grad_gates, reverse, B, packing).t(), h_0)
    grads = [grad_gates.t() @ x if needs_ih else None, grad_hh if needs_hh else None]
    grads += grad_biases(grad_gates, needs_bias)
    return grads if weight_hr is None else [*grads, grad_hr]


def grad_biases(grad_gates, needs):
    """Gradients of bias_ih and bias_hh, for those needed; [] if there are none. grad_gates: (rows,
    4H).
    """
    if not any(needs):
        return [None for _ in needs]
    # The same for both, but not the same tensor, which callers may write to.
    grad = grad_gates.sum(0)
    return [grad if needs[0] else None, grad.clone() if needs[1] else None]


def _grad_recurrent(grad_gates, h, h_0, B, reverse, packing):
    """Gradient of what multiplies h in the kernels: each row of h met the gates of the step taken
    next, h_0 those of the first.
    """
    if packing:
        initial = h.new_zeros(B, h.shape[1]) if h_0 is None else h_0
        h = torch.cat((h, initial)).index_select(0, packing.previous[reverse])
        return grad_gates.t() @ h
    gates, h = (grad_gates[:-B], h[B:]) if reverse else (grad_gates[B:], h[:-B])
    grad = gates.t() @ h
    if h_0 is not None:
        grad.addmm_(_at_end(grad_gates, reverse, B).t(), h_0)
    return grad


def _grid(H, B, tile):
    """Tiles, and slices if there are several."""
    tiles, slices = -(-B // tile["BLOCK_B"]), -(-H // tile["BLOCK_H"])
    return (tiles, slices) if tile["BLOCK_K"] > tile["BLOCK_H"] else (tiles,)


def _meeting(input, D, grid, tile, at_once, backward):
    """What slices exchange through (kernels/slices.py)."""
    from .kernels.slices import Meeting

    (tiles, slices), size = grid, tile["BLOCK_H"] * tile["BLOCK_B"]
    of_tile = (
        (tile["BLOCK_K"] // tile["BLOCK_H"], slices, size)
        if backward
        else (tile["BLOCK_K"] * tile["BLOCK_B"],)
    )
    exchange = input.new_zeros(2, D, tiles, *of_tile, dtype=torch.float32)
    states = None
    if at_once == 0:
        states = input.new_empty(2, D, tiles, slices, size, dtype=torch.float32)
    return Meeting(exchange, states, at_once)


def _sizes(layers):
    """Of a cell's state and of h: H, and P where it is projected."""
    rows, columns = layers[0][1].shape
    return rows // 4, columns


def _recurrent(weights):
    """What multiplies the kernels' h, which is not projected: W_hh, or W_hh W_hr, (4H, H).

    W_hh (W_hr h) = (W_hh W_hr) h: to the kernels a projected LSTM is one that is not, and |h| < 1.
    """
    _, weight_hh, *_, weight_hr = weights
    return weight_hh if weight_hr is None else weight_hh @ weight_hr


def _one(x, direction, D):
    """Rows of one direction: (..., D N) as (rows, N)."""
    return x.view(-1, D, x.shape[-1] // D)[:, direction]


def _at_end(x, last, B, packing=None):
    """Rows of the first or the last step of each of B sequences."""
    if packing:
        return x.index_select(0, packing.first[last])
    return x[-B:] if last else x[:B]


def _add_at_end(x, addend, last, packing):
    """Add to rows of the first or the last step of each sequence, in place."""
    if packing:
        x.index_add_(0, packing.first[last], addend)
    else:
        _at_end(x, last, len(addend)).add_(addend)


def _stack(matrices):
    """Matrices one after the other in memory; a single one that lies so is not copied."""
    return matrices[0].contiguous() if len(matrices) == 1 else torch.stack(matrices)


def contiguous(x):
    return x if x is None else x.contiguous()


def _aligned(x):
    """Contiguous, and where the loop's vector loads can read it: elsewhere it compiles without."""
    x = contiguous(x)
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


def _at(x, layer, D):
    """The D states of a layer."""
    return x if x is None else x[layer * D : (layer + 1) * D]
