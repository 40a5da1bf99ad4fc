"""Several layers, in one direction or both, on the kernels, as one differentiable function."""

import math

import torch
from torch.nn import functional as F

from .branches import Branches, captured
from .checks import beyond_kernels, differentiable
from .pieces import (
    aligned,
    contiguous,
    differentiable_backward,
    gates_of_lowest,
    give_biases,
    joint_backward,
    kernels,
    new_counters,
    num_transposed,
    room_for_biases,
    sum_gates,
)
from .plain import PlainLSTM
from .precision import on_device_of

# What `forward` leaves for `backward`, of each layer
SAVED = 4


def lstm(call, input, h_0, c_0, weights, masks=None, resets=None):
    """A stack of LSTM layers over a whole sequence.

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

    and h_t = W_hr h_t where it is projected.

    Shapes: L, D, H and P as the call (call.py) has them; input (T, B, I), any strides; h_0 (L D,
        B, P), c_0 (L D, B, H), or None for zeros; weights, flat: of each layer and direction
        weight_ih (4H, I), above the first layer (4H, D P), weight_hh (4H, P), with bias bias_ih
        and bias_hh (4H,), projected weight_hr (P, H); masks: None, or L - 1 dropout masks (T, B,
        D P) that multiply the output of all layers but the last; resets: None, or (T, B), bool,
        where no state passes from the step before.
        Packed: one dimension of rows stands for T and B.
    Returns: output (T, B, D P) of the last layer; h_n (L D, B, P), c_n (L D, B, H), all in
        input.dtype.
    Numerics: products accumulate and c_t lives in float32; h_t is rounded to the operand dtype
        before W_hh reads it, and to input.dtype where it is written.
    Source: equations as in torch.nn.LSTM; forget gate from Gers et al., 2000,
        doi.org/10.1162/089976600300015015.
    """
    # Not left to the Function: its ctx.needs_input_grad stays true under no_grad.
    if differentiable((*weights, input, h_0, c_0)):
        plain = call.plain and call.packing is None
        if plain and h_0 is None and masks is None and resets is None:
            return PlainLSTM.apply(call, input, *weights)
        return _LSTM.apply(call, masks, resets, input, h_0, c_0, *weights)
    if call.one_step:
        return _one_step(call, input, h_0, c_0, weights, masks, resets)
    return forward(call, masks, resets, input, h_0, c_0, weights)


class _LSTM(torch.autograd.Function):
    """One node for the whole stack: each costs host time."""

    @staticmethod
    def forward(ctx, call, masks, resets, input, h_0, c_0, *weights):
        saved = reserve(call, input)
        outputs = forward(call, masks, resets, input, h_0, c_0, weights, saved)
        masks = masks or ()
        ctx.call, ctx.num_masks = call, len(masks)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*masks, resets, *saved, input, h_0, c_0, *weights)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        call, at, needs = ctx.call, ctx.num_masks, ctx.needs_input_grad[3:]
        # Read once: a checkpoint that is not reentrant unpacks each tensor a single time.
        tensors = ctx.saved_tensors
        end = len(tensors) - len(needs)
        masks, resets, saved, inputs = (
            tensors[:at],
            tensors[at],
            tensors[at + 1 : end],
            tensors[end:],
        )
        if beyond_kernels(grads):
            grads = differentiable_backward(call, inputs, needs, grads, masks, resets)
        else:
            grads = backward(call, grads, masks, resets, saved, inputs, needs)
        return None, None, None, *grads


