"""Derivatives of other kinds: second ones, torch.func's transforms, forward mode."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from lstm import LSTM, layer, reference
from lstm.packing import Packing
from lstm.plan import Plan
from tests.accuracy import CEILING
from tests.lstm.pairs import assert_same, flat, make_hx, make_input, no_onednn, pair

T, B, I, H = 3, 2, 2, 3


# Second derivatives: the kernels' own Functions in float64, with the equations in place of kernels.


@pytest.fixture
def no_kernels(monkeypatch):
    """Has the Functions compute what the kernels do by the equations, in any dtype."""

    def forward(call, masks, resets, input, h_0, c_0, weights, saved=None):
        layers = reference.by_layer(weights, call.L * call.D)
        sizes = call.packing and call.packing.batch_sizes
        return reference.lstm(input, h_0, c_0, layers, masks, resets, call.D, sizes)

    def backward(call, grads, masks, resets, saved, inputs, needs):
        def function(input, h_0, c_0, *weights):
            return forward(call, masks, resets, input, h_0, c_0, weights)

        with torch.enable_grad():
            grads = reference.backward(function, inputs, needs, grads)
        return [x if x is None else x.detach() for x in grads]

    monkeypatch.setattr(layer, "reserve", lambda call, input: [])
    monkeypatch.setattr(layer, "forward", forward)
    monkeypatch.setattr(layer, "backward", backward)


TILE = (("BLOCK_B", 8), ("BLOCK_H", 16), ("BLOCK_K", 16))


def a_call(L=1, D=1, P=0, bias=True):
    plan = Plan("fused", "", TILE, precision="ieee")
    # Only _LSTM goes through `forward` and `backward`.
    return layer.plan_call(plan, L, D, H, P, bias, B)._replace(plain=False)


def weights_of(L=1, D=1, P=0, bias=True):
    module = torch.nn.LSTM(I, H, L, bias, bidirectional=D == 2, proj_size=P, dtype=torch.float64)
    return list(module.parameters())


def double(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def assert_twice_differentiable(function, inputs):
    assert gradcheck(function, inputs)
    # It takes the first derivatives as they are, which create_graph computes in a way of its own.
    assert gradgradcheck(function, inputs)
    loss = sum(y.square().sum() for y in function(*inputs))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert_same(torch.autograd.grad(loss, inputs, create_graph=True), first, 1e-12)


# Where the loss reaches: of output, h_n, c_n
ALL = slice(0, 3)
SECOND = {
    "output": (dict(), slice(0, 1)),
    "h_n": (dict(), slice(1, 2)),
    "c_n": (dict(), slice(2, 3)),
    "two_layers": (dict(L=2), ALL),
    "both_directions": (dict(D=2, bias=False), ALL),
    "projected": (dict(P=2), ALL),
}


@pytest.mark.parametrize(("options", "reach"), SECOND.values(), ids=SECOND)
def test_right_to_second_order_in_float64(options, reach, no_kernels):
    call = a_call(**options)
    LD, P = call.L * call.D, options.get("P") or H
    weights = [w.detach().requires_grad_() for w in weights_of(**options)]
    masks = [torch.rand(T, B, call.D * P, dtype=torch.float64).round() * 2] * (call.L - 1)
    resets = torch.tensor([[False, False], [True, False], [False, True]])

    def function(input, h_0, c_0, *weights):
        return layer.lstm(call, input, h_0, c_0, weights, masks or None, resets)[reach]

    assert_twice_differentiable(
        function, (double(T, B, I), double(LD, B, P), double(LD, B, H), *weights)
    )


def test_right_to_second_order_with_frozen_weights_and_packed(no_kernels):
    packing = Packing(torch.tensor([2, 2, 1]), torch.device("cpu"))
    call = a_call()._replace(packing=packing)
    weight_ih, weight_hh, *biases = weights_of()
    frozen = [w.detach() for w in (weight_hh, *biases)]

    def function(input, weight_ih):
        return layer.lstm(call, input, None, None, [weight_ih, *frozen])

    assert_twice_differentiable(function, (double(5, I), weight_ih.detach().requires_grad_()))


def second(module, x, hx=None):
    """First derivatives, then those of a penalty on them."""
    x = x.detach().requires_grad_()
    leaves = [x, *(y for y in module.parameters() if y.requires_grad)]
    loss = module(x, hx)[0].square().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return *first, *torch.autograd.grad(sum(y.square().sum() for y in first), leaves)


@no_onednn
@pytest.mark.parametrize("proj_size", [0, 7])
def test_gradient_penalty(proj_size, device):
    # nn.LSTM on a CPU: cuDNN has no second derivative.
    ours, theirs = pair(5, 20, 2, proj_size=proj_size)

    def gradients(module, device):
        torch.manual_seed(2)
        x = make_input(4, 3, 5, device=device).requires_grad_()
        hx = make_hx((2, 3, 20), dict(proj_size=proj_size), device)
        hx = tuple(state.requires_grad_() for state in hx)
        output, _ = module.to(device)(x, hx)
        first = torch.autograd.grad(output.square().sum(), [x, *hx], create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(penalty, [x, *hx, *module.parameters()])
        return [gradient.cpu() for gradient in (*first, *second)]

    assert_same(gradients(ours, device), gradients(theirs, "cpu"), 2 * CEILING[torch.float32])


def test_gradient_of_a_linear_loss_can_be_differentiated(device):
    ours, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    assert gradient.requires_grad
    frozen, _ = pair(5, 20, device=device)
    frozen.requires_grad_(False)
    (expected,) = torch.autograd.grad(frozen(x)[0].sum(), x)
    assert_same([gradient], [expected])


@pytest.mark.parametrize("frozen", [[], ["weight_ih_l0", "bias_hh_l0", "weight_hh_l1"]], ids=str)
def test_plain_calls_are_right_to_second_order(frozen, device):
    """_PlainLSTM has the same second derivatives as _LSTM, given the zeros it begins with."""
    module, _ = pair(5, 20, 2, device=device)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    x, zeros = make_input(4, 3, 5, device=device), torch.zeros(2, 3, 20, device=device)
    assert_same(second(module, x), second(module, x, (zeros, zeros)))


def test_hessian_vector_product(device):
    module, theirs = pair(3, 8, dtype=torch.float64, device=device)
    x = make_input(4, 2, 3, device=device, dtype=torch.float64)
    v = torch.ones_like(x)
    products = [
        torch.autograd.functional.hvp(lambda x, m=m: m(x)[0].square().sum(), x, v)[1]
        for m in (module, theirs)
    ]
    assert_same([products[0]], [products[1]], 1e-12)


def test_first_order_runs_no_equations(device, monkeypatch):
    module, _ = pair(5, 20, 2, device=device)

    def forbidden(*_, **__):
        raise AssertionError("the equations ran")

    monkeypatch.setattr(reference, "lstm", forbidden)
    x = make_input(4, 3, 5, device=device).requires_grad_()
    hx = tuple(make_input(2, 3, 20, device=device) for _ in range(2))
    for states in (None, hx):
        module(x, states)[0].sum().backward()
    with pytest.raises(AssertionError, match="the equations ran"):
        second(module, x)


# torch.func and forward mode: by the equations, so in float64 they are right to its precision.


@pytest.fixture
def model(device):
    module = LSTM(5, 20, 2, device=device, dtype=torch.float64)
    x = make_input(4, 3, 5, device=device, dtype=torch.float64)
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return functional_call(module, parameters, (x,))[0].square().sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    return module, x, parameters, loss, expected


def test_grad(model):
    _, x, parameters, loss, expected = model
    assert_same(grad(loss)(parameters, x).values(), expected, 1e-12)


def test_gradients_of_each_sample(model):
    _, x, parameters, loss, expected = model
    grads = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    assert_same([y.sum(0) for y in grads.values()], expected, 1e-12)
    one = grad(loss)(parameters, x[:, 1])
    assert_same([y[1] for y in grads.values()], one.values(), 1e-12)


def test_an_ensemble(model, device):
    module, x, *_ = model
    other = LSTM(5, 20, 2, device=device, dtype=torch.float64)
    stacked, _ = torch.func.stack_module_state([module, other])
    outputs = vmap(lambda p: functional_call(module, p, (x,))[0])(stacked)
    assert_same(outputs, [module(x)[0], other(x)[0]], 1e-12)


# torch 2.14 scripts a table of its own at the first one.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_jvp_and_dual_tensors(model):
    module, x, *_ = model
    direction = torch.randn_like(x)
    output, along = jvp(lambda x: module(x)[0], (x,), (direction,))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (module(x + s * direction)[0] for s in (step, -step))
    assert_same([output, along], [module(x)[0], (ahead - behind) / (2 * step)], 1e-8)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, direction))[0])
        assert_same([dual.tangent], [along], 1e-12)


def test_float32_and_resets_too(device, launches):
    module, theirs = pair(5, 20, device=device)
    x, resets = make_input(4, 3, 5, device=device), torch.zeros(4, 3, dtype=torch.bool)
    resets = resets.to(device)
    mapped = vmap(lambda x, resets: module(x, None, resets)[0], in_dims=1, out_dims=1)(x, resets)
    assert launches == {"forward": 0, "backward": 0}
    assert_same([mapped], [flat(theirs(x))[0]], CEILING[torch.float32])
