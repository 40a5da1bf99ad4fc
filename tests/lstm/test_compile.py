"""lstm.LSTM in what compiles a model: torch.compile, torch.export and ONNX.

What is compared with is the same call outside of it.
"""

import io
import shutil

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm import LSTM
from tests.accuracy import EXACT_CEILING
from tests.lstm.pairs import (
    assert_equal,
    assert_same,
    flat,
    gradients,
    make_hx,
    make_input,
    no_onednn,
    pair,
)

# With it a step of a compiler is the one of eager mode, but for fused sums of what is around.
CLOSE = EXACT_CEILING

# Dynamo's, of weights that are no leaves of autograd
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that:UserWarning")
# Dynamo's, of what it looks into where a call that raised in the graph is run again outside.
looks_into_caches = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")


@pytest.fixture(autouse=True)
def fresh():
    """What was compiled before counts in no test."""
    torch.compiler.reset()


def compiled(module, backend="aot_eager", fullgraph=True, **options):
    return torch.compile(module, backend=backend, fullgraph=fullgraph, **options)


def with_states(module, input, hx):
    """hx for a call, of all layers and directions, if wanted."""
    if not hx:
        return None
    B = input.shape[0 if module.batch_first else 1]
    size = module.num_layers * (1 + module.bidirectional), B, module.hidden_size
    return make_hx(size, dict(proj_size=module.proj_size), input.device)


# torch.compile

# With states or without
MODULES = {
    "one_layer": (dict(), False),
    "layers_and_directions": (dict(num_layers=2, bidirectional=True, batch_first=True), True),
    "projected": (dict(num_layers=2, proj_size=3, bias=False), True),
}
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(
            shutil.which("g++") is None and not torch.cuda.is_available(),
            reason="on a CPU inductor needs a C++ compiler",
        ),
    ),
]


def counting(backend):
    """The backend, and how many graphs it got: `.frame_count`."""
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "hx"), MODULES.values(), ids=MODULES)
def test_a_compiled_call_equals_one_that_is_not(options, hx, backend, device, launches):
    module, _ = pair(5, 20, device=device, **options)
    x = make_input(4, 3, 5, device=device)
    hx = with_states(module, x, hx)
    expected, counted = gradients(module, x, hx), dict(launches)
    assert counted["backward"] > 0
    call = compiled(module, backend)
    assert_same(gradients(call, x, hx), expected, CLOSE)
    assert launches == {name: 2 * count for name, count in counted.items()}
    with torch.no_grad():
        assert_same(flat(call(x, hx)), expected[:3], CLOSE)


def test_other_sizes_compile_once_more_and_no_more(device):
    module, _ = pair(5, 20, 2, device=device)
    backend = counting("aot_eager")
    call = compiled(module, backend)
    for T, B in ((4, 3), (3, 2), (2, 4), (5, 9)):
        x = make_input(T, B, 5, device=device)
        assert_same(gradients(call, x), gradients(module, x), CLOSE)
    assert backend.frame_count == 2


def test_dynamic_from_the_start_compiles_once(device):
    module, _ = pair(5, 20, bidirectional=True, device=device)
    backend, counts = counting("aot_eager"), []
    call = compiled(module, backend, dynamic=True)
    for T, B in ((4, 3), (3, 17), (2, 4)):
        x = make_input(T, B, 5, device=device)
        hx = with_states(module, x, True)
        assert_same(gradients(call, x, hx), gradients(module, x, hx), CLOSE)
        counts.append(backend.frame_count)
    assert counts == 3 * counts[:1]


@pytest.mark.parametrize("size", [(1, 3, 5), (4, 1, 5), (4, 5), (4, 0, 5)])
def test_sizes_that_are_special(size, device):
    module, _ = pair(5, 20, device=device)
    x = make_input(*size, device=device)
    actual, expected = gradients(compiled(module), x), gradients(module, x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_slices(device):
    module, _ = pair(3, 130, device=device)
    x = make_input(2, 2, 3, device=device)
    assert_same(gradients(compiled(module), x), gradients(module, x), CLOSE)


@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True)])
def test_resets(options, device):
    module, _ = pair(5, 20, device=device, **options)
    x, resets = make_input(4, 3, 5, device=device), torch.zeros(4, 3, dtype=torch.bool)
    resets[0, 1] = resets[2, 0] = True
    resets = resets.to(device)
    hx = with_states(module, x, True)
    expected = gradients(module, x, hx, resets)
    call = compiled(module)
    assert_same(gradients(call, x, hx, resets), expected, CLOSE)
    # Which are not those without.
    assert not torch.equal(call(x, hx)[0], expected[0])


