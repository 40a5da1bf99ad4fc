"""The LSTM as two operators, which torch.compile and torch.export keep whole.

A compiler cannot see into a Triton launch, and knows no sizes yet when a path is chosen. To it
these are two functions of tensors, which choose their path when they run, as `explain` does. Packed
batches have their sizes in a tensor, so they stay outside.
"""

import torch

from . import layer, native
from . import plan as plans
from .checks import differentiable, weight_sizes
from .reference import named

_CALL = (
    "Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor[] masks, Tensor? resets, "
    "int count, int D, str precision"
)
torch.library.define("fused_lstm::forward", f"({_CALL}, bool save) -> Tensor[]")
torch.library.define(
    "fused_lstm::backward",
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor[] saved, "
    f"{_CALL}, bool[] needs) -> Tensor[]",
)


def lstm(input, h_0, c_0, layers, masks, resets, D, precision):
    """layer.lstm as an operator, on the kernels or not.

    Args, shapes and returns: as layer.lstm; D: directions; precision: of float32 products, "tf32"
    or "ieee".
    """
    weights = [weight for of_layer in layers for weight in of_layer]
    # What is exported computes it again if it is ever differentiated.
    save = not torch.compiler.is_exporting() and differentiable((input, h_0, c_0, *weights))
    output, h_n, c_n, *_ = torch.ops.fused_lstm.forward(
        input, h_0, c_0, weights, masks or [], resets, len(layers), D, precision, save
    )
    return output, h_n, c_n


