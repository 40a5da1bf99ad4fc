"""Several layers, in one direction or both, on the kernels, as one differentiable function."""

import math
from typing import NamedTuple

import torch

from . import reference
from .checks import differentiable
from .packing import Packing
from .precision import matmul_in


class Call(NamedTuple):
    """How a call runs, as far as its tensors do not say.

    count: layers times directions; D: directions, 1 or 2; precision: of float32 products, "tf32" or
    "ieee"; tile, at_once, one_step: of lstm.Plan, tile as a dict; packing: where packed rows lie,
    else None.
    """

    count: int
    D: int
    precision: str
    tile: dict
    at_once: int = 0
    one_step: bool = False
    packing: Packing | None = None


def lstm(call, input, h_0, c_0, layers, masks=None, resets=None):
    """A stack of LSTM layers over a whole sequence.

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

    and h_t = W_hr h_t where it is projected.

    Shapes: D directions, 1 or 2; P numbers in h_t, H where it is not projected; input (T, B, I),
        any strides; h_0 (L D, B, P), c_0 (L D, B, H), or None for zeros; layers: L D tuples,
        directions of a layer side by side, of weight_ih (4H, I), above the first layer (4H, D P),
        weight_hh (4H, P), with bias bias_ih and bias_hh (4H,), projected weight_hr (P, H); masks:
        None, or L - 1 dropout masks (T, B, D P) that multiply the output of all layers but the
        last; resets: None, or (T, B), bool, where no state passes from the step before.
        Packed: one dimension of rows stands for T and B.
    Returns: output (T, B, D P) of the last layer; h_n (L D, B, P), c_n (L D, B, H), all in
        input.dtype.
    Numerics: products accumulate and c_t lives in float32; h_t is rounded to the operand dtype
        before W_hh reads it, and to input.dtype where it is written.
    Source: equations as in torch.nn.LSTM; forget gate from Gers et al., 2000,
        doi.org/10.1162/089976600300015015.
    """
    weights = [weight for layer in layers for weight in layer]
    # Not left to the Function: its ctx.needs_input_grad stays true under no_grad.
    if differentiable((input, h_0, c_0, *weights)):
        return _LSTM.apply(call, masks, resets, input, h_0, c_0, *weights)
    if call.one_step:
        return _one_step(call, input, h_0, c_0, layers, masks, resets)
    return forward(call, masks, resets, input, h_0, c_0, layers)


class _LSTM(torch.autograd.Function):
    """One node for the whole stack: a node for each layer would cost 20 us of host time more."""

    @staticmethod
    def forward(ctx, call, masks, resets, input, h_0, c_0, *weights):
        layers = by_layer(weights, call.count)
        saved = reserve(call, input, layers)
        outputs = forward(call, masks, resets, input, h_0, c_0, layers, saved)
        ctx.call, ctx.num_masks = call, len(masks or ())
        ctx.set_materialize_grads(False)
        saved = (x for of_layer in saved for x in of_layer)
        ctx.save_for_backward(*(masks or ()), resets, *saved, input, h_0, c_0, *weights)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        call, needs = ctx.call, ctx.needs_input_grad[3:]
        tensors = ctx.saved_tensors
        at, end = ctx.num_masks, len(tensors) - len(needs)
        masks, resets, saved, inputs = (
            tensors[:at],
            tensors[at],
            tensors[at + 1 : end],
            tensors[end:],
        )
        if torch.is_grad_enabled():
            sizes = call.packing and call.packing.batch_sizes

            def function(input, h_0, c_0, *weights):
                layers = by_layer(weights, call.count)
                return reference.lstm(input, h_0, c_0, layers, masks, resets, call.D, sizes)

            grads = reference.backward(function, inputs, needs, grads)
        else:
            grads = backward(call, grads, masks, resets, saved, inputs, needs)
        return None, None, None, *grads


def by_layer(flat, count):
    """A flat list in `count` tuples of one length."""
    size = len(flat) // count
    return [tuple(flat[at : at + size]) for at in range(0, len(flat), size)]


