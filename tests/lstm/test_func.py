"""torch.func, and derivatives of derivatives: what goes past the one derivative of the kernels."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from lstm import LSTM, layer, native, pieces, reference
from lstm.call import plan_call
from lstm.packing import Packing
from lstm.plan import plan
from tests.accuracy import CEILING
from tests.lstm.pairs import (
    assert_equal,
    assert_same,
    flat,
    make_hx,
    make_input,
    no_onednn,
    pair,
    run,
)

# PyTorch's own, of what it scripts at the first use of forward mode
scripts = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

# float64 against float64
CLOSE = 1e-9


def double(*args, **kwargs):
    """lstm.LSTM and nn.LSTM in float64 on the CPU: cuDNN has neither a second nor a forward-mode
    derivative.
    """
    return pair(*args, dtype=torch.float64, **kwargs)


def make(*size):
    return make_input(*size, dtype=torch.float64)


# torch.func


def test_functional_call(device, launches):
    ours, _ = pair(5, 20, 2, device=device)
    torch.manual_seed(2)
    other = LSTM(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    weights = {name: 2 * weight for name, weight in ours.named_parameters()}
    output, _ = functional_call(other, weights, (x,))
    gradients = torch.autograd.grad(output.sum(), list(ours.parameters()))
    assert launches == {"forward": 2, "backward": 2}
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(2)
    expected, _ = ours(x)
    assert torch.equal(output, expected)
    doubled = torch.autograd.grad(expected.sum(), list(ours.parameters()))
    assert_equal(gradients, [2 * gradient for gradient in doubled])


def loss_of(module):
    """A loss of all three results, by parameters, input and states."""

    def loss(parameters, x, *hx):
        output, h_n, c_n = flat(functional_call(module, parameters, (x, hx or None)))
        return output.square().sum() + h_n.cos().sum() + c_n.exp().sum()

    return loss


@no_onednn
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_layers=2, bidirectional=True), dict(bias=False, proj_size=3)],
    ids=["one_layer", "layers_and_directions", "projected"],
)
def test_grad(options, hx):
    ours, theirs = double(5, 8, **options)
    count = ours.num_layers * (1 + ours.bidirectional)
    hx = tuple(map(torch.Tensor.double, make_hx((count, 3, 8), options, "cpu"))) if hx else ()
    x, parameters = make(4, 3, 5), dict(ours.named_parameters())
    gradients, of_x = grad(loss_of(ours), argnums=(0, 1))(parameters, x, *hx)
    x.requires_grad_()
    loss = loss_of(theirs)(dict(theirs.named_parameters()), x, *hx)
    expected = torch.autograd.grad(loss, [*theirs.parameters(), x])
    assert_same([*gradients.values(), of_x], expected, CLOSE)


def test_gradients_of_each_sequence():
    ours, theirs = double(5, 8, 2)
    x, parameters = make(4, 3, 5), dict(ours.named_parameters())
    # Sequences of one, once without a batch and once in one.
    alone = vmap(grad(loss_of(ours)), (None, 1))(parameters, x)
    batched = vmap(lambda p, x: grad(loss_of(ours))(p, x[:, None]), (None, 1))(parameters, x)
    for b in range(3):
        loss = loss_of(theirs)(dict(theirs.named_parameters()), x[:, b])
        expected = torch.autograd.grad(loss, list(theirs.parameters()))
        assert_same([gradient[b] for gradient in alone.values()], expected, CLOSE)
        assert_same([gradient[b] for gradient in batched.values()], expected, CLOSE)


def test_vmap_over_an_ensemble():
    models = [double(5, 8)[0] for _ in range(3)]
    for n, model in enumerate(models):
        torch.nn.init.normal_(model.weight_hh_l0, std=0.1 * (n + 1))
    stacked, _ = torch.func.stack_module_state(models)
    x = make(4, 3, 5)
    outputs = vmap(lambda p, x: flat(functional_call(models[0], p, (x,))), (0, None))(stacked, x)
    for n, model in enumerate(models):
        assert_same([y[n] for y in outputs], flat(torch.nn.LSTM.forward(model, x)), CLOSE)


def test_vmap_with_resets():
    ours, _ = double(5, 8)
    x, resets = make(2, 4, 3, 5), torch.rand(2, 4, 3) < 0.4
    resets[:, 2, 0] = True
    outputs = vmap(lambda x, resets: flat(ours(x, None, resets)))(x, resets)
    for n in range(2):
        assert_same([y[n] for y in outputs], flat(ours(x[n], None, resets[n])), CLOSE)


def test_vmap_of_float32_where_the_kernels_would_serve(device, launches):
    ours, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)
    mapped = vmap(lambda x: ours(x)[0], in_dims=1, out_dims=1)(x)
    assert launches == {"forward": 0, "backward": 0}
    assert_same([mapped], [ours(x)[0]])
    assert launches == {"forward": 1, "backward": 0}


@scripts
def test_forward_mode_of_float32_where_the_kernels_would_serve(device, launches):
    ours, _ = pair(5, 20, device=device)
    x, tangent = (make_input(4, 3, 5, device=device) for _ in range(2))
    with forward_ad.dual_level():
        output, _ = ours(forward_ad.make_dual(x, tangent))
        derivative = forward_ad.unpack_dual(output).tangent
    assert launches == {"forward": 0, "backward": 0}
    ours.double()
    (expected,) = along(lambda x: (ours(x)[0],), x.double(), tangent.double())
    assert_same([derivative], [expected.float()])


def along(function, x, tangent, step=1e-6):
    """The derivative by differences."""
    ahead, behind = function(x + step * tangent), function(x - step * tangent)
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


@scripts
def test_jvp():
    ours, theirs = double(5, 8, 2, bidirectional=True)
    x, tangent = make(4, 3, 5), make(4, 3, 5)
    returned, derivatives = jvp(lambda x: flat(ours(x)), (x,), (tangent,))
    assert_same(returned, flat(theirs(x)), CLOSE)
    assert_same(derivatives, along(lambda x: flat(theirs(x)), x, tangent), 1e-6)


@scripts
def test_forward_mode_of_the_input_and_of_a_weight():
    ours, theirs = double(5, 8)
    x, tangent, of_weight = make(4, 3, 5), make(4, 3, 5), make(32, 8)
    weight = ours.weight_hh_l0.detach()

    def call(module, x, weight):
        return flat(functional_call(module, {"weight_hh_l0": weight}, (x,)))

    with forward_ad.dual_level():
        dual = call(ours, forward_ad.make_dual(x, tangent), forward_ad.make_dual(weight, of_weight))
        derivatives = [forward_ad.unpack_dual(y).tangent for y in dual]
    expected = [
        a + b
        for a, b in zip(
            along(lambda x: call(theirs, x, weight), x, tangent),
            along(lambda weight: call(theirs, x, weight), weight, of_weight),
            strict=True,
        )
    ]
    assert_same(derivatives, expected, 1e-6)


# Second derivatives, through the kernels' Functions


class Launches:
    """Stand-ins of both launchers in float64, by the reference: around them a Function computes as
    it does around the kernels, and differences can tell whether that is right.
    """

    def __init__(self):
        # By the memory that the kernels would write it to.
        self.saved = {}

    def forward(
        self, gates_ih, bias_ih, bias_hh, weight_hh, output, steps, weight_hh_t, h_0, c_0, h_n, c_n,
        layer, D, T, B, tile, offsets=None, resets=None, meeting=None,
    ):  # fmt: skip
        H, of_layer = c_n.shape[-1], slice(layer * D, (layer + 1) * D)
        # The products of all directions are side by side, and a weight picks those of one.
        picks = torch.eye(D * 4 * H, dtype=torch.float64).split(4 * H)
        biases = [b.view(D, 4 * H) for b in (bias_ih, bias_hh) if b is not None]
        layers = list(zip(picks, weight_hh.view(D, 4 * H, H), *biases, strict=True))
        sizes = offsets if offsets is None else offsets.diff()
        rows = (T, B) if offsets is None else (-1,)
        resets = resets if resets is None else resets.bool()

        def function(gates_ih, h_0, c_0):
            x = gates_ih.view(D, -1, 4 * H).transpose(0, 1).reshape(*rows, D * 4 * H)
            return reference.lstm(x, h_0, c_0, layers, None, resets, D, sizes)

        # A gradient of h_0 is wanted where its product is in gates_ih, too.
        zeros = gates_ih.new_zeros(D, B, H)
        fed = gates_ih, *(zeros if s is None else s[of_layer] for s in (h_0, c_0))
        outputs = function(*fed)
        output.copy_(outputs[0].view_as(output))
        h_n[of_layer], c_n[of_layer] = outputs[1:]
        if steps is not None:
            self.saved[steps.data_ptr()] = function, fed

    def backward(
        self, steps, weight_hh_t, grad_output, grad_h_n, grad_c_n, grad_gates, grad_h_0, grad_c_0,
        grad_bias, layer, D, T, B, tile, offsets=None, resets=None, meeting=None,
    ):  # fmt: skip
        of_layer = slice(layer * D, (layer + 1) * D)
        function, fed = self.saved[steps.data_ptr()]
        fed = [x.detach().requires_grad_() for x in fed]
        with torch.enable_grad():
            output, h_n, c_n = function(*fed)
        grads = (
            torch.zeros_like(output) if grad_output is None else grad_output.view_as(output),
            torch.zeros_like(h_n) if grad_h_n is None else grad_h_n[of_layer],
            torch.zeros_like(c_n) if grad_c_n is None else grad_c_n[of_layer],
        )
        outs = grad_gates, *(s if s is None else s[of_layer] for s in (grad_h_0, grad_c_0))
        wanted = [(x, out) for x, out in zip(fed, outs, strict=True) if out is not None]
        gradients = torch.autograd.grad((output, h_n, c_n), [x for x, _ in wanted], grads)
        for (_, out), gradient in zip(wanted, gradients, strict=True):
            out.copy_(gradient.reshape(out.shape))
        if grad_bias is not None:
            # A part a tile, of which the sum counts
            grad_bias[of_layer] = 0
            grad_bias[of_layer][:, -1] = grad_gates.view(D, -1, grad_bias.shape[-1]).sum(1)


@pytest.fixture
def in_float64(monkeypatch):
    stand_ins = Launches()
    monkeypatch.setattr(pieces, "SUMS", torch.float64)
    monkeypatch.setattr(pieces.kernels().forward, "lstm_forward", stand_ins.forward)
    monkeypatch.setattr(pieces.kernels().backward, "lstm_backward", stand_ins.backward)


FUNCTIONS = {
    "plain": dict(),
    "plain_layers": dict(L=2),
    "plain_h_n": dict(L=2, places=[1]),
    "plain_c_n": dict(L=2, places=[2]),
    "plain_output": dict(places=[0]),
    "plain_frozen": dict(L=2, frozen=("input", 0, 1, 3, 6)),
    "hx": dict(hx=True),
    "hx_h_n": dict(hx=True, D=2, places=[1]),
    "hx_c_n": dict(hx=True, L=2, places=[2]),
    "hx_frozen": dict(hx=True, L=2, frozen=("input", "h_0", 0, 5, 6)),
    "only_c_0": dict(hx=True, frozen=("input", "h_0", 0, 1, 2, 3)),
    "directions": dict(D=2),
    "all": dict(L=2, D=2, hx=True, masks=True, resets=True),
    "no_bias": dict(L=2, bias=False, hx=True),
    "projected": dict(L=2, D=2, P=2, hx=True, masks=True),
    "projected_resets": dict(P=2, hx=True, resets=True),
    "projected_h_n": dict(P=2, bias=False, places=[1]),
    "packed": dict(L=2, D=2, lengths=[3, 2], masks=True),
    "packed_hx_resets": dict(lengths=[3, 1], hx=True, resets=True),
}


def function_of(
    L=1, D=1, P=0, bias=True, hx=False, masks=False, resets=False, places=(0, 1, 2), frozen=(),
    lengths=None, T=3, B=2, I=2, H=3,
):  # fmt: skip
    """A call on the kernels in float64, as gradcheck takes it: a function and its inputs. places:
    of what it returns; frozen: what needs no gradient, weights by their number.
    """
    call = plan_call(plan(H, B, torch.float32, None, True), L, D, H, P, bias, B)
    rows = (T, B)
    if lengths:
        sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        call = call._replace(packing=Packing(sizes, torch.device("cpu")), plain=False)
        rows = (sum(lengths),)
    module = torch.nn.LSTM(I, H, L, bias, bidirectional=D == 2, proj_size=P, dtype=torch.float64)
    states = [make(L * D, B, P or H), make(L * D, B, H)] if hx else []
    inputs = [make(*rows, I), *states, *(weight.detach() for weight in module.parameters())]
    names = ["input", "h_0", "c_0"][: 1 + len(states)] + list(range(len(inputs)))
    for name, x in zip(names, inputs, strict=False):
        x.requires_grad_(name not in frozen)
    masks = [2.0 * (make(*rows, D * (P or H)) > 0) for _ in range(L - 1)] if masks else None
    masks = masks and [mask.double() for mask in masks]
    flags = torch.zeros(rows, dtype=torch.bool) if resets else None
    if resets:
        # Before the first step, and between two.
        flags.view(-1)[[0, -1]] = True

    def function(*inputs):
        input, *rest = inputs
        h_0, c_0 = rest[:2] if hx else (None, None)
        outputs = layer.lstm(call, input, h_0, c_0, rest[2 * hx :], masks, flags)
        name = "PlainLSTM" if call.plain and not hx and not masks and not resets else "_LSTM"
        assert outputs[0].grad_fn.name() == f"{name}Backward"
        return tuple(outputs[place] for place in places)

    return function, inputs


@no_onednn
@pytest.mark.parametrize("options", FUNCTIONS.values(), ids=FUNCTIONS)
def test_first_and_second_derivatives_are_those_of_differences(options, in_float64):
    function, inputs = function_of(**options)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    # To be differentiated again is another backward, of which that only sees the derivative.
    outputs, leaves = function(*inputs), [x for x in inputs if x.requires_grad]
    upstream = [torch.randn_like(y) for y in outputs]
    first, again = (
        torch.autograd.grad(outputs, leaves, upstream, retain_graph=True, create_graph=create)
        for create in (False, True)
    )
    assert_same(again, first, CLOSE)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("options", [dict(), dict(hx=True, resets=True)], ids=["plain", "other"])
def test_second_derivatives_one_number_after_the_other(options, in_float64):
    function, inputs = function_of(**options, I=1, H=2)
    assert torch.autograd.gradgradcheck(function, inputs)


@no_onednn
@pytest.mark.parametrize("proj_size", [0, 7])
@pytest.mark.parametrize("hx", [False, True])
def test_gradient_penalty(hx, proj_size, device):
    # nn.LSTM on a CPU: cuDNN has no second derivative.
    ours, theirs = pair(5, 20, 2, proj_size=proj_size)

    def gradients(module, device):
        torch.manual_seed(2)
        x = make_input(4, 3, 5, device=device).requires_grad_()
        states = make_hx((2, 3, 20), dict(proj_size=proj_size), device) if hx else ()
        states = tuple(state.requires_grad_() for state in states)
        output, _ = module.to(device)(x, states or None)
        first = torch.autograd.grad(output.square().sum(), [x, *states], create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(penalty, [x, *states, *module.parameters()])
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


@pytest.mark.parametrize("place", [0, 1, 2], ids=["output", "h_n", "c_n"])
def test_a_hessian_vector_product(place, device, launches):
    ours, theirs = pair(5, 20, 2)

    def product(module, device):
        torch.manual_seed(2)
        x, vector = (make_input(4, 3, 5, device=device) for _ in range(2))
        module = module.to(device)

        def loss(x):
            return flat(module(x))[place].square().sum()

        _, of_x = torch.autograd.functional.hvp(loss, x, vector)
        weights = list(module.parameters())
        first = torch.autograd.grad(loss(x), weights, create_graph=True)
        inner = sum((g * torch.ones_like(g)).sum() for g in first)
        return [y.cpu() for y in (of_x, *torch.autograd.grad(inner, weights))]

    assert_same(product(ours, device), product(theirs, "cpu"), 2 * CEILING[torch.float32])
    assert launches["forward"] == 4


def test_a_third_derivative(device):
    ours, theirs = pair(5, 8)

    def derivatives(module, device, dtype):
        torch.manual_seed(2)
        x = make_input(3, 2, 5).to(device, dtype).requires_grad_()
        value, gradients = module.to(device, dtype)(x)[0].square().sum(), []
        for _ in range(3):
            gradients += torch.autograd.grad(value, x, create_graph=True)
            value = gradients[-1].square().sum()
        return [gradient.float().cpu() for gradient in gradients]

    actual = derivatives(ours, device, torch.float32)
    assert_same(actual, derivatives(theirs, "cpu", torch.float64), 4 * CEILING[torch.float32])


@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("recompute", [0, 2])
def test_a_first_derivative_runs_nothing_of_it(hx, recompute, device, launches, monkeypatch):
    """Who takes no second derivative pays nothing for it: not a step in plain torch."""

    def refuse(*args):
        raise AssertionError("in plain torch")

    monkeypatch.setattr(reference, "lstm", refuse)
    monkeypatch.setattr(reference, "backward", refuse)
    monkeypatch.setattr(native, "lstm", refuse)
    ours, theirs = pair(5, 20, 2, device=device)
    ours.recompute = recompute
    x = make_input(4, 3, 5, device=device)
    hx = make_hx((2, 3, 20), {}, device) if hx else None
    assert_same(run(ours, x, hx), run(theirs, x, hx))
    assert launches["backward"] == 2 * (2 if recompute else 1)
    x.requires_grad_()
    first = torch.autograd.grad(ours(x, hx)[0].sum(), x, retain_graph=True)
    assert not first[0].requires_grad
    with pytest.raises(AssertionError, match="in plain torch"):
        torch.autograd.grad(ours(x, hx)[0].sum(), x, create_graph=True)