@torch.library.impl("fused_lstm::forward", "CompositeExplicitAutograd")
def _forward(input, h_0, c_0, weights, masks, resets, count, D, precision, save):
    """output, h_n, c_n, and what backward needs besides, if save."""
    _check(input, h_0, c_0, weights, count, D)
    layers = layer.by_layer(weights, count)
    saved = _reserve(input, layers, count, D, precision) if save else None
    call = _call(input, weights, count, D, precision)
    if call is None:
        outputs = native.lstm(input, h_0, c_0, layers, masks, resets, D)
    else:
        outputs = layer.forward(call, masks, resets, input, h_0, c_0, layers, saved)
        _clear_rest(call, saved, input.shape[1], weights[1].shape[0] // 4)
    return [*outputs, *_besides_output(saved)]


@torch.library.register_fake("fused_lstm::forward")
def _forward_fake(input, h_0, c_0, weights, masks, resets, count, D, precision, save):
    layers = layer.by_layer(weights, count)
    H, P = layer.sizes(layers)
    T, B, _ = input.shape
    outputs = [
        input.new_empty(T, B, D * P),
        input.new_empty(count, B, P),
        input.new_empty(count, B, H),
    ]
    saved = _reserve(input, layers, count, D, precision) if save else None
    return [*outputs, *_besides_output(saved)]


@torch.library.impl("fused_lstm::backward", "CompositeExplicitAutograd")
def _backward(
    grad_output, grad_h_n, grad_c_n, saved,
    input, h_0, c_0, weights, masks, resets, count, D, precision, needs,
):  # fmt: skip
    """Gradients of input, h_0, c_0 and the weights, of those needed."""
    grads, inputs = (grad_output, grad_h_n, grad_c_n), [input, h_0, c_0, *weights]
    call = _call(input, weights, count, D, precision)
    if call is None:
        return _apart(native.backward(inputs, needs, grads, count, masks, resets, D))
    layers = layer.by_layer(weights, count)
    if saved:
        output, *others = saved
        of_layers = _reserve(input, layers, count, D, precision, "meta")
        of_layers[-1][0], others = None, iter(others)
        of_layers = [[x if x is None else next(others) for x in tensors] for tensors in of_layers]
        of_layers[-1][0] = output
    else:
        of_layers = layer.reserve(call, input, layers)
        layer.forward(call, masks, resets, input, h_0, c_0, layers, of_layers)
    flat = [x for tensors in of_layers for x in tensors]
    grads = layer.backward(call, grads, masks, resets, flat, inputs, needs)
    return _apart([grad for grad in grads if grad is not None])


@torch.library.register_fake("fused_lstm::backward")
def _backward_fake(
    grad_output, grad_h_n, grad_c_n, saved,
    input, h_0, c_0, weights, masks, resets, count, D, precision, needs,
):  # fmt: skip
    inputs = [input, h_0, c_0, *weights]
    return [x.new_empty(x.shape) for x, need in zip(inputs, needs, strict=True) if need]


def _setup_context(ctx, inputs, output):
    input, h_0, c_0, weights, masks, resets, ctx.count, ctx.D, ctx.precision, save = inputs
    ctx.sizes = len(weights), len(masks)
    ctx.set_materialize_grads(False)
    saved = [output[0], *output[3:]] if save else []
    ctx.save_for_backward(input, h_0, c_0, *weights, *masks, resets, *saved)


def _differentiate(ctx, grads):
    num_weights, num_masks = ctx.sizes
    input, h_0, c_0, *rest = ctx.saved_tensors
    weights, rest = rest[:num_weights], rest[num_weights:]
    masks, resets, saved = rest[:num_masks], rest[num_masks], rest[num_masks + 1 :]
    need_input, need_h_0, need_c_0, need_weights, *_ = ctx.needs_input_grad
    needs = [need_input, bool(need_h_0), bool(need_c_0), *need_weights]
    needed = iter(
        torch.ops.fused_lstm.backward(
            *grads[:3], saved, input, h_0, c_0, weights, masks, resets,
            ctx.count, ctx.D, ctx.precision, needs,
        )
    )  # fmt: skip
    input, h_0, c_0, *weights = (next(needed) if need else None for need in needs)
    return input, h_0, c_0, weights, [None] * num_masks, None, None, None, None, None


torch.library.register_autograd("fused_lstm::forward", _differentiate, setup_context=_setup_context)


def _call(input, weights, count, D, precision):
    """How a call runs on the kernels; None if it does not."""
    H = weights[1].shape[0] // 4
    plan = plans.plan_on(input.device, H, input.shape[1], input.dtype, precision, D == 2)
    if plan.path == "torch":
        return None
    return layer.Call(count, D, precision, dict(plan.tile), plan.at_once)


def _reserve(input, layers, count, D, precision, device=None):
    """`layer.reserve` with sizes that depend on no path; None if no batch runs on the kernels.
    device: for the tensors, else that of the input.
    """
    H, _ = layer.sizes(layers)
    # The compiler may have H as a number that it does not know; a change of it compiles anew.
    plan = plans.plan_on(input.device, int(H), 1, input.dtype, precision, D == 2)
    if plan.path == "torch":
        return None
    from .kernels.config import capacity

    B = capacity(input.shape[1], H, plans.interpreted())
    call = layer.Call(count, D, precision, dict(plan.tile), plan.at_once)
    like = input if device is None else torch.empty_like(input, device=device)
    return layer.reserve(call, like, layers, B)


def _apart(tensors):
    """The tensors, copied where they share memory, which what an operator returns must not."""
    seen, apart = set(), []
    for x in tensors:
        memory = x.untyped_storage().data_ptr()
        apart.append(x.clone() if memory in seen else x)
        seen.add(memory)
    return apart


def _clear_rest(call, saved, B, H):
    """Zeros for the sequences that no tile has: operators have to return the same each time."""
    from .kernels.config import capacity

    room, block_b = capacity(B, H, plans.interpreted()), call.tile["BLOCK_B"]
    held = -(-B // block_b) * block_b
    for _, _, gates, cells, _ in saved or () if held < room else ():
        for x in (gates, cells):
            x[x.numel() // room * held :].zero_()


def _besides_output(saved):
    """What `_reserve` gave but for the last layer's output, which the operator returns anyway."""
    if saved is None:
        return []
    saved = [*saved[:-1], [None, *saved[-1][1:]]]
    return [x for tensors in saved for x in tensors if x is not None]


def _check(input, h_0, c_0, weights, count, D):
    """The module has looked at what users get wrong; operators can be called with anything."""
    tensors = [x for x in (input, h_0, c_0, *weights) if x is not None]
    first = named(layer.by_layer(weights, count)[0])
    H, P = layer.sizes([first])
    bias, projected = first[2] is not None, first[4] is not None
    _, B, I = input.shape
    sizes = weight_sizes(I, H, count // D, bias, D, P if projected else 0)
    fit = [x.shape for x in weights] == [torch.Size(size) for size in sizes]
    for state, size in ((h_0, P), (c_0, H)):
        fit = fit and (state is None or state.shape == (count, B, size))
    alike = all(x.dtype == input.dtype and x.device == input.device for x in tensors)
    if not fit or not alike or (h_0 is None) != (c_0 is None):
        raise ValueError("fused_lstm: input, states and weights do not fit together")
