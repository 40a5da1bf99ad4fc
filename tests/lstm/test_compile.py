"""torch.compile, torch.export, ONNX and TorchScript: the operators, or PyTorch's own LSTM."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence

from lstm import LSTM
from tests.lstm.pairs import assert_equal, assert_same, flat, make_hx, make_input, pair

# What torch's compilers, exporters and checks warn of on their own account.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),
]

BACKENDS = ["eager", "aot_eager", "inductor"]
OPTIONS = {
    "two_layers": dict(num_layers=2, batch_first=True),
    "both_directions": dict(bidirectional=True, bias=False),
    "projected": dict(num_layers=2, proj_size=7),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def results(module, x, *others):
    """What a call returns, then the gradients of its input, states and parameters. others: hx and
    resets.
    """
    hx, *resets = others or (None,)
    leaves = [y.detach().requires_grad_() for y in (x, *(hx or ()))]
    returned = flat(module(leaves[0], tuple(leaves[1:]) or None, *resets))
    loss = sum(y.square().sum() for y in returned)
    parameters = [y for y in module.parameters() if y.requires_grad]
    return *returned, *torch.autograd.grad(loss, [*leaves, *parameters])


# torch.compile


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_graph_with_every_backend(backend, options, device):
    module, _ = pair(5, 20, device=device, **options)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    hx = make_hx((2, 3, 20), options, device)
    x = make_input(3 if module.batch_first else 4, 4 if module.batch_first else 3, 5, device=device)
    assert_equal(results(compiled, x, hx), results(module, x, hx))


def test_other_sizes_compile_once_more_and_no_more(device, launches):
    module, _ = pair(5, 20, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for T, B in ((4, 3), (6, 5), (7, 2), (5, 9)):
        x = make_input(T, B, 5, device=device)
        before = launches["forward"]
        actual = results(compiled, x)
        assert launches["forward"] == before + 1
        assert_equal(actual, results(module, x))
    assert counter.frame_count == 2


def test_unbatched_resets_and_states(device):
    module, _ = pair(5, 20, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, resets = make_input(4, 3, 5, device=device), torch.rand(4, 3, device=device) < 0.4
    hx = make_hx((1, 3, 20), {}, device)
    assert_equal(results(compiled, x, hx, resets), results(module, x, hx, resets))
    alone = x[:, 0], tuple(state[:, 0] for state in hx), resets[:, 0]
    assert_equal(results(compiled, *alone), results(module, *alone))


def test_recompute(device):
    module, _ = pair(5, 20, device=device)
    x = make_input(5, 3, 5, device=device)
    expected = results(module, x)
    module.recompute = 2
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_what_eager_draws(backend, device):
    module, _ = pair(5, 20, 3, dropout=0.5, device=device)
    x = make_input(4, 3, 5, device=device)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.manual_seed(2)
    expected = results(module, x)
    torch.manual_seed(2)
    # Inductor has a generator of its own.
    with torch._inductor.config.patch(fallback_random=True):
        assert_equal(results(compiled, x), expected)


def test_autocast(device):
    module, _ = pair(5, 20, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = make_input(4, 3, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        actual, expected = results(compiled, x), results(module, x)
    assert actual[0].dtype == torch.bfloat16
    assert_equal(actual, expected)


def test_frozen_weights_eval_mode_and_no_grad(device, launches):
    module, _ = pair(5, 20, 2, dropout=0.5, device=device)
    module.eval().weight_hh_l0.requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = make_input(4, 3, 5, device=device)
    assert_equal(results(compiled, x), results(module, x))
    launches["backward"] = 0
    with torch.no_grad():
        assert_equal(flat(compiled(x)), flat(module(x)))
    assert launches["backward"] == 0


def test_a_packed_batch_breaks_the_graph_and_is_right(device):
    module, _ = pair(5, 20, device=device)
    x = pack_padded_sequence(make_input(4, 3, 5, device=device), [4, 3, 1])
    compiled = torch.compile(module, backend="aot_eager")
    assert torch.equal(compiled(x)[0].data, module(x)[0].data)


def test_in_a_larger_model_with_vmap(device):
    module, _ = pair(5, 20, device=device)
    mapped = torch.func.vmap(lambda x: module(x)[0], in_dims=1, out_dims=1)
    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    x = make_input(4, 3, 5, device=device)
    assert_same([compiled(x)], [module(x)[0]])


def test_what_does_not_fit_raises(device, launches):
    compiled = torch.compile(LSTM(5, 20, device=device), fullgraph=True, backend="eager")
    for shape, message in (((4, 3, 6), "Expected 5, got 6"), ((1, 4, 3, 5), "2D or 3D, got 4D")):
        with pytest.raises(Exception, match=message):
            compiled(make_input(*shape, device=device))
    assert launches == {"forward": 0, "backward": 0}


def test_a_path_can_be_forced(device, launches, force):
    force("torch")
    module, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, x), results(theirs, x))
    assert launches == {"forward": 0, "backward": 0}


# The operators


CASES = {
    "plain": dict(),
    "two_layers": dict(num_layers=2),
    "both_directions": dict(num_layers=2, bidirectional=True, bias=False),
    "projected": dict(num_layers=2, proj_size=3),
    "sliced": dict(hidden_size=130),
}


def operands(device, hidden_size=20, **options):
    """Arguments of fused_lstm::forward but for the last, and the module they are of."""
    module = LSTM(5, hidden_size, device=device, **options)
    D, L, P = 1 + module.bidirectional, module.num_layers, module.proj_size or hidden_size
    x = make_input(3, 2, 5, device=device).requires_grad_()
    h_0 = make_input(L * D, 2, P, device=device)
    c_0 = make_input(L * D, 2, hidden_size, device=device).requires_grad_()
    masks = [torch.ones(3, 2, D * P, device=device)] * (L - 1)
    resets = torch.rand(3, 2, device=device) < 0.3
    weights = [w.detach().requires_grad_() for w in module._weights()]
    return (x, h_0, c_0, weights, masks, resets, L * D, D, "tf32"), module


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_opcheck(options, device):
    arguments, _ = operands(device, **options)
    x, h_0, c_0, weights, *rest = arguments
    forward, backward = torch.ops.fused_lstm.forward, torch.ops.fused_lstm.backward
    for save in (False, True):
        torch.library.opcheck(forward.default, (*arguments, save))
    output, _, c_n, *others = forward(*arguments, True)
    saved = [y.detach() for y in (output, *others)]
    fed = [y.detach() for y in (x, h_0, c_0)], [y.detach() for y in weights]
    needs = [True, False, True, *[True] * len(weights)]
    for kept in (saved, []):
        torch.library.opcheck(
            backward.default,
            (torch.ones_like(output), None, torch.ones_like(c_n), kept, *fed[0], fed[1], *rest,
             needs),
        )  # fmt: skip


def test_operators_refuse_what_does_not_fit(device, launches):
    (x, h_0, c_0, weights, *rest), _ = operands(device)
    for arguments in (
        (x[..., :4], h_0, c_0, weights),
        (x, h_0[:, :1], c_0, weights),
        (x, h_0, None, weights),
        (x, h_0, c_0.double(), weights),
        (x, h_0, c_0, [weights[0][:, :4], *weights[1:]]),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            torch.ops.fused_lstm.forward(*arguments, *rest, False)
    assert launches == {"forward": 0, "backward": 0}


def test_what_nobody_saved_is_computed_again(device, launches):
    arguments, _ = operands(device, num_layers=2)
    leaves = [arguments[0], *arguments[3]]
    grads = [
        torch.autograd.grad(
            torch.ops.fused_lstm.forward(*arguments, save)[0].square().sum(), leaves
        )
        for save in (True, False)
    ]
    assert_equal(*grads)
    assert launches == {"forward": 6, "backward": 4}


# torch.export


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_steps_and_batch_dynamic(strict, device, launches):
    module, _ = pair(5, 20, 2, batch_first=True, device=device)
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(
        module, (make_input(3, 4, 5, device=device),), dynamic_shapes=(sizes,), strict=strict
    )
    (node,) = [n for n in program.graph.nodes if str(n.target) == "fused_lstm.forward.default"]
    assert node.args[-1] is False, "it saves what nobody may ever want"
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert launches["forward"] == 0
    x = make_input(7, 9, 5, device=device)
    assert_equal(flat(loaded(x)), flat(module(x)))


def test_what_is_exported_can_be_trained(device):
    module, _ = pair(5, 20, device=device)
    x = make_input(4, 3, 5, device=device)
    hx = make_hx((1, 3, 20), {}, device)
    loaded = torch.export.export(module, (x, hx)).module()
    assert_equal(results(loaded, x, hx), results(module, x, hx))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_has_its_own_lstm_node(dynamo, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="exports to ONNX")
    runtime = pytest.importorskip("onnxruntime", reason="runs ONNX")
    if dynamo:
        pytest.importorskip("onnxscript", reason="the exporter is written in it")
    module, _ = pair(5, 20, 2, batch_first=True)
    x, path = make_input(3, 4, 5), tmp_path / "lstm.onnx"
    torch.onnx.export(module.eval(), (x,), path, dynamo=dynamo)
    assert [node.op_type for node in onnx.load(path).graph.node].count("LSTM") == 2
    session = runtime.InferenceSession(path)
    output = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert_same([torch.tensor(output)], [nn.LSTM.forward(module, x)[0].detach()])


class Model(nn.Module):
    """TorchScript runs no LSTM on its own, not nn.LSTM either."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return self.lstm(x)


def test_torchscript_has_nn_lstm(device):
    module, theirs = pair(5, 20, 2, device=device)
    x = make_input(4, 3, 5, device=device)
    assert_equal(flat(torch.jit.script(Model(module))(x)), flat(theirs(x)))


# Without a GPU and without the interpreter


def test_where_no_kernel_runs_the_operators_run_pytorchs_own(run_without_interpreter):
    run_without_interpreter("""
import torch
from torch import nn
from lstm import LSTM

module, x = LSTM(5, 20, 2, bidirectional=True), torch.randn(4, 3, 5)

def results(call):
    output, _ = call(x)
    return output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))

expected = results(lambda x: nn.LSTM.forward(module, x))
compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
exported = torch.export.export(module, (x,)).module()
for actual in (results(compiled), results(module)):
    for y, z in zip(actual, expected):
        torch.testing.assert_close(y, z)
torch.testing.assert_close(exported(x)[0], expected[0])
arguments = x, None, None, [w.detach() for w in module.parameters()], [], None, 4, 2, "tf32", False
torch.library.opcheck(torch.ops.fused_lstm.forward.default, arguments)
""")