def reserve(call, input, layers, capacity=None):
    """What `forward` fills for `backward`: of each layer its output, what was projected to it (else
    None), gates, cells and W_hh transposed (None of slices), as kernels/forward.py has them.

    capacity: sequences to have room for, at least those of all tiles.
    """
    D, tile, (H, P), rows = call.D, call.tile, sizes(layers), input.shape[:-1]
    projected = reference.named(layers[0])[-1] is not None
    T, B = (call.packing.T, call.packing.B) if call.packing else rows
    tiles, *slices = _grid(H, B, tile)
    # Of one step
    numbers = D * math.prod(slices) * tile["BLOCK_H"] * (capacity or tiles * tile["BLOCK_B"])
    saved = []
    for _ in range(call.count // D):
        output = input.new_empty(*rows, D * P)
        hidden = input.new_empty(*rows, D * H) if projected else None
        gates, cells = input.new_empty(4 * T * numbers), input.new_empty((T + 1) * numbers)
        weight_hh_t = input.new_empty(D, H, 4 * H) if not slices else None
        saved.append([output, hidden, gates, cells, weight_hh_t])
    return saved


def forward(call, masks, resets, input, h_0, c_0, layers, saved=None):
    """output, h_n, c_n. Args: as `lstm`; saved: None, or what `reserve` gave, to fill."""
    with torch.cuda.device_of(input), matmul_in(call.precision):
        return _forward(call, masks, resets, input, h_0, c_0, layers, saved)


def backward(call, grads, masks, resets, saved, inputs, needs):
    """Gradients of inputs, which are input, h_0, c_0 and all weights; None for those not needed.

    grads: of output, h_n, c_n, None where the loss does not reach; masks, resets: as `forward` had
    them; saved: what it filled, flat.
    """
    with torch.cuda.device_of(inputs[0]), matmul_in(call.precision):
        return _backward(call, *grads, masks, resets, saved, *inputs[:3], inputs[3:], needs)


def _one_step(call, input, h_0, c_0, layers, masks, resets):
    """`forward` of a single step in one direction, not projected: a launch for each layer."""
    from .kernels.step import lstm_step

    B, (H, _) = input.shape[1], sizes(layers)
    h_0, c_0 = _cut_first(h_0, resets, 1), _cut_first(c_0, resets, 1)
    output = input.new_empty(1, B, H)
    h_n, c_n = input.new_empty(call.count, B, H), input.new_empty(call.count, B, H)
    x = input[0]
    with torch.cuda.device_of(input):
        for n, weights in enumerate(layers):
            x = x if x.stride(-1) == 1 else x.contiguous()
            h, c = (None if s is None else contiguous(s[n]) for s in (h_0, c_0))
            lstm_step(
                x, *map(contiguous, reference.named(weights)[:4]), h, c, h_n[n], c_n[n],
                output if n + 1 == call.count else None, None, call.tile,
            )  # fmt: skip
            x = h_n[n] * masks[n][0] if n < len(masks or ()) else h_n[n]
    return output, h_n, c_n


def _forward(call, masks, resets, input, h_0, c_0, layers, saved):
    from .kernels.forward import lstm_forward

    count, D, _, tile, at_once, _, packing = call
    rows, (H, P) = input.shape[:-1], sizes(layers)
    B = packing.B if packing else rows[1]
    # Not two views of one tensor: nobody could change them in place.
    h_n, c_n = input.new_empty(count, B, P), input.new_empty(count, B, H)
    h_0 = contiguous(_cut_first(h_0, resets, D))
    c_0 = contiguous(_cut_first(c_0, resets, D))
    flags = _bytes(resets)
    grid = _grid(H, B, tile)
    sliced = len(grid) > 1
    projected = reference.named(layers[0])[-1] is not None
    # The kernel's h is what W_hr projects.
    last = input.new_empty(count, B, H) if projected else h_n
    # Packed sequences begin at different steps, the kernel's h is not projected, and slices
    # exchange what is below 1.
    folded = h_0 is not None and (packing or projected or sliced)
    x = input
    for layer in range(count // D):
        directions = [reference.named(layers[layer * D + n]) for n in range(D)]
        x = x.reshape(-1, x.shape[-1])
        gates_ih = _gates_ih(x, directions)
        for n in range(D if folded else 0):
            addend = h_0[layer * D + n] @ directions[n][1].t()
            _add_at_end(gates_ih if D == 1 else gates_ih[n], addend, n, packing)
        if saved is None:
            # No view of another tensor: autograd would forbid to change it in place.
            output = input.new_empty(*rows, D * P)
            hidden = input.new_empty(*rows, D * H) if projected else output
            gates = cells = weight_hh_t = None
        else:
            output, hidden, gates, cells, weight_hh_t = saved[layer]
            hidden = output if hidden is None else hidden
        lstm_forward(
            gates_ih,
            _stack([bias_ih for _, _, bias_ih, _, _ in directions]),
            _stack([bias_hh for _, _, _, bias_hh, _ in directions]),
            _stack([_recurrent(weights) for weights in directions]),
            None if folded else h_0, c_0, hidden, last, c_n, gates, cells, weight_hh_t,
            layer, D, tile, packing and packing.offsets, flags,
            _meeting(input, D, grid, tile, at_once, backward=False) if sliced else None,
        )  # fmt: skip
        if projected:
            for n, (*_, weight_hr) in enumerate(directions):
                torch.mm(_one(hidden, n, D), weight_hr.t(), out=_one(output, n, D))
                torch.mm(last[layer * D + n], weight_hr.t(), out=h_n[layer * D + n])
        x = output * masks[layer] if layer < len(masks or ()) else output
    return x, h_n, c_n


def _backward(
    call, grad_output, grad_h_n, grad_c_n, masks, resets, saved, input, h_0, c_0, weights, needs
):
    from .kernels.backward import lstm_backward

    count, D, _, tile, at_once, _, packing = call
    needs_input, needs_h_0, needs_c_0, *needs_weights = needs
    layers, needs_weights = by_layer(weights, count), by_layer(needs_weights, count)
    saved = by_layer(saved, count // D)
    rows, (H, P) = input.shape[:-1], sizes(layers)
    T, B = (packing.T, packing.B) if packing else rows
    grid = _grid(H, B, tile)
    sliced = len(grid) > 1
    projected = reference.named(layers[0])[-1] is not None
    grad_h_n, grad_c_n = contiguous(grad_h_n), contiguous(grad_c_n)
    h_0, flags = contiguous(_cut_first(h_0, resets, D)), _bytes(resets)
    grad_h_0 = input.new_empty(count, B, P) if needs_h_0 else None
    grad_c_0 = input.new_empty(count, B, H) if needs_c_0 else None
    grad_weights = [None] * count
    for layer in reversed(range(count // D)):
        first = layer * D
        directions = [reference.named(layers[first + n]) for n in range(D)]
        output, hidden, gates, cells, weight_hh_t = saved[layer]
        hidden = output if hidden is None else hidden
        if weight_hh_t is None:
            weight_hh_t = _stack([_recurrent(weights).t() for weights in directions])
        grad_gates = input.new_empty(D, rows.numel(), 4 * H)
        grad_hidden = grad_output
        if projected:
            # The kernel's h is what W_hr projects, and it had no h_0.
            grad_output = contiguous(grad_output)
            if grad_output is None:
                grad_output = input.new_zeros(*rows, D * P)
            elif grad_h_n is not None:
                grad_output = grad_output.clone(memory_format=torch.contiguous_format)
            for n in range(D if grad_h_n is not None else 0):
                _add_at_end(_one(grad_output, n, D), grad_h_n[first + n], 1 - n, packing)
            grad_hidden = input.new_empty(*rows, D * H)
            for n, (*_, weight_hr) in enumerate(directions):
                torch.mm(_one(grad_output, n, D), weight_hr, out=_one(grad_hidden, n, D))
        lstm_backward(
            gates, cells, weight_hh_t, _aligned(grad_hidden), None if projected else grad_h_n,
            grad_c_n, grad_gates, None if projected or sliced else grad_h_0, grad_c_0,
            layer, D, T, B, tile, packing and packing.offsets, flags,
            _meeting(input, D, grid, tile, at_once, backward=True) if sliced else None,
        )  # fmt: skip
        if (projected or sliced) and needs_h_0:
            for n, (_, weight_hh, *_) in enumerate(directions):
                dz = _at_end(grad_gates[n], n, B, packing)
                torch.mm(dz, weight_hh, out=grad_h_0[first + n])
        x = None
        if any(needs_weights[n][0] for n in range(first, first + D)):
            x = input if layer == 0 else saved[layer - 1][0]
            x = x * masks[layer - 1] if masks and layer > 0 else x
            x = x.reshape(-1, x.shape[-1])
        for n in range(D):
            grad_weights[first + n] = _grad_weights(
                directions[n], grad_gates[n], x, _one(hidden, n, D), B,
                None if h_0 is None else h_0[first + n],
                _one(grad_output, n, D) if projected else None,
                n, packing, resets, needs_weights[first + n],
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
    for x in (grad_h_0, grad_c_0):
        _cut_first(x, resets, D, in_place=True)
    flat = [
        grad
        for needs, grads in zip(needs_weights, grad_weights, strict=True)
        for grad in (grads or [None] * len(needs))
    ]
    return grad_output, grad_h_0, grad_c_0, *flat


def _gates_ih(x, directions):
    """W_ih x of each direction, x (rows, I): (D rows, 4H) in memory. The kernel adds the biases."""
    if len(directions) == 1:
        return x @ directions[0][0].t()
    gates_ih = x.new_empty(len(directions), len(x), directions[0][0].shape[0])
    for (weight_ih, *_), out in zip(directions, gates_ih, strict=True):
        torch.mm(x, weight_ih.t(), out=out)
    return gates_ih


def _grad_weights(
    weights, grad_gates, x, hidden, B, h_0, grad_output, reverse, packing, resets, needs
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
        grad_hh = _grad_recurrent(grad_gates, hidden, initial, B, reverse, packing, resets)
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
    if all(needs) and needs:
        # The same for both, but not the same numbers in memory, which callers may write to.
        return grad_gates.expand(2, *grad_gates.shape).sum(1).unbind()
    return [grad_gates.sum(0) if need else None for need in needs]


def _grad_recurrent(grad_gates, h, h_0, B, reverse, packing, resets):
    """Gradient of what multiplies h in the kernels: each row of h met the gates of the step taken
    next, h_0 those of the first.
    """
    if packing:
        initial = h.new_zeros(B, h.shape[1]) if h_0 is None else h_0
        previous = packing.previous[reverse]
        h = torch.cat((h, initial)).index_select(0, previous)
        if resets is not None:
            # The later step of the two has the flag; before the first step h_0 has been cut.
            at = torch.cat((resets, resets.new_zeros(B)))
            cut = at.index_select(0, previous) if reverse else resets
            h = h.masked_fill_(cut[:, None], 0)
        return grad_gates.t() @ h
    gates, h = (grad_gates[:-B], h[B:]) if reverse else (grad_gates[B:], h[:-B])
    if resets is not None:
        h = h.masked_fill(resets.reshape(-1)[B:, None], 0)
    grad = gates.t() @ h
    if h_0 is not None:
        grad.addmm_(_at_end(grad_gates, reverse, B).t(), h_0)
    return grad


def _cut_first(x, resets, D, in_place=False):
    """h_0 or c_0 (L D, B, numbers), or a gradient of them, without what resets cut off before the
    first step, which the last direction's sequences do not begin with.
    """
    if x is None or resets is None:
        return x
    x = x if in_place else x.clone()
    x[::D].masked_fill_(resets.reshape(-1)[: x.shape[1], None], 0)
    return x


def _bytes(resets):
    return None if resets is None else resets.contiguous().view(torch.uint8)


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


def sizes(layers):
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


def _stack(tensors):
    """Tensors one after the other in memory; a single one that lies so is not copied, and None is
    no tensor.
    """
    return (
        contiguous(tensors[0]) if len(tensors) == 1 or tensors[0] is None else torch.stack(tensors)
    )


def contiguous(x):
    return x if x is None else x.contiguous()


def _aligned(x):
    """Contiguous, and where the loop's vector loads can read it: elsewhere it compiles without."""
    x = contiguous(x)
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()
