"""Two processes train as one does: same losses, one record, gradients of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import distributed, train_mnist
from lstm.reference import relative_error
from tests.bench.two_processes import SMALL

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command):
    """Python in the root of the checkout, where nobody has switched the interpreter on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        # Far above what it takes: a process that waits for one that is gone would wait for ever.
        timeout=300,
    )


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2, reason="nccl needs a GPU for each of two processes"
            ),
        ),
    ],
)
def device(request):
    if request.param == "cpu":
        request.getfixturevalue("interpreter")
    return request.param


@pytest.fixture(scope="module")
def found(device, tmp_path_factory):
    """What each process of two_processes.py has left, and the folder of its record."""
    folder = tmp_path_factory.mktemp("two")
    done = run(*TORCHRUN, "tests/bench/two_processes.py", folder, device)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train_mnist: cudnn: the loss did not fall") == 1
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], folder


def losses_apart(one, two):
    pairs = zip(one["losses"], two["losses"], strict=True)
    return max(abs(a - b) for a, b in pairs)


def test_two_processes_have_the_losses_of_one(device, tmp_path):
    sizes = {"hidden": 32, "layers": 1, "batch-size": 60, "train-images": 480, "epochs": 1}
    options = ["--device", device, *(f"--{name}={value}" for name, value in sizes.items())]
    command = ["bench/train_mnist.py", "--compare", "--no-cuda-graph", *options]
    alone = run(*command, "--json", tmp_path / "one.json")
    both = run(*TORCHRUN, *command, "--json", tmp_path / "two.json", "--plot", tmp_path / "two.svg")
    assert alone.returncode == both.returncode == 0, alone.stderr + both.stderr

    (one,), (two,) = (
        map(json.loads, (tmp_path / name).read_text().splitlines())
        for name in ("one.json", "two.json")
    )
    assert two["case"] == one["case"] | {"processes": 2}
    for ours, theirs in zip(one["runs"], two["runs"], strict=True):
        assert theirs["path"] == ours["path"]
        # Weights 1e-7 apart, from sums in another order, now and then round to float16 operands
        # 5e-4 apart. A process that trained alone would be 1e-2 off.
        assert losses_apart(ours, theirs) < 1e-4
        # Two images may be on the edge.
        assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=0.02)
    assert two["runs"][0]["losses"] != two["runs"][1]["losses"], "the kernels did not run"
    assert (tmp_path / "two.svg").stat().st_size > 0

    lines = both.stdout.splitlines()
    assert len(lines) == len(set(lines)) == len(alone.stdout.splitlines())
    assert [line for line in lines if line.startswith("epoch")] == [
        line for line in alone.stdout.splitlines() if line.startswith("epoch")
    ]


def test_below_float32_both_processes_keep_the_same_float32_weights(device, found, tmp_path):
    (first, second), folder = found
    pairs = zip(first["bfloat16"]["weights"], second["bfloat16"]["weights"], strict=True)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in pairs)
    path = tmp_path / "one.json"
    options = ["--device", device, "--dtype", "bfloat16", "--no-cuda-graph", "--json", str(path)]
    train_mnist.main([*SMALL, *options])
    one, two = (json.loads(p.read_text())["runs"][0] for p in (path, folder / "bfloat16.json"))
    # A part's gradients are rounded to bfloat16 before they are averaged: 2e-4 in 16 steps.
    assert losses_apart(one, two) < 2e-3


def test_a_loss_that_does_not_fall_fails_in_both_processes(found):
    assert [process["no fall"]["status"] for process in found[0]] == [1, 1]


def test_lstm_in_plain_ddp_has_the_gradients_of_the_whole_batch(found):
    for process in found[0]:
        gradients = process["gradients"]
        assert gradients["path"] == "fused"
        for whole, shared in zip(gradients["whole"], gradients["shared"], strict=True):
            # Twice the rounding of a float32: sums in another order.
            assert relative_error(shared, whole) < 1e-6


def test_a_process_that_fails_ends_the_other(device, tmp_path):
    done = run(*TORCHRUN, "tests/bench/two_processes.py", tmp_path, device, "fail")
    assert done.returncode != 0
    assert "the second process has had enough" in done.stderr
    assert "Accuracy" not in done.stdout


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment that torchrun gives the second of two processes."""
    variables = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in (variables | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, str(value))


def refusal(capsys, *options):
    with pytest.raises(SystemExit, match="2"):
        train_mnist.main(["--impl", "cudnn", *options])
    return capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_is_refused(second_of_two, capsys):
    error = refusal(capsys, "--device", "cpu", "--batch-size", "31")
    assert "--batch-size must be divisible by the number of processes, 2" in error


def test_each_process_takes_its_own_gpu_and_no_graph(second_of_two, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "2 processes need as many GPUs, torch sees 1" in refusal(capsys)
    assert "each has its own GPU" in refusal(capsys, "--device", "cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = train_mnist.parse(["--impl", "cudnn"])
    assert args.device == torch.device("cuda", 1)
    assert not args.cuda_graph


def test_parts_are_a_whole_also_where_they_differ_in_size(second_of_two, monkeypatch):
    x = torch.arange(14).reshape(2, 7)
    second = distributed.part(x, dim=1)
    monkeypatch.setenv("RANK", "0")
    assert torch.equal(torch.cat((distributed.part(x, dim=1), second), 1), x)


def test_world_size_alone_is_no_second_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.processes() == 1
    with distributed.group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
