"""Training as most of it runs, in few lines of Python: layer.py has the same for all calls."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .branches import Branches, captured
from .checks import beyond_kernels
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
from .precision import on_device_of


class PlainLSTM(torch.autograd.Function):
    """layer.lstm from zeros, with biases, in one direction and one slice, nothing packed,
    projected, dropped or reset, as most training runs it.

    Only the equations around the kernels are left: host time bounds a small LSTM, and what layer.py
    asks of a call takes longer than what it then does (bench/host.py).
    """

    @staticmethod
    def forward(ctx, call, input, *weights):
        outputs, saved, ctx.taken = on_device_of(_forward, call, input, weights)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *saved, *weights)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        call, needs, (input, *tensors) = ctx.call, ctx.needs_input_grad[1:], ctx.saved_tensors
        saved, weights = tensors[: -4 * call.L], tensors[-4 * call.L :]
        if beyond_kernels(grads):
            inputs, needs = (input, None, None, *weights), (needs[0], False, False, *needs[1:])
            grad_input, _, _, *grads = differentiable_backward(call, inputs, needs, grads)
            return None, grad_input, *grads
        given = call, input, grads, saved, weights, needs
        if captured(input):
            with Branches(input.device) as branches:
                return on_device_of(_backward, *given, None, branches.mm)
        # Zeros for the first backward only.
        taken, ctx.taken = ctx.taken, None
        return on_device_of(_backward, *given, taken)


def _forward(call, input, weights):
    """output, h_n, c_n; the input as rows, then of each layer steps, W_hh transposed and output, as
    rows but for the last; and what `new_counters` gives a backward.
    """
    L, H, numbers, tile, (T, B, I) = call.L, call.H, call.numbers, call.tile, input.shape
    h_n, c_n = input.new_empty(L, B, H), input.new_empty(L, B, H)
    x = input.reshape(T * B, I)
    saved, group = [x], []
    # Of both passes at once: a launch less.
    taken, taken_backward = new_counters(call.counters, x, 2)
    for layer in range(L):
        weight_ih, weight_hh, *biases = weights[4 * layer : 4 * layer + 4]
        # Of several layers at once the kernel multiplies for all but the first.
        if not group:
            z = (gates_of_lowest if call.layers > 1 and layer < L - 1 else F.linear)(x, weight_ih)
        x = input.new_empty(T, B, H) if layer == L - 1 else input.new_empty(T * B, H)
        steps = input.new_empty((1 + 5 * T) * numbers)
        weight_hh_t = input.new_empty(num_transposed(1, layer), H, 4 * H)
        saved += (steps, weight_hh_t, x)
        group.append((*map(Tensor.contiguous, (*biases, weight_hh)), x, steps, weight_hh_t))
        if layer < L - 1 and len(group) < call.layers:
            continue
        if len(group) == 1:
            own = z, *group.pop(), None, None, h_n, c_n
            kernels().forward.lstm_forward(*own, layer, 1, T, B, tile)
        else:
            first = layer + 1 - len(group)
            kernels().joint_forward.lstm_joint_forward(
                group, z, map(Tensor.contiguous, weights[4 * first + 4 : 4 * layer + 4 : 4]), None,
                None, None, h_n, c_n, taken[layer // call.layers], first, T, B, tile,
            )  # fmt: skip
            group = []
    return (x, h_n, c_n), saved, taken_backward


def _backward(call, input, grads, saved, weights, needs, taken, mm=torch.mm):
    """None, then gradients of the input and the weights, for those needed.

    taken: as `_forward` gave it, to the first backward; None to any further, and to one that a CUDA
    graph captures, which may run more than once; mm: multiplies for the weights.
    """
    L, H, tile, (T, B, I), (needs_input, *needs) = call.L, call.H, call.tile, input.shape, needs
    grad, grad_h_n, grad_c_n = aligned(grads[0]), *grads[1:]
    if grad_h_n is not None or grad_c_n is not None:
        grad_h_n, grad_c_n = contiguous(grad_h_n), contiguous(grad_c_n)
    saved, grad_weights = (*saved[:-1], saved[-1].view(T * B, H)), [None] * len(weights)
    # Of several layers at once, those below
    lowest, below = 0 if needs_input else needs.index(True) // 4, []
    biases, bias_parts = room_for_biases(call, input)
    if call.layers > 1 and taken is None:
        (taken,) = new_counters(call.counters, input, 1)
    for layer in range(L - 1, lowest - 1, -1):
        at, (x, *own, h) = 4 * layer, saved[3 * layer : 3 * layer + 4]
        if below:
            dz = below.pop()
        elif (bottom := max(lowest, layer // call.layers * call.layers)) < layer:
            kept = saved[3 * bottom + 1 : 3 * layer + 3]
            *below, dz = joint_backward(
                call, T * B, kept[::3], kept[1::3], None, grad, grad_h_n, grad_c_n, None, None,
                bias_parts, taken[layer // call.layers], bottom, T, B,
            )  # fmt: skip
        else:
            dz = input.new_empty(T * B, 4 * H)
            own = *own, grad, grad_h_n, grad_c_n, dz, None, None, bias_parts
            kernels().backward.lstm_backward(*own, layer, 1, T, B, tile)
        grad_weights[at] = mm(dz.t(), x) if needs[at] else None
        grad_weights[at + 1] = mm(dz[B:].t(), h[:-B]) if needs[at + 1] else None
        if bias_parts is None and True in needs[at + 2 : at + 4]:
            sum_gates(dz, biases, layer)
        # Of several layers at once the kernel has multiplied for those below.
        if not below and (layer > lowest or needs_input):
            grad = dz @ weights[at]
    give_biases(call, biases, grad_weights, input.dtype)
    return None, grad.view(T, B, I) if needs_input else None, *grad_weights
