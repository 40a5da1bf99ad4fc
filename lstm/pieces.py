"""What layer.py and plain.py, the two ways through a stack of layers, have alike."""

from functools import cache

import torch
from torch.nn import functional as F

from . import reference
from .reference import by_layer

# Dtype in which the kernels sum the biases' gradients
SUMS = torch.float32


@cache
def kernels():
    """The package of the kernels, whose import needs Triton: where the first of them runs."""
    from . import kernels
    from .kernels import backward, forward, joint_backward, joint_forward, slices, step  # noqa: F401

    return kernels


def contiguous(x):
    return x if x is None else x.contiguous()


def aligned(x):
    """Contiguous, and where the loop's vector loads can read it: elsewhere it compiles without."""
    if x is None:
        return x
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def num_transposed(D, layer):
    """Matrices of a layer that forward transposes: W_hh of each direction; and W_ih of what may not
    be the lowest of several layers at once, second.
    """
    return 2 if D == 2 or layer > 0 else 1


def new_counters(sizes, like, passes):
    """Of each pass the counters of all launches of several layers at once, before the first step
    (kernels/rings.py); None where there are none. sizes: of a pass, `counters` of its call.
    """
    return like.new_zeros(passes, *sizes, dtype=torch.int32) if sizes else (None,) * passes


def gates_of_lowest(x, weight_ih):
    """W_ih x of the lowest of several layers at once, x (rows, I), in float32 as the others' gates
    are: (rows, 4H).
    """
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight_ih.t(), out_dtype=torch.float32)
    return F.linear(x.float(), weight_ih.float())


def joint_backward(
    call, rows, steps, weight_hh_t, masks, grad_output, grad_h_n, grad_c_n, grad_h_0, grad_c_0,
    bias_parts, taken, layer, T, B, offsets=None, resets=None,
):  # fmt: skip
    """Gradients of the gates' sums of several layers at once, from `layer` on. rows: of all steps;
    steps, weight_hh_t: of each layer; grad_output: of the last, None for zeros.
    """
    # Not parts of one tensor: kernels are compiled for what is aligned, as every tensor begins.
    grad_gates = [x.new_empty(rows, 4 * call.H) for x in steps]
    if grad_output is None:
        grad_output = steps[0].new_zeros(rows, call.H)
    kernels().joint_backward.lstm_joint_backward(
        steps, weight_hh_t, grad_output, grad_gates, masks, grad_h_n, grad_c_n, grad_h_0, grad_c_0,
        bias_parts, taken, layer, T, B, call.tile, offsets, resets,
    )  # fmt: skip
    return grad_gates


def room_for_biases(call, like):
    """For all biases' gradients, and what of it the kernels fill: all, with parts of them, or
    nothing.
    """
    biases = like.new_empty(call.biases, dtype=SUMS if call.bias_parts else None)
    return biases, biases if call.bias_parts else None


def sum_gates(grad_gates, biases, number):
    """The gradients of a layer's biases in a direction, which no kernel has summed."""
    torch.sum(grad_gates.expand(2, -1, -1), 1, out=biases[:, number])


def give_biases(call, biases, grad_weights, dtype):
    """The biases' gradients into the flat list of all weights' gradients."""
    # The same for both biases, but not the same numbers in memory, which callers may write to.
    sums = biases.expand(2, -1, -1, -1).sum(2).to(dtype) if call.bias_parts else biases
    grad_weights[2 :: call.size], grad_weights[3 :: call.size] = sums[0].unbind(), sums[1].unbind()


def differentiable_backward(call, inputs, needs, grads, masks=None, resets=None):
    """`layer.backward` to be differentiated again."""
    sizes = call.packing and call.packing.batch_sizes

    def function(input, h_0, c_0, *weights):
        layers = by_layer(weights, call.L * call.D)
        return reference.lstm(input, h_0, c_0, layers, masks, resets, call.D, sizes)

    return reference.backward(function, inputs, needs, grads)