@pytest.mark.parametrize("options", [dict(num_layers=2), dict(bidirectional=True)])
def test_recompute(options, device, launches):
    module, _ = pair(5, 20, device=device, **options)
    x = make_input(4, 3, 5, device=device)
    expected = gradients(module, x)
    module.recompute = 2
    before = dict(launches)
    assert_same(gradients(compiled(module), x), expected, CLOSE)
    # Two parts, twice, of two layers or directions
    assert launches["forward"] - before["forward"] == 8


class Model(nn.Module):
    """With a layer and functions around an LSTM, for a compiler to fuse."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = LSTM(5, 20, 2, **options)
        self.linear = nn.Linear(20, 2)

    def forward(self, x, hx=None):
        output, hx = self.lstm(x.tanh(), hx)
        return self.linear(output.relu()).transpose(0, 1), hx


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_whose_dropout_draws_the_same_numbers(backend, device):
    from torch._inductor import config

    model = Model(dropout=0.5).to(device)
    x, hx = make_input(4, 3, 5, device=device), make_hx((2, 3, 20), {}, device)

    def run(call):
        torch.manual_seed(2)
        return gradients(call, x, hx)

    expected = run(model)
    # Otherwise inductor draws its own.
    with config.patch(fallback_random=True):
        assert_same(run(compiled(model, backend)), expected, CLOSE)
    evaluated = flat(model.eval()(x, hx))
    assert not torch.equal(evaluated[0], expected[0])
    assert_same(flat(compiled(model, backend)(x, hx)), evaluated, CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    module, _ = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    hx = with_states(module, x, True)
    call = compiled(module)
    with torch.autocast(device.type, dtype):
        expected = gradients(module, x, hx)
        actual = gradients(call, x, hx)
    assert actual[0].dtype == dtype and actual[3].dtype == torch.float32
    assert_same(actual, expected, CLOSE)


def test_precision_is_that_of_the_call(device, monkeypatch):
    module, theirs = pair(5, 20)
    x = make_input(4, 3, 5)
    module, theirs = module.to(device), theirs.double()
    call, expected = compiled(module), theirs(x.double())[0].float().to(device)
    x = x.to(device)
    with torch.no_grad():
        assert_same([call(x)[0]], [expected])
        with pytest.raises(AssertionError):
            assert_same([call(x)[0]], [expected], EXACT_CEILING)
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
        assert_same([call(x)[0]], [expected], EXACT_CEILING)


@pytest.mark.parametrize("trained", [("l1",), ("weight_ih_l0", "bias_hh"), ()])
def test_frozen_weights(trained, device):
    module, _ = pair(5, 20, 2, device=device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    x = make_input(4, 3, 5, device=device)
    weights = [weight for weight in module.parameters() if weight.requires_grad]

    def run(call, x):
        output, h_n, c_n = flat(call(x))
        leaves = [*weights, x] if x.requires_grad else weights
        loss = output.square().sum() + c_n.sum()
        return output, h_n, c_n, *(torch.autograd.grad(loss, leaves) if leaves else ())

    call = compiled(module)
    assert_same(run(call, x), run(module, x), CLOSE)
    assert call(x)[0].requires_grad == bool(trained)
    if not trained:
        x.requires_grad_()
        assert_same(run(call, x), run(module, x), CLOSE)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["output", "h_n", "c_n"])
def test_a_loss_of_one_result(place, device):
    module, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device).requires_grad_()

    def run(call):
        return torch.autograd.grad(flat(call(x))[place].square().sum(), [x, *module.parameters()])

    assert_same(run(compiled(module)), run(module), CLOSE)


def test_backward_in_eval_mode(device):
    module, _ = pair(5, 20, 2, dropout=0.5, device=device)
    x = make_input(4, 3, 5, device=device)
    module.eval()
    assert_same(gradients(compiled(module), x), gradients(module, x), CLOSE)


def test_parametrized_weights(device):
    module, _ = pair(5, 20, device=device)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    x = make_input(4, 3, 5, device=device)
    assert_same(gradients(compiled(module), x), gradients(module, x), CLOSE)


def test_a_packed_sequence_breaks_the_graph_and_is_right(device, launches):
    module, _ = pair(5, 20, 2, bidirectional=True, device=device)
    x = make_input(4, 3, 5, device=device)

    def run(call):
        fed = x.clone().requires_grad_()
        output, states = call(pack_padded_sequence(fed, torch.tensor([4, 3, 1])))
        loss = output.data.square().sum() + states[1].sum()
        return output.data, *states, *torch.autograd.grad(loss, [fed, *module.parameters()])

    with pytest.raises(RuntimeError, match=r"torch.compiler.disable"):
        run(compiled(module))
    torch.compiler.reset()
    expected = run(module)
    assert_same(run(compiled(module, fullgraph=False)), expected, CLOSE)
    assert launches == {"forward": 4, "backward": 4}


def test_second_derivatives_where_the_compiler_has_them(device):
    module, _ = pair(5, 20, 2, proj_size=3, device=device)
    x = make_input(4, 3, 5, device=device).requires_grad_()
    resets = torch.zeros(4, 3, dtype=torch.bool, device=device)
    resets[2, 1] = True

    def penalty(call):
        output, _ = call(x, None, resets)
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *module.parameters()])

    assert_same(penalty(compiled(module, "eager")), penalty(module), CLOSE)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalty(compiled(module))


def test_vmap_and_functional_call(device, launches):
    module, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)
    expected, _ = module(x)
    mapped = compiled(torch.func.vmap(lambda x: module(x)[0], in_dims=1, out_dims=1))
    assert_same([mapped(x)], [expected])
    # In plain torch
    assert launches == {"forward": 1, "backward": 0}

    weights = {name: 2 * weight for name, weight in module.named_parameters()}

    def call(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0]

    assert_same([compiled(call)(weights, x)], [call(weights, x)], CLOSE)
    assert launches["forward"] == 3


def test_pytorchs_own_is_honoured(force, device, launches):
    force("torch")
    module, theirs = pair(5, 20, 2, bidirectional=True, device=device)
    x = make_input(4, 3, 5, device=device)
    assert_same(gradients(compiled(module), x), gradients(theirs, x), CLOSE)
    assert launches == {"forward": 0, "backward": 0}


@no_onednn
def test_float64_equals_nn_lstm(device, launches):
    for options, _ in MODULES.values():
        module, theirs = pair(5, 20, device=device, dtype=torch.float64, **options)
        x = make_input(4, 3, 5, device=device, dtype=torch.float64)
        assert_same(gradients(compiled(module), x), gradients(theirs, x), 1e-12)
        torch.compiler.reset()
    assert launches == {"forward": 0, "backward": 0}


# Calls that do not fit

BAD_CALLS = {
    "input_size": lambda m: m(torch.zeros(4, 3, 6)),
    "input_4d": lambda m: m(torch.zeros(1, 4, 3, 5)),
    "input_float64": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.float64)),
    "input_int": lambda m: m(torch.zeros(4, 3, 5, dtype=torch.int64)),
    "no_steps": lambda m: m(torch.zeros(0, 3, 5)),
    "h_0_size": lambda m: m(torch.zeros(4, 3, 5), (torch.zeros(1, 3, 9), torch.zeros(1, 3, 20))),
    "c_0_batch": lambda m: m(torch.zeros(4, 3, 5), (torch.zeros(1, 3, 20), torch.zeros(1, 4, 20))),
    "resets_size": lambda m: m(torch.zeros(4, 3, 5), None, torch.zeros(3, 4, dtype=torch.bool)),
    "resets_float": lambda m: m(torch.zeros(4, 3, 5), None, torch.zeros(4, 3)),
}


def error(call):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        call()
    return caught.type, str(caught.value)


@looks_into_caches
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_raise(call, launches):
    module, _ = pair(5, 20)
    kind, message = error(lambda: call(module))
    # Of a whole graph the compiler's own error has it, as a part.
    whole = error(lambda: call(compiled(module, "eager")))
    assert issubclass(whole[0], RuntimeError) and message in whole[1]
    assert error(lambda: call(compiled(module, "eager", fullgraph=False))) == (kind, message)
    assert launches == {"forward": 0, "backward": 0}


# The operators


def operands(H=8, L=2, D=1, P=0, bias=True, hx=True, T=3, B=2, I=3, device="cpu", **others):
    """Arguments of fused_lstm::forward by name."""
    module = LSTM(I, H, L, bias, bidirectional=D == 2, proj_size=P)
    weights = [weight.detach().to(device) for weight in module.parameters()]
    h_0, c_0 = make_hx((L * D, B, H), dict(proj_size=P), device) if hx else (None, None)
    arguments = dict(
        input=make_input(T, B, I, device=device), h_0=h_0, c_0=c_0, weights=weights, masks=None,
        resets=None, count=L * D, D=D, precision="tf32", save=True,
    )  # fmt: skip
    return arguments | others


@pytest.mark.parametrize("other", [torch.float64, torch.float16])
def test_states_of_another_dtype_are_named(other, launches):
    given = operands() | {"c_0": torch.zeros(2, 2, 8, dtype=other)}
    with pytest.raises(RuntimeError, match=f"found torch.float32 at cpu for input and {other}"):
        torch.ops.fused_lstm.forward(**given)
    assert launches == {"forward": 0, "backward": 0}


NONSENSE = {
    "input_size": dict(input=torch.zeros(3, 2, 4)),
    "input_2d": dict(input=torch.zeros(3, 3)),
    "input_0d": dict(input=torch.zeros(())),
    "input_dtype": dict(input=torch.zeros(3, 2, 3, dtype=torch.float64)),
    "h_0_alone": dict(h_0=torch.zeros(2, 2, 8)),
    "c_0_alone": dict(c_0=torch.zeros(2, 2, 8)),
    "h_0_size": dict(h_0=torch.zeros(2, 2, 9), c_0=torch.zeros(2, 2, 8)),
    "c_0_batch": dict(h_0=torch.zeros(2, 2, 8), c_0=torch.zeros(2, 3, 8)),
    "states_layers": dict(h_0=torch.zeros(3, 2, 8), c_0=torch.zeros(3, 2, 8)),
    "no_weights": dict(weights=[]),
    "one_weight": dict(weights=[torch.zeros(32, 3)]),
    "weights_1d": dict(weights=8 * [torch.zeros(32)]),
    "weights_size": dict(weights=8 * [torch.zeros(32, 8)]),
    "weights_of_three_layers": dict(count=3),
    "count_0": dict(count=0),
    "count_negative": dict(count=-2),
    "directions_0": dict(D=0),
    "directions_2": dict(D=2),
    "directions_4": dict(D=4),
    "masks_many": dict(masks=2 * [torch.ones(3, 2, 8)]),
    "masks_size": dict(masks=[torch.ones(3, 2, 9)]),
    "masks_batch": dict(masks=[torch.ones(3, 1, 8)]),
    "masks_dtype": dict(masks=[torch.ones(3, 2, 8, dtype=torch.float64)]),
    "resets_steps": dict(resets=torch.zeros(2, 2, dtype=torch.bool)),
    "resets_1d": dict(resets=torch.zeros(6, dtype=torch.bool)),
    "resets_dtype": dict(resets=torch.zeros(3, 2)),
    "precision": dict(precision="highest"),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_reaches_no_kernel(nonsense, launches):
    with pytest.raises(ValueError, match="fused_lstm: the arguments do not fit together"):
        torch.ops.fused_lstm.forward(**(operands(hx=False) | nonsense))
    assert launches == {"forward": 0, "backward": 0}


def test_no_steps_reach_no_kernel(launches):
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        torch.ops.fused_lstm.forward(**operands(input=torch.zeros(0, 2, 3)))
    assert launches == {"forward": 0, "backward": 0}


OPERANDS = {
    "plain": dict(L=1, hx=False),
    "no_bias": dict(bias=False),
    "all": dict(D=2, P=3, masks=True, resets=True),
    "slices": dict(H=130, L=1, T=2, resets=True),
    "saves_nothing": dict(L=1, save=False),
}


@pytest.mark.parametrize("options", OPERANDS.values(), ids=OPERANDS)
def test_opcheck(options, device):
    from torch.library import opcheck

    arguments = operands(**(options | dict(device=device)))
    input, D = arguments["input"], arguments["D"]
    h_size = arguments["weights"][1].shape[1]
    if arguments["masks"]:
        mask = torch.rand(*input.shape[:2], D * h_size) < 0.5
        arguments["masks"] = [2.0 * mask.to(device)]
    if arguments["resets"]:
        arguments["resets"] = torch.tensor([[True, False]] + 2 * [[False, True]], device=device)
        arguments["resets"] = arguments["resets"][: len(input)]
    *rest, save = arguments.values()
    input, h_0, c_0, weights, *others = rest
    outputs = torch.ops.fused_lstm.forward(*rest, save)

    leaves = [x if x is None else x.clone().requires_grad_() for x in (input, h_0)]
    weights_asked = [weights[0].clone().requires_grad_(), *weights[1:]]
    # The check that compiles takes seconds where slices exchange; `test_slices` compiles, too.
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    tests += ["test_aot_dispatch_dynamic"] if arguments["weights"][1].shape[0] <= 4 * 128 else []
    opcheck(
        torch.ops.fused_lstm.forward,
        (*leaves, c_0, weights_asked, *others, save),
        test_utils=tests,
    )
    saved = [outputs[0], *outputs[3:]] if save else []
    needs = [True, h_0 is not None, False, *(n % 3 != 1 for n in range(len(weights)))]
    grads = torch.randn_like(outputs[0]), None, torch.randn_like(outputs[2])
    arguments = (*grads, saved, *rest, needs)
    opcheck(torch.ops.fused_lstm.backward, arguments, test_utils=tests)


def test_an_operator_that_saved_nothing_computes_it_again(device, launches):
    arguments = operands(device=device)
    leaves = [arguments["input"], arguments["h_0"], *arguments["weights"]]
    for x in leaves:
        x.requires_grad_()
    results = []
    for save in (True, False):
        output, _, c_n, *_ = torch.ops.fused_lstm.forward(**(arguments | dict(save=save)))
        loss = output.square().sum() + c_n.sum()
        results.append([output, c_n, *torch.autograd.grad(loss, leaves)])
    assert_equal(*results)
    assert launches == {"forward": 6, "backward": 4}


# torch.export


def exported(module, strict=False, hx=False, T=4, B=3):
    """The program, of any batch and length."""
    device = module.weight_ih_l0.device
    x = make_input(*((B, T) if module.batch_first else (T, B)), 5, device=device)
    dims = [torch.export.Dim("B"), torch.export.Dim("T")]
    dims = dims if module.batch_first else dims[::-1]
    shapes, arguments = (dict(enumerate(dims)),), (x,)
    if hx:
        of_batch = {1: dims[0 if module.batch_first else 1]}
        shapes, arguments = (*shapes, (of_batch, of_batch)), (x, with_states(module, x, True))
    return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=strict)


def calls_of(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


# PyTorch's own, of a file in memory, up to torch 2.11
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("options", "hx"), MODULES.values(), ids=MODULES)
def test_an_exported_program_is_one_operator_of_any_size(options, hx, strict, device, launches):
    module, _ = pair(5, 20, device=device, **options)
    program = exported(module, strict, hx)
    assert calls_of(program).count("fused_lstm.forward.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for call in (program.module(), torch.export.load(file).module()):
        for T, B in ((4, 3), (2, 5), (1, 1)):
            x = make_input(*((B, T) if module.batch_first else (T, B)), 5, device=device)
            given = (x, with_states(module, x, True)) if hx else (x,)
            before = launches["forward"]
            actual = flat(call(*given))
            assert launches["forward"] > before
            assert_same(actual, flat(module(*given)), CLOSE)


# PyTorch's own, of what it calls itself, up to torch 2.11
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor writes C++, for a compiler")
def test_an_ahead_of_time_package_is_one_operator(device, launches, tmp_path):
    module, _ = pair(5, 20, 2, device=device)
    path = str(tmp_path / "package.pt2")
    program = exported(module.eval())
    # Headers compiled beforehand take half a minute, for a single program.
    options = {"aot_inductor.precompile_headers": False}
    torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=options)
    package = torch._inductor.aoti_load_package(path)
    x, before = make_input(2, 3, 5, device=device), launches["forward"]
    assert_same(flat(package(x)), flat(module(x)), CLOSE)
    assert launches["forward"] == before + 4


def test_an_exported_program_can_be_trained(device, launches):
    module, _ = pair(5, 20, 2, device=device)
    call = exported(module).module()
    x = make_input(3, 2, 5, device=device)
    expected, before = gradients(module, x), dict(launches)
    assert_same(gradients(call, x), expected, CLOSE)
    # It saves nothing, and computes forward again.
    assert launches["forward"] - before["forward"] == 4
    assert launches["backward"] - before["backward"] == 2


def test_an_exported_program_has_second_derivatives(device):
    module, _ = pair(5, 20, device=device)
    x = make_input(3, 2, 5, device=device).requires_grad_()

    def penalty(call):
        (first,) = torch.autograd.grad(call(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)

    assert_same(penalty(exported(module).module()), penalty(module), CLOSE)


def test_an_exported_program_refuses_no_steps():
    call = exported(pair(5, 20)[0]).module()
    with pytest.raises((RuntimeError, AssertionError)):
        call(torch.zeros(0, 3, 5))


# ONNX and TorchScript


def onnxruntime_of(program, *inputs):
    """Operators of an ONNX file's graph, and what onnxruntime has for its results."""
    onnx = pytest.importorskip("onnx", reason="reads what was exported")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    session = runtime.InferenceSession(program, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    operators = [node.op_type for node in onnx.load_from_string(program).graph.node]
    return operators, [torch.from_numpy(y) for y in session.run(None, fed)]


# PyTorch's own: of nn.LSTM's weights, the exporter that it has replaced, sizes taken for fixed
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning")
@no_onednn
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "options", [dict(), dict(num_layers=2, bidirectional=True, batch_first=True)]
)
def test_onnx_has_its_own_lstm(options, dynamo, launches):
    pytest.importorskip("onnxscript" if dynamo else "onnx", reason="torch.onnx exports with it")
    module, theirs = pair(5, 20, **options)
    x, file = make_input(4, 3, 5), io.BytesIO()
    if dynamo:
        torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(module.eval(), (x,), file, dynamo=False)
    operators, results = onnxruntime_of(file.getvalue(), x)
    assert operators.count("LSTM") == module.num_layers
    assert not any("fused" in name for name in operators)
    assert_same(results, [y.detach() for y in flat(theirs(x))], EXACT_CEILING)
    assert launches == {"forward": 0, "backward": 0}


