"""The main job: its lines, its exits, its record, and one real training on the kernels."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.train_mnist import fell, main

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--hidden", "32", "--batch-size", "30"]


def run(*arguments, form=("bench/train_mnist.py",)):
    """The main job as a user starts it in the root of the checkout, as a script or as a module."""
    command = [sys.executable, *form, *arguments]
    # The script has to switch the interpreter on by itself.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_cudnn_prints_losses_accuracy_and_time(tmp_path, capsys):
    files = ["--json", str(tmp_path / "run.json"), "--plot", str(tmp_path / "run.svg")]
    main(["--impl", "cudnn", "--train-images", "3060", *SMALL, *files])
    out = capsys.readouterr().out
    lines = re.findall(r"^epoch: (\d)/2, step: (\d+)/102, loss: \d\.\d{4}$", out, re.MULTILINE)
    assert lines == [(epoch, step) for epoch in "12" for step in ("100", "102")]
    assert re.search(r"^Accuracy: \d\d\.\d\d%$", out, re.MULTILINE)
    assert re.search(r"^Time: \S+ s; without the first call: \S+ s$", out, re.MULTILINE)
    assert "torch.nn.LSTM, PyTorch's CPU kernels, not cuDNN" in out
    assert "3,060 of 60,000 train images" in out
    assert "test images" not in out

    record = json.loads((tmp_path / "run.json").read_text())
    (training,) = record["runs"]
    assert record["name"] == "train_mnist"
    assert record["case"]["train_images"] == 3060
    assert record["case"]["test_images"] == 10_000
    assert len(training["losses"]) == 204
    assert len(training["accuracy"]) == 2
    # Ten digits, so guessing gives 10 %.
    assert training["accuracy"][-1] > 50
    assert (tmp_path / "run.svg").stat().st_size > 0


def test_seed_decides_the_losses(tmp_path):
    def losses(seed):
        path = tmp_path / "run.json"
        options = ["--train-images", "300", "--epochs", "1", "--seed", seed, "--json", str(path)]
        main(["--impl", "cudnn", *SMALL, *options])
        return json.loads(path.read_text())["runs"][0]["losses"]

    assert losses("1") == losses("1") != losses("2")


def test_a_loss_that_does_not_fall_fails_and_is_recorded(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(SystemExit, match="cudnn: the loss did not fall"):
        main(["--impl", "cudnn", "--train-images", "300", "--lr", "0", *SMALL, "--json", str(path)])
    assert json.loads(path.read_text())["runs"][0]["failed"] == "the loss did not fall"


def test_falling_means_one_percent_and_no_nan():
    assert fell([2.3, 2.2])
    assert not fell([2.3, 2.29])
    assert not fell([2.3, 2.4])
    assert not fell([2.3] * 10 + [1.0, math.nan])
    # One lucky batch is no fall.
    assert not fell([2.3] * 99 + [2.1])


def test_unusable_data_ends_the_script_with_the_name_of_the_file(tmp_path):
    done = run("--impl", "cudnn", "--data-root", str(tmp_path), form=("-m", "bench.train_mnist"))
    assert done.returncode == 1
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--train-images", "99"], "at least --batch-size"),
        (["--train-images", "60001"], "at most 60000"),
        (["--test-images", "0"], "--test-images must be at least 1"),
        (["--test-images", "10001"], "at most 10000"),
        (["--train-images", "100", "--epochs", "1"], "one step cannot show a falling loss"),
        (["--layers", "0"], "at least 1"),
    ],
)
def test_impossible_option_is_refused_with_a_reason(arguments, reason, capsys):
    with pytest.raises(SystemExit):
        main(["--impl", "cudnn", *arguments])
    assert reason in capsys.readouterr().err


@pytest.mark.usefixtures("interpreter")
def test_kernels_track_nn_lstm_from_step_to_step(tmp_path):
    path = tmp_path / "run.json"
    options = ["--train-images", "300", "--epochs", "1", "--json", str(path)]
    done = run("--compare", *SMALL, *options)
    assert done.returncode == 0, done.stderr
    assert "TRITON_INTERPRET=1" in done.stdout
    assert "300 of 60,000 train images" in done.stdout
    assert "1,000 of 10,000 test images" in done.stdout
    assert re.search(
        r"^epoch: 1/1, step: 10/10, loss: .* \(triton\), .* \(cudnn\)$", done.stdout, re.M
    )
    ours, peer = json.loads(path.read_text())["runs"]
    assert (ours["impl"], peer["impl"]) == ("triton", "cudnn")
    for step in range(10):
        assert abs(ours["losses"][step] - peer["losses"][step]) < 1e-3, f"step {step}"
    assert ours["losses"] != peer["losses"], "the kernels did not run"
