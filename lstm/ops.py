"""The LSTM as two operators, which torch.compile and torch.export keep whole.

A compiler would take our launches apart, Python and all, and knows no sizes yet when a path is
chosen. To it these are two functions of tensors, which choose their path when they run, as
`explain` does. Packed batches have their sizes in a tensor, so they stay outside.
"""

import torch

from . import layer, native, reference
from . import plan as plans
from .call import plan_call
from .checks import differentiable, weight_sizes
from .kernels.config import capacity
from .reference import by_layer, named

_PRECISIONS = "tf32", "ieee"
_CALL = (
    "Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor[]? masks, Tensor? resets, "
    "int count, int D, str precision"
)
torch.library.define("fused_lstm::forward", f"({_CALL}, bool save) -> Tensor[]")
torch.library.define(
    "fused_lstm::backward",
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor[] saved, "
    f"{_CALL}, bool[] needs) -> Tensor[]",
)


def lstm(input, h_0, c_0, weights, masks, resets, count, D, precision):
    """layer.lstm as an operator, on the kernels or not.

    Args, shapes and returns: as layer.lstm; count: layers times directions; D: directions;
    precision: of float32 products, "tf32" or "ieee".
    """
    # What is exported computes it again if it is ever differentiated. Not is_exporting(), which
    # torch 2.11 has for true in torch.compile as well.
    exporting = getattr(torch.compiler, "_is_exporting_flag", False)
    save = not exporting and differentiable((input, h_0, c_0, *weights))
    output, h_n, c_n, *_ = torch.ops.fused_lstm.forward(
        input, h_0, c_0, weights, masks or None, resets, count, D, precision, save
    )
    return output, h_n, c_n


@torch.library.impl("fused_lstm::forward", "CompositeExplicitAutograd")
def _forward(input, h_0, c_0, weights, masks, resets, count, D, precision, save):
    """output, h_n, c_n, and what backward needs besides, if save."""
    _check(input, h_0, c_0, weights, masks, resets, count, D, precision)
    saved = _reserve(input, weights, count, D, precision) if save else None
    call = _call(input, weights, count, D, precision)
    if call is None:
        layers = by_layer(weights, count)
        outputs = native.lstm(input, h_0, c_0, layers, masks, resets, D)
    else:
        outputs = layer.forward(call, masks, resets, input, h_0, c_0, weights, saved)
        _clear_rest(call, saved, input.shape[1])
    return [*outputs, *_besides_output(saved)]


@torch.library.register_fake("fused_lstm::forward")
def _forward_fake(input, h_0, c_0, weights, masks, resets, count, D, precision, save):
    H, P = _sizes(weights)
    T, B, _ = input.shape
    outputs = [
        input.new_empty(T, B, D * P),
        input.new_empty(count, B, P),
        input.new_empty(count, B, H),
    ]
    saved = _reserve(input, weights, count, D, precision) if save else None
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
    if saved:
        output, *others = saved
        saved, others = _reserve(input, weights, count, D, precision, "meta"), iter(others)
        saved[-layer.SAVED] = None
        saved = [x if x is None else next(others) for x in saved]
        saved[-layer.SAVED] = output
    else:
        saved = layer.reserve(call, input)
        layer.forward(call, masks, resets, input, h_0, c_0, weights, saved)
    grads = layer.backward(call, grads, masks, resets, saved, inputs, needs)
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
    ctx.sizes = len(weights), None if masks is None else len(masks)
    ctx.set_materialize_grads(False)
    saved = [output[0], *output[3:]] if save else []
    ctx.save_for_backward(input, h_0, c_0, *weights, *(masks or ()), resets, *saved)


def _differentiate(ctx, grads):
    num_weights, num_masks = ctx.sizes
    input, h_0, c_0, *rest = ctx.saved_tensors
    weights, rest = rest[:num_weights], rest[num_weights:]
    end = num_masks or 0
    masks, resets, saved = rest[:end] or None, rest[end], rest[end + 1 :]
    need_input, need_h_0, need_c_0, need_weights, *_ = ctx.needs_input_grad
    needs = [need_input, bool(need_h_0), bool(need_c_0), *need_weights]
    if torch.is_grad_enabled():
        # For create_graph=True: the other operator has no derivative.
        def function(input, h_0, c_0, *weights):
            layers = by_layer(weights, ctx.count)
            return reference.lstm(input, h_0, c_0, layers, masks, resets, ctx.D)

        inputs = [input, h_0, c_0, *weights]
        return _of_call(reference.backward(function, inputs, needs, grads[:3]), num_masks)
    needed = iter(
        torch.ops.fused_lstm.backward(
            *grads[:3], saved, input, h_0, c_0, weights, masks, resets,
            ctx.count, ctx.D, ctx.precision, needs,
        )
    )  # fmt: skip
    return _of_call([next(needed) if need else None for need in needs], num_masks)


def _of_call(grads, num_masks):
    """Gradients of all that the operator is called with."""
    input, h_0, c_0, *weights = grads
    masks = None if num_masks is None else num_masks * [None]
    return input, h_0, c_0, weights, masks, None, None, None, None, None