# Where no kernel runs


def test_without_kernels_and_triton(run_without_interpreter):
    run_without_interpreter("""
import torch, lstm
from torch.library import opcheck
torch.manual_seed(0)

def results(call, module, *given):
    x = given[0].clone().requires_grad_()
    output, (h_n, c_n) = call(x, *given[1:])
    loss = output.square().sum() + h_n.sum() + c_n.square().sum()
    return output, h_n, c_n, *torch.autograd.grad(loss, [x, *module.parameters()])

def assert_same(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)

x = torch.randn(4, 3, 5)
resets = torch.zeros(4, 3, dtype=torch.bool)
resets[2] = True
for options in (dict(), dict(num_layers=2, bidirectional=True), dict(proj_size=3, bias=False)):
    torch.compiler.reset()
    module = lstm.LSTM(5, 8, **options)
    theirs = torch.nn.LSTM(5, 8, **options)
    theirs.load_state_dict(module.state_dict())
    assert module.explain(x).path == "torch"
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(call, module, x), results(theirs, theirs, x))
    assert_same(results(call, module, x, None, resets), results(module, module, x, None, resets))

T, B = torch.export.Dim("T"), torch.export.Dim("B")
program = torch.export.export(module, (x,), dynamic_shapes=({0: T, 1: B},))
assert "fused_lstm.forward" in str(program.graph)
other = torch.randn(2, 6, 5)
assert_same(results(program.module(), module, other), results(theirs, theirs, other))

weights = [weight.detach() for weight in module.parameters()]
arguments = None, None, weights, [], resets, 1, 1, "tf32"
for save in (True, False):
    opcheck(torch.ops.fused_lstm.forward, (x.clone().requires_grad_(), *arguments, save))
grads = torch.randn(4, 3, 3), None, None
needs = [True, False, False, True, False, True]
opcheck(torch.ops.fused_lstm.backward, (*grads, [], x, *arguments, needs))
try:
    torch.ops.fused_lstm.forward(x[:, :, :4], *arguments, True)
except ValueError:
    pass
else:
    raise AssertionError
""")
