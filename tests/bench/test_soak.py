"""A soak passes on the kernels, and each of its checks finds the fault that it is there for."""

import json

import pytest
import torch

from bench import soak

STEPS = "40"


@pytest.fixture
def small(monkeypatch):
    """Sizes of which a few steps are seconds in the interpreter."""
    monkeypatch.setattr(soak, "MAX_T", 2)
    monkeypatch.setattr(soak, "MAX_B", 3)


@pytest.fixture
def quick(small, force):
    """On a CPU PyTorch's LSTM: the faults are none of the kernels'."""
    if not torch.cuda.is_available():
        force("torch")


def before_step(monkeypatch, fault):
    """Has `fault` called with the soak before each of its steps."""
    step = soak.Soak.step

    def faulty(self):
        fault(self)
        return step(self)

    monkeypatch.setattr(soak.Soak, "step", faulty)


def test_a_short_soak_passes_on_the_kernels(small, tmp_path, capsys):
    path = tmp_path / "soak.json"
    soak.main(["--steps", "16", "--json", str(path)])
    out = capsys.readouterr().out
    assert "all losses finite" in out
    assert "Resumed: 8 steps with the same losses and weights, bit for bit" in out
    record = json.loads(path.read_text())
    (run,) = record["runs"]
    assert (record["name"], record["case"]["steps"]) == ("soak", 16)
    assert (run["path"], run["resumed_steps"]) == ("fused", 8)
    assert "failed" not in run


def test_without_a_fault_nothing_fails(quick):
    soak.main(["--steps", STEPS])


def test_a_loss_that_is_not_finite_fails_and_is_recorded(quick, monkeypatch, tmp_path):
    def break_weights(self):
        if self.steps == 24:
            torch.nn.init.constant_(self.model.linears[0].bias, torch.nan)

    before_step(monkeypatch, break_weights)
    path = tmp_path / "soak.json"
    with pytest.raises(SystemExit, match="soak: step 25: the loss is nan"):
        soak.main(["--steps", STEPS, "--json", str(path)])
    assert json.loads(path.read_text())["runs"][0]["failed"] == "step 25: the loss is nan"


def test_memory_that_grows_fails(quick, monkeypatch, device):
    kept = []
    # Above 32 MiB, or a CPU takes it from what earlier tests have freed.
    size = 2**20 if device.type == "cuda" else 2**23 + 1
    before_step(monkeypatch, lambda self: kept.append(torch.ones(size, device=device)))
    with pytest.raises(SystemExit, match=r"after step 20 .* memory is .* and may grow by"):
        soak.main(["--steps", STEPS])


# "torch" decides nothing on a GPU, where dropout draws from the card's generator.
PARTS = ["steps", "model", "optimizer", "sizes", "numbers"]
PARTS += ["cuda" if torch.cuda.is_available() else "torch"]


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_does_not_resume_equal(part, quick, monkeypatch, device):
    load = soak.Soak.load
    if device.type == "cuda":
        device = torch.device("cuda", 0)

    def incomplete(self, state):
        fresh = soak.Soak(2, device).state()
        load(self, state | {part: fresh[part]})

    monkeypatch.setattr(soak.Soak, "load", incomplete)
    with pytest.raises(SystemExit, match="steps after the checkpoint the loss is"):
        soak.main(["--steps", STEPS])


def test_weights_may_not_differ_in_a_bit():
    losses, weights = torch.ones(3), {"weight": torch.ones(2), "bias": torch.ones(2)}
    soak.same(losses, losses.clone(), weights, {name: x.clone() for name, x in weights.items()})
    next_up = torch.nextafter(torch.ones(2), torch.tensor(2.0))
    with pytest.raises(soak.Failed, match="bias differs"):
        soak.same(losses, losses, weights, weights | {"bias": next_up})


def test_later_batches_are_no_larger_than_the_first(device):
    some = soak.Soak(0, device)
    sizes = []
    for step in range(200):
        some.steps = step
        input, lengths = some.draw(packed=step % 2 == 1)
        T, B = input.shape[:2]
        assert lengths is None or (lengths.shape == (B,) and 1 <= min(lengths) <= max(lengths) <= T)
        sizes.append((T, B))
    assert sizes[: len(soak.KINDS)] == [(soak.MAX_T, soak.MAX_B)] * len(soak.KINDS)
    assert {T for T, _ in sizes} == set(range(1, soak.MAX_T + 1))
    assert {B for _, B in sizes} == set(range(1, soak.MAX_B + 1))


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--steps", "7"])
    assert "--steps must be at least 8" in capsys.readouterr().err