def reserve(call, input, capacity=None):
    """What `forward` fills for `backward`, flat, SAVED of each layer: its output, what was
    projected to it (else None), steps and W_hh transposed (None of slices), as kernels/forward.py
    has them.

    capacity: sequences to have room for, at least those of all tiles.
    """
    L, D, H, P, numbers = call.L, call.D, call.H, call.P, call.numbers
    *rows, _ = input.shape
    T = call.packing.T if call.packing else rows[0]
    if capacity is not None:
        numbers = numbers // (call.grid[0] * call.tile["BLOCK_B"]) * capacity
    saved = []
    for layer in range(L):
        saved += (
            input.new_empty(*rows, D * P),
            input.new_empty(*rows, D * H) if call.projected else None,
            input.new_empty(D * (1 + 5 * T) * numbers),
            None if call.sliced else input.new_empty(num_transposed(D, layer), H, 4 * H),
        )
    return saved


def forward(call, masks, resets, input, h_0, c_0, weights, saved=None):
    """output, h_n, c_n. Args: as `lstm`; saved: None, or what `reserve` gave, to fill."""
    return on_device_of(_forward, call, input, masks, resets, h_0, c_0, weights, saved)


def backward(call, grads, masks, resets, saved, inputs, needs):
    """Gradients of inputs, which are input, h_0, c_0 and all weights; None for those not needed.

    grads: of output, h_n, c_n, None where the loss does not reach; masks, resets: as `forward` had
    them; saved: what it filled.
    """
    input, h_0, c_0, *weights = inputs
    given = call, input, grads, masks, resets, saved, h_0, c_0, weights, needs
    if captured(input):
        if call.packing:
            call.packing.prepare()
        with Branches(input.device) as branches:
            return on_device_of(_backward, *given, branches.run)
    return on_device_of(_backward, *given)


def _one_step(call, input, h_0, c_0, weights, masks, resets):
    """`forward` of a single step in one direction, not projected: a launch for each layer."""
    L, B, H = call.L, input.shape[1], call.H
    h_0, c_0 = _cut_first(h_0, resets, 1), _cut_first(c_0, resets, 1)
    output = input.new_empty(1, B, H)
    h_n, c_n = input.new_empty(L, B, H), input.new_empty(L, B, H)
    x = input[0]
    with torch.cuda.device_of(input):
        for layer in range(L):
            x = x if x.stride(-1) == 1 else x.contiguous()
            h, c = (None if s is None else contiguous(s[layer]) for s in (h_0, c_0))
            (of_layer,) = call.weights(weights, layer)
            kernels().step.lstm_step(
                x, *map(contiguous, of_layer[:4]), h, c, h_n[layer], c_n[layer],
                output if layer + 1 == L else None, None, call.tile,
            )  # fmt: skip
            x = h_n[layer] * masks[layer][0] if masks and layer < L - 1 else h_n[layer]
    return output, h_n, c_n


