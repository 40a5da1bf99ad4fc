"""The examples show what they say: on the kernels, in few steps."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lstm.examples import convert_model, gradient_penalty, mnist_rows, rollout
from tests.accuracy import CEILING

EXAMPLES = sorted(Path(mnist_rows.__file__).parent.glob("*.py"))
TF32 = CEILING[torch.float32]


def test_the_notebook_trains_as_with_the_import_it_had(launches, monkeypatch):
    data = mnist_rows.mnist.load()
    monkeypatch.setattr(mnist_rows.mnist, "load", lambda: data)
    losses = mnist_rows.main(["--batches", "3"])
    assert launches == {"forward": 6, "backward": 6}
    assert losses[-1] < losses[0]
    monkeypatch.setattr(mnist_rows, "LSTM", nn.LSTM)
    assert losses == pytest.approx(mnist_rows.main(["--batches", "3"]), abs=1e-3)
    assert launches == {"forward": 6, "backward": 6}


def test_a_converted_language_model_trains_and_goes_back(launches, capsys):
    losses = convert_model.main(["--steps", "3"])
    # Two layers: before, three steps, after
    assert launches == {"forward": 10, "backward": 6}
    assert losses["converted"] == pytest.approx(losses["before"], rel=TF32)
    assert losses["trained"] < 0.95 * losses["converted"]
    assert losses["reverted"] == pytest.approx(losses["trained"], rel=TF32)
    assert "replaced rnn" in capsys.readouterr().out


def test_a_converted_open_unmix_trains_and_goes_back(launches):
    pytest.importorskip("openunmix.model", reason="a published model: pip install -e '.[models]'")
    losses = convert_model.main(["--steps", "2", "--model", "open-unmix"])
    assert launches == {"forward": 12, "backward": 6}
    assert losses["converted"] == pytest.approx(losses["before"], rel=TF32)
    assert losses["reverted"] == pytest.approx(losses["trained"], rel=TF32)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(convert_model.sys.modules, "openunmix.model", None)
    with pytest.raises(SystemExit, match="pip install openunmix"):
        convert_model.main(["--model", "open-unmix"])


def test_steps_with_a_carried_state_equal_the_sequence_with_resets(launches):
    history = rollout.main(["--updates", "2"])
    assert launches == {"forward": 2 * (rollout.STEPS + 1), "backward": 2}
    assert all(apart < TF32 for _, apart in history)


def test_a_sequence_without_resets_is_another_one(device):
    corridors, model = rollout.Corridors(rollout.ENVS, device), rollout.ActorCritic().to(device)
    (observations, begins, *_, acted), *_ = rollout.rollout(
        model, corridors, None, corridors.begins
    )
    assert begins[1:].any(0).all(), "an environment without a new episode"
    with torch.no_grad():
        logits, *_ = model(observations, None, torch.zeros_like(begins))
    assert (logits - acted).abs().max() > 10 * TF32


def test_the_policy_learns(run_without_interpreter):
    """On the equations in plain torch, which a hundred updates take seconds with."""
    printed = run_without_interpreter("""
from lstm.examples import rollout
rewards = [reward for reward, _ in rollout.main(["--updates", "30"])]
assert abs(rewards[0]) < 0.5 and rewards[-1] > 0.9, rewards
""")
    assert re.search(r"^update 30: reward (0\.9|1\.0)\d, ", printed, re.MULTILINE)


def test_a_gradient_penalty_trains_as_with_nn_lstm_on_a_cpu(device):
    """cuDNN has no second derivative."""

    def history(lstm, device):
        torch.manual_seed(0)
        critic = gradient_penalty.Critic(lstm).to(device)
        return list(gradient_penalty.train(critic, 6, device))

    ours, theirs = history(gradient_penalty.LSTM, device), history(nn.LSTM, "cpu")
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual == pytest.approx(expected, rel=5e-3, abs=1e-3)
    losses, norms = ([step[n] for step in ours] for n in (2, 1))
    assert losses[-1] < 0.9 * losses[0]
    assert abs(norms[-1] - 1) < abs(norms[0] - 1)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_names_its_command_and_its_options(path):
    source = path.read_text()
    commands = re.findall(r"^    python lstm/examples/(\S+)", source, re.MULTILINE)
    assert commands and set(commands) == {path.name}
    options = set(re.findall(r"(--[\w-]+)", source.split('"""')[1]))
    assert options <= set(re.findall(r'add_argument\("(--[\w-]+)"', source))
