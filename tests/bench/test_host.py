"""bench/host.py measures with stubs, and leaves a record."""

import subprocess
import sys

from bench import record
from tests.conftest import ROOT


def test_a_record_of_each_depth(tmp_path):
    path = tmp_path / "host.json"
    # It has the interpreter on and the kernels gone, so a process of its own.
    command = [sys.executable, "-m", "bench.host", "--steps", "2", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "kernels stubbed" in done.stdout
    (made,) = record.read(path)
    assert [run["layers"] for run in made["runs"]] == [1, 2, 4]
    assert all(run["training_step_us"] > 0 for run in made["runs"])
