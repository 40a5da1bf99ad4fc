"""What the README says runs where is what plan() does."""

import re
from pathlib import Path

import pytest
import torch

import lstm
from lstm.kernels import config
from lstm.plan import DTYPES, MIN_CAPABILITY, cell_plan, plan

README = (Path(__file__).parents[1] / "README.md").read_text()
CALL = dict(
    hidden_size=16, batch=100, dtype=torch.float32, card=(9, 0), multiprocessors=132
)  # fmt: skip
CELL = dict(input_size=16, hidden_size=16, batch=100, dtype=torch.float32, card=(9, 0))


@pytest.fixture(scope="module")
def table():
    """{row: (on the kernels, PyTorch's own)} of the table."""
    body = README.split("## What runs on the kernels")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
    return {name.strip("`"): (ours, theirs) for name, ours, theirs in rows[2:]}


def path(**change):
    return plan(**(CALL | change)).path


def test_cards(table):
    major, minor = MIN_CAPABILITY
    assert table["GPU"][0] == f"NVIDIA, compute capability {major}.{minor} and above"
    assert path(card=MIN_CAPABILITY) == "fused"
    assert path(card=(major - 1, 9)) == path(card=None) == "torch"


def test_hidden_sizes(table):
    most = config.MAX_HIDDEN_SIZE
    assert table["hidden_size"] == (f"1 to {most}", f"above {most}")
    assert {path(hidden_size=size) for size in range(1, most + 1)} == {"fused"}
    assert path(hidden_size=most + 1) == "torch"


def test_dtypes(table):
    ours, theirs = table["dtype"]
    units = config.MAX_EXACT_HIDDEN_SIZE
    assert f"up to {units} units, exact" in ours
    assert f"TF32 switched off above {units} units" in theirs
    assert path(precision="ieee", hidden_size=units) == "fused"
    assert path(precision="ieee", hidden_size=units + 1) == "torch"
    every = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    for dtype in every:
        name = str(dtype).removeprefix("torch.")
        on_kernels = path(dtype=dtype) == "fused"
        assert bool(re.search(rf"\b{name}\b", ours)) == on_kernels == (dtype in DTYPES)
        assert on_kernels or name in theirs


# What a row of the table names, and a call with it; tests/lstm/ has the results of all.
MODULE = {
    "num_layers": dict(num_layers=3),
    "bias": dict(bias=False),
    "batch_first": dict(batch_first=True),
    "dropout": dict(num_layers=2, dropout=0.5),
    "bidirectional": dict(bidirectional=True),
    "proj_size": dict(proj_size=3),
}


def test_modules(table, device):
    ours, theirs = table["module"]
    assert re.findall("`(.*?)`", ours) == list(MODULE) and not theirs
    for options in MODULE.values():
        module = lstm.LSTM(5, 16, device=device, **options)
        assert module.explain(torch.zeros(4, 3, 5, device=device)).path == "fused"


def test_inputs(table, device):
    ours, theirs = table["input"]
    module = lstm.LSTM(5, 16, device=device)
    x = torch.zeros(4, 3, 5, device=device)
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 0]])
    hx = torch.zeros(1, 3, 16, device=device)
    assert ours == "any length and batch, unbatched, `PackedSequence`, any strides; `hx` or none"
    for call in ((x,), (x[:1, :1],), (x[:, 0],), (packed,), (x.transpose(0, 1),), (x, (hx, hx))):
        assert module.explain(*call).path == "fused"
    assert theirs == "an empty batch"
    assert module.explain(x[:, :0]).path == "torch"


def test_cells(table):
    ours, theirs = table["LSTMCell"]
    most = config.MAX_STEP_SIZE
    assert f"up to {most} in the same dtypes" in ours and f"above {most}" in theirs
    for dtype in DTYPES:
        assert cell_plan(**(CELL | dict(dtype=dtype, input_size=most - 16))).path == "fused"
        assert cell_plan(**(CELL | dict(dtype=dtype, input_size=most - 15))).path == "torch"
    assert cell_plan(**CELL).operands == "float32"
    assert cell_plan(**(CELL | dict(dtype=torch.float64))).path == "torch"
