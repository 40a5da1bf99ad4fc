"""Models of published packages give the same results before convert, after it, and after revert.

They have initial weights, so nothing is downloaded: pip install -e '.[models]'
"""

import pytest
import torch
from torch import nn

import lstm
from lstm.reference import relative_error
from tests.accuracy import CEILING

HINT = "a published model: pip install -e '.[models]'"


def stanza_lemmatizer(device):
    """Packed sequences of unequal lengths, both directions, then an nn.LSTMCell with attention."""
    module = pytest.importorskip("stanza.models.common.seq2seq_model", reason=HINT)
    options = dict(vocab_size=30, emb_dim=12, hidden_dim=48, num_layers=2, dropout=0.0)
    model = module.Seq2SeqModel(options | dict(max_dec_len=5, attn_type="soft")).to(device)
    words = torch.randint(4, 30, (3, 6), device=device)
    padding = torch.arange(6, device=device) >= torch.tensor([[6], [4], [1]], device=device)
    # Its mask is changed in place.
    return model, lambda: model(words, padding.clone(), words[:, :4])[:1]


def open_unmix(device):
    """Three layers of both directions between linear ones, on a spectrogram."""
    module = pytest.importorskip("openunmix.model", reason=HINT)
    model = module.OpenUnmix(nb_bins=17, nb_channels=2, hidden_size=64, nb_layers=3).to(device)
    model.input_mean.requires_grad_(False)  # of no effect before a batch norm
    if device.type == "cuda":
        model.lstm.dropout = 0.0  # cuDNN draws its own numbers
    spectrogram = torch.rand(2, 2, 17, 10, device=device)
    return model, lambda: [model(spectrogram)]


def recurrent_ppo_policy(device):
    """Actor and critic, each with an LSTM that is given its states, reset inside of a sequence."""
    module = pytest.importorskip("sb3_contrib.common.recurrent.policies", reason=HINT)
    from gymnasium import spaces
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    shapes = spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,))
    model = module.RecurrentActorCriticPolicy(
        *shapes, lambda _: 1e-3, lstm_hidden_size=64, n_lstm_layers=2
    ).to(device)
    observations, actions = torch.randn(12, 5, device=device), torch.randn(12, 2, device=device)
    actor, critic = torch.randn(2, 2, 2, 3, 64, device=device)
    states = RNNStates(tuple(actor), tuple(critic))
    # All steps in one call, and a call for each step where episodes start anew.
    starts = torch.zeros(12, device=device), (torch.arange(12, device=device) % 5 == 2).float()

    def call():
        return [
            output
            for start in starts
            for output in model.evaluate_actions(observations, actions, states, start)
        ]

    return model, call


def results(model, call):
    torch.manual_seed(1)  # of dropout
    model.zero_grad()
    outputs = call()
    sum(x.square().sum() for x in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return gradients | {f"output {number}": x.detach() for number, x in enumerate(outputs)}


@pytest.mark.parametrize("build", [stanza_lemmatizer, open_unmix, recurrent_ppo_policy])
def test_results_stay_when_a_model_is_converted_and_reverted(build, device, launches):
    model, call = build(device)
    types = [type(module) for module in model.modules()]
    assert nn.LSTM in types
    before = results(model, call)
    assert launches == {"forward": 0, "backward": 0}

    lstm.convert(model)
    layers = sum(m.num_layers for m in model.modules() if type(m) is lstm.LSTM)
    for name, actual in results(model, call).items():
        assert relative_error(actual, before[name]) <= CEILING[torch.float32], name
    assert min(launches.values()) >= layers > 0

    lstm.revert(model)
    assert [type(module) for module in model.modules()] == types
    launched = dict(launches)
    torch.testing.assert_close(results(model, call), before)
    assert launches == launched
