"""`pytest` and `pytest --benchmark-only` each run their own, and the CPU pair is one to one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_pytest(*arguments, **env):
    # Neither the interpreter nor what a worker of pytest-xdist would pass on.
    ours = ("TRITON_INTERPRET", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    env = {name: value for name, value in os.environ.items() if name not in ours} | env
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def collected(*arguments):
    done = run_pytest("--collect-only", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "::" in line]
    return {line.partition("/")[0] for line in lines}, len(lines)


def test_each_command_collects_its_own():
    assert collected()[0] == {"tests"}
    folders, short = collected("--benchmark-only")
    assert folders == {"bench"}
    assert collected("--benchmark-only", "--grid")[1] > 20 * short


def test_the_interpreter_is_not_timed():
    done = run_pytest("--benchmark-only", TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert "TRITON_INTERPRET is set" in done.stderr + done.stdout


def test_the_cpu_pair_is_timed_and_the_rest_skipped_with_reasons(tmp_path):
    path = tmp_path / "benchmark.json"
    chosen = "T28 and B16 and forward+backward or bfloat16 and T28"
    done = run_pytest(
        "--benchmark-only", "-k", chosen, f"--benchmark-json={path}", CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bfloat16 is for a GPU" in done.stdout
    assert "a CUDA graph needs a GPU" in done.stdout
    assert "time of lstm.LSTM over torch.nn.LSTM" in done.stdout
    saved = json.loads(path.read_text())
    assert saved["machine_info"]["torch"]
    (group,) = {one["group"] for one in saved["benchmarks"]}
    infos = {one["params"]["impl"]: one["extra_info"] for one in saved["benchmarks"]}
    assert group == "forward+backward T28 B16 I32 H32 float32, python"
    assert set(infos) == {"lstm", "torch", "naive"}
    for info in infos.values():
        assert info["error"] < 1e-5 and info["us_per_step"] > 0
    assert infos["lstm"]["path"] == "torch"
    # Both run the same code. Speed has no test, but a ratio of another kind is no ratio.
    assert infos["lstm"]["time_over_torch"] == pytest.approx(1, abs=0.5)
