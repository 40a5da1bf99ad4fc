"""Launches that skip Triton's look at the arguments, and those that must not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton import JITFunction

from lstm.kernels import launching

ROOT = Path(__file__).parents[2]


class Stub(JITFunction):
    """A kernel (x_ptr, y_ptr, T, H: constexpr) that notes how it is launched."""

    def __init__(self):
        self.fn, self.launches = object(), []
        self.arg_names = ["x_ptr", "y_ptr", "T", "H"]
        self.params = [SimpleNamespace(do_not_specialize=name == "T") for name in self.arg_names]

    def __getitem__(self, grid):
        def launch(*arguments, **keywords):
            self.launches.append(("kernel", grid, arguments, keywords))
            return Compiled(self)

        return launch


class Compiled:
    def __init__(self, stub):
        self.stub = stub

    def __getitem__(self, grid):
        return lambda *arguments: self.stub.launches.append(("compiled", grid, arguments))


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(launching, "_versions", {})
    return Stub()


def test_second_launch_is_of_the_compiled_kernel(stub):
    x, y = torch.zeros(4), torch.zeros(4)
    for T in (5, 6):
        launching.launch(stub, (1, 2, 3), x, None, T, H=8, num_warps=4)
    launching.launch(stub, (1, 2, 4), y, None, 7, H=8, num_warps=4)
    assert stub.launches == [
        ("kernel", (1, 2, 3), (x, None, 5), {"H": 8, "num_warps": 4}),
        ("compiled", (1, 2, 3), (x, None, 6, 8)),
        ("compiled", (1, 2, 4), (y, None, 7, 8)),
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(4, dtype=torch.float16)},
        {"x": torch.zeros(5)[1:]},
        {"y": torch.zeros(4)},
        {"T": None},
        {"T": 1 << 31},
        {"H": 9},
        {"num_warps": 8},
        {"launch_cooperative_grid": True},
    ],
    ids=str,
)
def test_other_arguments_are_another_version(stub, other):
    given = {"x": torch.zeros(4), "y": None, "T": 5, "H": 8, "num_warps": 4}
    for changed in (dict(given), given | other):
        x, y, T = (changed.pop(name) for name in ("x", "y", "T"))
        launching.launch(stub, (1, 1, 1), x, y, T, **changed)
    assert [launch[0] for launch in stub.launches] == ["kernel", "kernel"]


def test_kernels_do_not_share_versions(stub):
    another = Stub()
    for kernel in (stub, another):
        launching.launch(kernel, (1, 1, 1), torch.zeros(4), None, 5, H=8)
    assert [len(kernel.launches) for kernel in (stub, another)] == [1, 1]


def test_versions_tell_apart_what_triton_does():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.versions"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["wrong"]
    # Calls do share versions, and there are several.
    assert found["calls"] > found["versions"] > 100
