"""The README and the pages of lstm/docs: their code runs, and what they say of paths is so."""

import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

import lstm
from bench.bounds import CARDS, bound, step_cycles, table
from bench.cases import SHORT, Case
from lstm.kernels import config
from lstm.plan import DTYPES, MIN_JOINT_STEPS, joinable, plan
from tests.accuracy import CEILING, EXACT_CEILING

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "bench/README.md", *ROOT.glob("lstm/docs/*.md"))
}
FASTER, NUMERICS = PAGES["lstm/docs/faster.md"], PAGES["lstm/docs/numerics.md"]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def rows(text, header):
    """Cells of the table whose header begins so, without the header."""
    lines = text.split(f"| {header} |")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# PyTorch's own: of torch.export, of its ONNX exporter, of torch.compile on a GPU
@pytest.mark.filterwarnings(
    "ignore:The tensor attributes:UserWarning",
    "ignore:_check_is_size:FutureWarning",
    "ignore:TensorFloat32 tensor cores:UserWarning",
    "ignore:The given buffer is not writable:UserWarning",  # torch.export.load of torch 2.11
)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left_out, names = [], {}
    for block in blocks(page):
        if "torch.onnx" in block and find_spec("onnxscript") is None:
            left_out.append(block)
        else:
            exec(block.replace('"cuda"', repr(device.type)), names)
    if left_out:
        pytest.skip("all but the ONNX export ran, which needs: pip install onnx onnxscript")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_readme_shows_what_an_h100_explains():
    call = dict(hidden_size=128, batch=100, dtype=torch.float32, card=(9, 0), multiprocessors=132)
    call["layers"] = joinable(28, 2, 0)
    assert f"```\n{plan(**call)}\n```" in PAGES["README.md"]


def test_the_readme_names_every_page_and_example():
    for path in (*ROOT.glob("lstm/docs/*.md"), *ROOT.glob("lstm/examples/*.py")):
        assert f"({path.relative_to(ROOT)})" in PAGES["README.md"]


LARGEST = rows(FASTER, "card")


@pytest.mark.parametrize("row", LARGEST, ids=[row[0] for row in LARGEST])
def test_the_largest_batches_are_as_the_page_says(row):
    _, card, *batches = row
    capability, multiprocessors = card.split(", ")
    card = dict(card=tuple(map(int, capability.split("."))), multiprocessors=int(multiprocessors))

    def planned(hidden_size, batch, bidirectional):
        call = dict(bidirectional=bidirectional, **card)
        return plan(hidden_size, batch, torch.bfloat16, **call)

    for hidden_size, cell in zip((256, 512, 768, 1024), batches, strict=True):
        for bidirectional, most in enumerate(map(int, cell.split(" / "))):
            call = dict(hidden_size=hidden_size, bidirectional=bool(bidirectional))
            assert planned(batch=most + 1, **call).path == "torch"
            if most:
                assert planned(batch=most, **call).path == "fused"
                one = planned(batch=most // 4, **call)
                assert one.at_once * (1 + bidirectional) * one.slices == one.programs


def test_the_sizes_at_which_the_path_changes_are_as_the_page_says():
    calls = [call for call, *_ in rows(FASTER, "call")]
    assert f"`hidden_size` up to {config.MAX_ONE_SLICE}" in calls
    assert f"`hidden_size` {config.MAX_ONE_SLICE + 1} to {config.MAX_HIDDEN_SIZE}" in calls
    assert f"up to {config.MAX_EXACT_HIDDEN_SIZE} units" in FASTER
    assert f"are {config.MAX_STEP_SIZE} numbers together" in FASTER


def test_layers_run_at_once_as_the_page_says():
    words = " ".join(FASTER.split())
    assert f"from {MIN_JOINT_STEPS} steps on" in words
    low, high = map(int, re.search(r"on an H100, at (\d+) to (\d+) units", words).groups())
    batches = re.findall(r"(?:for|and for) (\d) (?:layers )?up to (?:a batch of )?(\d+)", words)
    assert [int(layers) for layers, _ in batches] == [2, 3, 4]
    for (layers, most), dtype, hidden_size in product(batches, DTYPES, (low, high)):
        call = dict(dtype=dtype, card=(9, 0), multiprocessors=132, layers=int(layers))
        most = int(most)
        assert plan(hidden_size, most, **call).layers == call["layers"]
        assert plan(hidden_size, most + 1, **call).layers < call["layers"]
        assert plan(low - 1, most + 1, **call).layers == call["layers"]


def test_what_bounds_a_call_is_as_the_page_says():
    h100 = CARDS["H100"]
    cases = {str(case): case for case in (*SHORT, Case("forward+backward", 128, 512, 128, 128))}
    found = rows(FASTER, "case")
    assert [f"| {' | '.join(row)} |" for row in found] == table(
        h100, [cases[name] for name, *_ in found]
    )[2:]
    words = " ".join(FASTER.split())
    numbers = re.search(r"from (\d+) sequences on in bfloat16, from (\d+) in float32", words)
    for dtype, first in zip(("bfloat16", "float32"), map(int, numbers.groups()), strict=True):
        case = {
            B: Case("forward+backward", 1024, B, 128, 128, 1, dtype) for B in (first - 1, first)
        }
        assert [bound(case[B], h100).by for B in case] == ["chain", "memory"]


STEPS = rows(FASTER, "kernel")


@pytest.mark.parametrize("row", STEPS, ids=[" ".join(row[:3]) for row in STEPS])
def test_the_least_cycles_of_a_step_are_as_the_page_says(row):
    kernel, dtype, sequences, least, estimated = row
    tile = config.tile(128, 8, getattr(torch, dtype).itemsize, block_b=int(sequences))
    cycles = [
        step_cycles(tile, dtype, CARDS[card], kernel == "backward") for card in ("A100", "H100")
    ]
    assert least == " / ".join(f"{number:.0f}" for number in cycles)
    assert all(map(int.__gt__, map(int, estimated.split(" / ")), map(int, cycles)))


# PyTorch's own, of jvp
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_the_paths_of_special_calls_are_as_the_page_says(device):
    module = lstm.LSTM(5, 20, device=device)
    x = torch.zeros(3, 2, 5, device=device)
    resets = torch.zeros(3, 2, dtype=torch.bool, device=device)
    assert module.explain(x, None, resets).path == "fused"
    assert module.double().explain(x.double(), None, resets).path == "reference"
    paths = []

    def call(x):
        paths.append(module.explain(x).path)
        return module(x)[0]

    module.float()
    torch.func.jvp(call, (x,), (x,))
    torch.func.vmap(call)(x[None])
    assert paths == ["reference", "reference"]
    assert not module.explain(x[:1]).one_step
    with torch.no_grad():
        assert module.explain(x[:1]).one_step


def test_the_bounds_are_those_of_the_tests():
    bounds = {dtype: float(bound) for dtype, bound in rows(NUMERICS, "dtype")}
    assert bounds == {
        'float32, "tf32"': CEILING[torch.float32],
        'float32, "ieee"': EXACT_CEILING,
        "float16": CEILING[torch.float16],
        "bfloat16": CEILING[torch.bfloat16],
    }