torch.library.register_autograd("fused_lstm::forward", _differentiate, setup_context=_setup_context)


def _sizes(weights):
    """H and P, the same where nothing is projected."""
    rows, columns = weights[1].shape
    return rows // 4, columns


def _plan_call(plan, weights, count, D, B):
    # The compiler may have sizes as numbers that it does not know; a change of them compiles anew.
    H, P = map(int, _sizes(weights))
    size = len(weights) // count
    return plan_call(plan, count // D, D, H, P if size % 2 else 0, size > 3, B)


def _call(input, weights, count, D, precision):
    """How a call runs on the kernels; None if it does not."""
    (T, B, _), (H, P) = input.shape, _sizes(weights)
    layers = plans.joinable(T, count // D, P != H)
    plan = plans.plan_on(input.device, H, B, input.dtype, precision, D == 2, layers)
    if plan.path == "torch":
        return None
    return _plan_call(plan, weights, count, D, B)


def _reserve(input, weights, count, D, precision, device=None):
    """`layer.reserve` with sizes that depend on no path; None if no batch runs on the kernels.
    device: for the tensors, else that of the input.
    """
    H = int(_sizes(weights)[0])
    plan = plans.plan_on(input.device, H, 1, input.dtype, precision, D == 2)
    if plan.path == "torch":
        return None
    call = _plan_call(plan, weights, count, D, 1)
    like = input if device is None else torch.empty_like(input, device=device)
    return layer.reserve(call, like, capacity(input.shape[1], H, plans.interpreted()))


def _apart(tensors):
    """The tensors, copied where they share memory, which what an operator returns must not."""
    apart, seen, shared = list(tensors), set(), []
    for n, x in enumerate(tensors):
        memory = x.untyped_storage().data_ptr()
        if memory in seen:
            shared.append(n)
        seen.add(memory)
    if shared:
        # All of them in one launch
        for n, x in zip(shared, torch._foreach_mul([apart[n] for n in shared], 1), strict=True):
            apart[n] = x
    return apart


def _clear_rest(call, saved, B):
    """Zeros for the sequences that no tile has, and the matrices that nobody transposes: operators
    have to return the same each time.
    """
    room, held = capacity(B, call.H, plans.interpreted()), call.grid[0] * call.tile["BLOCK_B"]
    for first in range(0, len(saved or ()), layer.SAVED) if held < room else ():
        steps = saved[first + 2]
        steps[steps.numel() // room * held :].zero_()
    # W_ih is transposed for the layers that are not the first of a launch.
    for matrices in (saved or ())[layer.SAVED - 1 :: layer.SAVED * call.layers]:
        if matrices is not None:
            matrices[call.D :].zero_()


def _besides_output(saved):
    """What `_reserve` gave but for the last layer's output, which the operator returns anyway."""
    if saved is None:
        return []
    last = len(saved) - layer.SAVED
    return [x for n, x in enumerate(saved) if x is not None and n != last]


def _check(input, h_0, c_0, weights, masks, resets, count, D, precision):
    """The module has looked at what users get wrong; operators can be called with anything."""
    for name, x in (("h_0", h_0), ("c_0", c_0)):
        if x is not None and (x.dtype != input.dtype or x.device != input.device):
            raise RuntimeError(
                f"Input and hidden tensors are not alike, found {input.dtype} at {input.device} "
                f"for input and {x.dtype} at {x.device} for {name}"
            )
    if not _fit(input, h_0, c_0, weights, masks, resets, count, D) or precision not in _PRECISIONS:
        raise ValueError("fused_lstm: the arguments do not fit together")
    if len(input) == 0:
        # nn.LSTM's, which a compiler only meets here: it knows no sizes before.
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def _fit(input, h_0, c_0, weights, masks, resets, count, D):
    """Whether sizes, dtypes and devices are as the kernels take them."""
    counts = D in (1, 2) and count > 0 and count % D == 0 and len(weights) % count == 0
    if not counts or len(weights) // count not in (2, 3, 4, 5):
        return False
    if input.dim() != 3 or weights[1].dim() != 2:
        return False
    (T, B, I), (H, P), L = input.shape, _sizes(weights), count // D
    first = named(by_layer(weights, count)[0])
    bias, projected = first.bias_ih is not None, first.weight_hr is not None
    sizes = [*weight_sizes(I, H, L, bias, D, P if projected else 0)]
    masks = masks or ()
    sizes += len(masks) * [(T, B, D * P)]
    for state, size in ((h_0, P), (c_0, H)):
        sizes += [] if state is None else [(count, B, size)]
    states = [x for x in (h_0, c_0) if x is not None]
    tensors = [*weights, *masks, *states]
    fit = [x.shape for x in tensors] == sizes and len(states) != 1 and len(masks) in (0, L - 1)
    if resets is not None:
        fit = fit and resets.shape == (T, B) and resets.dtype == torch.bool
        fit = fit and resets.device == input.device
    return fit and all(x.dtype == input.dtype and x.device == input.device for x in tensors)