def _forward(call, input, masks, resets, h_0, c_0, weights, saved):
    L, D, H, P, packing, projected = call.L, call.D, call.H, call.P, call.packing, call.projected
    *rows, _ = input.shape
    T, B = (packing.T, packing.B) if packing else rows
    # Not two views of one tensor: nobody could change them in place.
    h_n, c_n = input.new_empty(L * D, B, P), input.new_empty(L * D, B, H)
    h_0, c_0, flags = _states(h_0, c_0, resets, D)
    # The kernel's h is what W_hr projects.
    last = input.new_empty(L * D, B, H) if projected else h_n
    # Packed sequences end at different steps, with which the second direction begins; the kernel's
    # h is not projected; and slices exchange what is below 1.
    folded = h_0 is not None and ((packing and D == 2) or projected or call.sliced)
    (taken,) = new_counters(call.counters, input, 1)
    x, group = input, []
    for layer in range(L):
        directions = call.weights(weights, layer)
        # Of several layers at once the kernel multiplies for all but the first.
        if not group:
            x = x.reshape(-1, x.shape[-1])
            if call.layers > 1 and layer < L - 1:
                gates_ih = gates_of_lowest(x, directions[0].weight_ih)
            else:
                gates_ih = _gates_ih(x, directions)
        if folded:
            for n, of_direction in enumerate(directions):
                addend = h_0[layer * D + n] @ of_direction.weight_hh.t()
                _add_at_end(gates_ih if D == 1 else gates_ih[n], addend, n, packing)
        if saved is None:
            # No view of another tensor: autograd would forbid to change it in place.
            output = input.new_empty(*rows, D * P)
            hidden = input.new_empty(*rows, D * H) if projected else output
            steps = weight_hh_t = None
        else:
            output, hidden, steps, weight_hh_t = saved[layer * SAVED : (layer + 1) * SAVED]
            hidden = output if hidden is None else hidden
        biases = _stack(directions, 2), _stack(directions, 3)
        own = *biases, _recurrent(directions), hidden, steps, weight_hh_t
        group.append(own)
        if layer < L - 1 and len(group) < call.layers:
            continue
        if len(group) > 1:
            first = layer + 1 - len(group)
            weight_ih = [call.weights(weights, n)[0].weight_ih for n in range(first + 1, layer + 1)]
            kernels().joint_forward.lstm_joint_forward(
                group, gates_ih, map(contiguous, weight_ih), _between(masks, first, layer),
                h_0, c_0, h_n, c_n, taken[layer // call.layers], first, T, B, call.tile,
                packing and packing.offsets, flags,
            )  # fmt: skip
        else:
            kernels().forward.lstm_forward(
                gates_ih, *own, None if folded else h_0, c_0, last, c_n, layer, D, T, B, call.tile,
                packing and packing.offsets, flags,
                _meeting(call, input, backward=False) if call.sliced else None,
            )  # fmt: skip
        if projected:
            for n, of_direction in enumerate(directions):
                weight_hr_t = of_direction.weight_hr.t()
                torch.mm(_one(hidden, n, D), weight_hr_t, out=_one(output, n, D))
                torch.mm(last[layer * D + n], weight_hr_t, out=h_n[layer * D + n])
        group = []
        x = output * masks[layer] if masks and layer < L - 1 else output
    return x, h_n, c_n


def _here(function, *args):
    return function(*args)


def _backward(call, input, grads, masks, resets, saved, h_0, c_0, weights, needs, run=_here):
    L, D, H, P, packing, projected = call.L, call.D, call.H, call.P, call.packing, call.projected
    needs_input, needs_h_0, needs_c_0, *needs_weights = needs
    *rows, _ = input.shape
    T, B = (packing.T, packing.B) if packing else rows
    h_0, _, flags = _states(h_0, None, resets, D)
    grad_output, grad_h_n, grad_c_n = grads
    grad_h_n, grad_c_n = contiguous(grad_h_n), contiguous(grad_c_n)
    grad_h_0 = input.new_empty(L * D, B, P) if needs_h_0 else None
    grad_c_0 = input.new_empty(L * D, B, H) if needs_c_0 else None
    grad_weights = [None] * len(weights)
    biases, bias_parts = room_for_biases(call, input) if call.bias else (None, None)
    all_layers = needs_input or needs_h_0 or needs_c_0 or True not in needs_weights
    lowest = 0 if all_layers else needs_weights.index(True) // (D * call.size)
    # Of several layers at once, those below
    below = []
    (taken,) = new_counters(call.counters, input, 1)
    for layer in reversed(range(lowest, L)):
        directions, first = call.weights(weights, layer), layer * D
        # Those of the layer's weights, and of one of its directions
        at, step = first * call.size, call.size
        output, hidden, steps, weight_hh_t = saved[layer * SAVED : (layer + 1) * SAVED]
        hidden = output if hidden is None else hidden
        if weight_hh_t is None:
            weight_hh_t = _recurrent(directions).view(D, 4 * H, H).transpose(1, 2).contiguous()
        grad_hidden = grad_output
        if projected:
            # The kernel's h is what W_hr projects, and it had no h_0.
            if grad_output is None:
                grad_output = input.new_zeros(*rows, D * P)
            if grad_h_n is not None:
                grad_output = _with_last(grad_output, grad_h_n[first : first + D], packing)
            grad_output = grad_output.contiguous()
            grad_hidden = _grad_unprojected(grad_output, directions)
        if below:
            grad_gates = below.pop()
        elif (bottom := max(lowest, layer // call.layers * call.layers)) < layer:
            kept = saved[bottom * SAVED : (layer + 1) * SAVED]
            *below, grad_gates = joint_backward(
                call, math.prod(rows), kept[2::SAVED], kept[3::SAVED],
                _between(masks, bottom, layer), aligned(grad_hidden), grad_h_n, grad_c_n, grad_h_0,
                grad_c_0, bias_parts, taken[layer // call.layers], bottom, T, B,
                packing and packing.offsets, flags,
            )  # fmt: skip
        else:
            grad_gates = input.new_empty(D * math.prod(rows), 4 * H)
            kernels().backward.lstm_backward(
                steps, weight_hh_t, aligned(grad_hidden), None if projected else grad_h_n,
                grad_c_n, grad_gates, None if projected or call.sliced else grad_h_0, grad_c_0,
                bias_parts, layer, D, T, B, call.tile,
                packing and packing.offsets, flags,
                _meeting(call, input, backward=True) if call.sliced else None,
            )  # fmt: skip
        grad_gates = (grad_gates,) if D == 1 else grad_gates.chunk(2)
        for n in range(D if call.bias and bias_parts is None else 0):
            if True in needs_weights[at + n * step + 2 : at + n * step + 4]:
                sum_gates(grad_gates[n], biases, first + n)
        if (projected or call.sliced) and needs_h_0:
            for n, of_direction in enumerate(directions):
                dz = _at_end(grad_gates[n], n, B, packing)
                torch.mm(dz, of_direction.weight_hh, out=grad_h_0[first + n])
        x = None
        if any(needs_weights[at : at + D * step : step]):
            x = saved[(layer - 1) * SAVED] if layer > 0 else input
            x = x * masks[layer - 1] if masks and layer > 0 else x
            x = x.reshape(-1, x.shape[-1])
        for n, of_direction in enumerate(directions):
            of_this = slice(at + n * step, at + (n + 1) * step)
            grad_weights[of_this] = run(
                _grad_weights, of_direction, grad_gates[n], x, _one(hidden, n, D), B,
                None if h_0 is None else h_0[first + n],
                _one(grad_output, n, D) if projected else None,
                n, packing, resets, needs_weights[of_this],
            )  # fmt: skip
        grad_output = None
        # Of several layers at once the kernel multiplied.
        if not below and (layer > lowest or needs_input):
            grad_output = grad_gates[0] @ directions[0].weight_ih
            if D == 2:
                grad_output = grad_output.addmm_(grad_gates[1], directions[1].weight_ih)
            grad_output = grad_output.view(*rows, -1)
            if masks and layer > 0:
                grad_output = grad_output * masks[layer - 1]
    if call.bias:
        give_biases(call, biases, grad_weights, input.dtype)
        pairs = zip(grad_weights, needs_weights, strict=True)
        grad_weights = [grad if need else None for grad, need in pairs]
    if resets is not None:
        for x in (grad_h_0, grad_c_0):
            _cut_first(x, resets, D, in_place=True)
    return grad_output, grad_h_0, grad_c_0, *grad_weights


def _between(masks, first, last):
    """The dropout masks between these layers, as the kernels take them."""
    return masks and [*map(contiguous, masks[first:last])]


def _with_last(grad_output, grad_h_n, packing):
    """The gradient of a layer's h, (*rows, D P), plus that of its last states, (D, B, P)."""
    grad_output = grad_output.clone(memory_format=torch.contiguous_format)
    for n, grad in enumerate(grad_h_n):
        _add_at_end(_one(grad_output, n, len(grad_h_n)), grad, 1 - n, packing)
    return grad_output


def _grad_unprojected(grad_output, directions):
    """Gradient of h before its projection (*rows, D H), of that after it (*rows, D P)."""
    D, *rows = len(directions), *grad_output.shape[:-1]
    H = directions[0].weight_hr.shape[1]
    grad_hidden = grad_output.new_empty(*rows, D * H)
    for n, of_direction in enumerate(directions):
        out = _one(grad_hidden, n, D)
        torch.mm(_one(grad_output, n, D), of_direction.weight_hr, out=out)
    return grad_hidden


def _gates_ih(x, directions):
    """W_ih x of each direction, x (rows, I): (D rows, 4H) in memory. The kernel adds the biases."""
    if len(directions) == 1:
        return F.linear(x, directions[0].weight_ih)
    gates_ih = x.new_empty(len(directions), len(x), len(directions[0].weight_ih))
    for weights, out in zip(directions, gates_ih, strict=True):
        torch.mm(x, weights.weight_ih.t(), out=out)
    return gates_ih


def _grad_weights(
    weights, grad_gates, x, hidden, B, h_0, grad_output, reverse, packing, resets, needs
):  # fmt: skip
    """Gradients of one direction's weights, for those needed, without its biases'. All have a row
    for each step of each sequence: grad_gates (rows, 4H), x (rows, I), hidden (rows, H),
    grad_output (rows, P) or None.
    """
    weight_hh, weight_hr = weights.weight_hh, weights.weight_hr
    needs_ih, needs_hh, *_ = needs
    grad_hh = grad_hr = None
    needs_hr = needs[-1] if weight_hr is not None else False
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
    grads = [None] * len(needs)
    grads[:2] = grad_gates.t() @ x if needs_ih else None, grad_hh if needs_hh else None
    if weight_hr is not None:
        grads[-1] = grad_hr
    return grads


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


def _states(h_0, c_0, resets, D):
    """h_0 and c_0 as the kernels take them, without what resets cut off before the first step, and
    the resets.
    """
    if resets is not None:
        h_0, c_0 = _cut_first(h_0, resets, D), _cut_first(c_0, resets, D)
        resets = resets.contiguous().view(torch.uint8)
    return contiguous(h_0), contiguous(c_0), resets


def _meeting(call, input, backward):
    """What slices exchange through (kernels/slices.py)."""
    (tiles, slices), tile, D = call.grid, call.tile, call.D
    size = tile["BLOCK_H"] * tile["BLOCK_B"]
    of_tile = (
        (tile["BLOCK_K"] // tile["BLOCK_H"], slices, size)
        if backward
        else (tile["BLOCK_K"] * tile["BLOCK_B"] // 2,)
    )
    exchange = input.new_zeros(2, D, tiles, *of_tile, dtype=torch.float32)
    states = None
    if call.at_once == 0:
        states = input.new_empty(2, D, tiles, slices, size, dtype=torch.float32)
    return kernels().slices.Meeting(exchange, states, call.at_once)


def _recurrent(directions):
    """What multiplies the kernels' h, which is not projected: W_hh, or W_hh W_hr, (D, 4H, H).

    W_hh (W_hr h) = (W_hh W_hr) h: to the kernels a projected LSTM is one that is not, and |h| < 1.
    """
    if directions[0].weight_hr is None:
        return _stack(directions, 1)
    return torch.stack([weights.weight_hh @ weights.weight_hr for weights in directions])


def _one(x, direction, D):
    """Rows of one direction: (..., D N) as (rows, N)."""
    if D == 1:
        return x.view(-1, x.shape[-1])
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


def _stack(directions, number):
    """One of the weights of all directions one after the other in memory; of a single direction
    that lies so it is not copied.
    """
    x = directions[0][number]
    if x is None or len(directions) == 1:
        return contiguous(x)
    return torch.stack([weights[number] for weights in directions])
