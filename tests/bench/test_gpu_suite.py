"""The suite rehearsed on a CPU, all of it, and what keeps one bad stage from costing the others."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_suite, plot, record, stages
from tests.bench.test_plot import compared

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, interpreter):
    """A finished rehearsal: its folder and what it printed."""
    out = tmp_path_factory.mktemp("suite") / "out"
    command = [sys.executable, "-m", "bench.gpu_suite", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    return out, done.stdout


def test_a_rehearsal_runs_every_stage_and_ends_with_its_table(rehearsal):
    out, printed = rehearsal
    table = printed[printed.index("A rehearsal") :]
    assert (out / "summary.txt").read_text() == table
    for name in stages.STAGES:
        assert f"{name:10} done" in table
    assert "failed" not in table
    assert "compute-sanitizer is not on the PATH" in table or "a rehearsal" in table


def test_a_rehearsal_leaves_few_files_each_of_whole_records(rehearsal):
    out, _ = rehearsal
    files = sorted(path.name for path in out.iterdir())
    assert files == [
        *["checks.jsonl", "cycles.jsonl", "log.txt", "lstm.jsonl", "mnist.jsonl", "peers.jsonl"],
        "summary.txt",
    ]
    records = gpu_suite.read_all(out)
    assert {made["name"] for made in records} == {
        *["tests", "compile", "lstm", "train_mnist", "repeats", "soak", "sanitizer", "cycles"],
        "peers",
    }
    assert all(made["case"]["rehearsal"] for made in records)
    for made in records:
        for run in made["runs"]:
            if made["name"] == "lstm":
                assert run["time_ms"] and run["error"] < 0.02
            if run["impl"] == "lstm" and "path" in run:
                assert run["path"] == "fused", "the kernels did not run"


def test_figures_come_from_a_rehearsal_but_no_results(rehearsal, tmp_path):
    out, _ = rehearsal
    plot.main(["--records", str(out), "--out", str(tmp_path)])
    drawn = {path.name.partition("rehearsal-")[2] for path in tmp_path.iterdir()}
    assert {"mnist.svg", "speedup-forward-backward-1-python.svg"} <= drawn
    with pytest.raises(record.RecordError, match="CPU"):
        plot.trustworthy(out / "lstm.jsonl")


def options(tmp_path, **changes):
    values = {"out": tmp_path, "rehearse": True} | changes
    return argparse.Namespace(**values)


def stage_as(monkeypatch, source):
    """Has each stage's process run this source instead."""
    popen = subprocess.Popen

    def start(command, **options):
        return popen([sys.executable, "-c", source], **options)

    monkeypatch.setattr(subprocess, "Popen", start)


def test_a_stage_that_hangs_ends_with_all_that_it_started(tmp_path, monkeypatch):
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    source = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)"
    )
    stage_as(monkeypatch, source)
    with open(tmp_path / "log.txt", "w") as log:
        outcome = gpu_suite.limited("tests", options(tmp_path), time.time() + 2, log)
    assert outcome == "out of time"
    time.sleep(3)
    assert not mark.exists()


def test_a_stage_that_crashes_is_named_and_the_next_one_runs(tmp_path, monkeypatch):
    stage_as(monkeypatch, "import os; os.abort()")
    args = gpu_suite.parse(
        ["--rehearse", "--out", str(tmp_path), "--stages", "tests", "peers", "--minutes", "1"]
    )
    lines, wrong = gpu_suite.run_all(args)
    assert wrong
    assert sum("failed, exit status -6" in line for line in lines) == 2


def test_a_failure_of_ours_is_the_stages_failure_and_a_peers_is_not(tmp_path):
    run = stages.Run(tmp_path / "lstm.jsonl", True, 0)
    run.add("lstm", {}, [{"impl": "naive", "failed": "out of memory"}])
    assert run.failures == []
    run.add("lstm", {}, [{"impl": "lstm", "failed": "wrong: error 1.0e+00"}])
    assert run.failures == ["lstm: wrong: error 1.0e+00"]
    assert len(record.read(run.path)) == 2


def test_a_wrong_implementation_gets_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.cases.Subject, "error", lambda self: float("nan"))
    run = stages.Run(tmp_path / "lstm.jsonl", True, 0)
    stages.compare(run, stages.cases.Case("forward", 2, 3, 16, 16), ("torch",), "python", 0)
    (made,) = record.read(run.path)
    assert made["runs"][0]["failed"] == "wrong: error nan"
    assert "time_ms" not in made["runs"][0]


def test_headlines_say_how_far_from_the_bound_a_case_and_a_step_are():
    made = compared() | {"env": {"gpu": "NVIDIA H100 80GB HBM3"}}
    made["runs"][0] |= {"path": "fused", "time_ms": [4 * plot.least_ms(made)]}
    run = {"impl": "lstm", "kernel": "forward", "cycles_per_step": 900.0, "us_per_step": 0.5}
    step = made | {"name": "cycles", "runs": [run]}
    lines = gpu_suite.headlines([made, step])
    assert any(line.endswith("bound 25 % of ours") for line in lines)
    assert any("900 cycles, 384 at least" in line for line in lines)


def test_slower_means_beyond_five_percent_and_the_noise():
    before = [compared(ours=1.0), compared(ours=1.0, B=1)]
    assert gpu_suite.slower([compared(ours=1.04), compared(ours=9.0, B=2)], before) == []
    (line,) = gpu_suite.slower([compared(ours=1.2), compared(ours=0.5, B=1)], before)
    assert "B=16" in line and "1.2000 ms, 1.0000 ms before" in line
    failed = compared()
    failed["runs"][0] = {"impl": "lstm", "failed": "out of memory"}
    (line,) = gpu_suite.slower([failed], before)
    assert "no time" in line
    elsewhere = [made | {"env": {"gpu": "another"}} for made in before]
    assert gpu_suite.slower([compared(ours=2.0)], elsewhere) == []


def test_noise_is_not_slower():
    noisy = compared(ours=1.2)
    noisy["runs"][0]["time_ms"] = [0.9, 0.95, 1.2, 1.3, 1.3]
    assert gpu_suite.slower([noisy], [compared(ours=1.0)]) == []


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "--out"),
        (["--out", "file/below"], "is no folder"),
        (["--out", "used"], "holds records already"),
        (["--out", "new", "--stages", "speed"], "invalid choice"),
        (["--out", "new", "--minutes", "0"], "must be above 0"),
        (["--out", "new", "--baseline", "new"], "holds no records"),
        (["--out", "new", "--baseline", "bad"], "bad.jsonl"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    arguments, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    record.write(tmp_path / "used" / "lstm.jsonl", compared())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jsonl").write_text("{")
    with pytest.raises(SystemExit):
        gpu_suite.main(["--rehearse", *arguments])
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path / "new")])
    assert "--rehearse" in capsys.readouterr().err


def test_records_are_json_that_any_reader_takes(rehearsal):
    out, _ = rehearsal
    for path in out.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)
