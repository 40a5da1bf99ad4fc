"""convert and revert: another class, and nothing else of a model changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lstm


class Doubled(nn.LSTM):
    def forward(self, input, hx=None):
        output, states = super().forward(input, hx)
        return 2 * output, states


class Model(nn.Module):
    """LSTMs nested, shared, frozen, in a list that no module knows, of another class; a cell."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(5, 8, batch_first=True)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8, 2))])
        self.again = self.first
        self.doubled = Doubled(8, 8)
        self.frozen = nn.LSTM(8, 3, bidirectional=True, dropout=0.0).requires_grad_(False).eval()
        self.held = [self.frozen]
        self.cell = nn.LSTMCell(6, 6)

    def forward(self, x):
        x, _ = self.first(x)
        x, _ = self.blocks[0][1](self.blocks[0][0](x))
        x, _ = self.doubled(x)
        x, _ = self.held[0](x)
        return self.cell(x[-1])[0]


@pytest.fixture
def model(device, monkeypatch):
    # cuDNN has no backward for the one in eval mode.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    return Model().to(device)


def results(model, device):
    torch.manual_seed(1)
    x = torch.randn(3, 4, 5, device=device, requires_grad=True)
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def test_a_converted_model_gives_the_same_results_on_the_kernels(model, device, launches):
    before = [x.detach().clone() for x in results(model, device)]
    assert launches == {"forward": 0, "backward": 0}
    lstm.convert(model)
    for actual, expected in zip(results(model, device), before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=5e-3, atol=5e-4)
    # first, two layers in blocks, frozen, cell
    assert launches == {"forward": 5, "backward": 5}


def test_it_says_what_it_did(model):
    done = lstm.convert(model)
    assert done.replaced == ["first", "blocks.0.1", "frozen", "cell"]
    assert done.skipped == {"doubled": "Doubled is a subclass of LSTM"}
    assert "replaced blocks.0.1" in str(done) and "left doubled alone" in str(done)
    assert lstm.convert(model).replaced == []
    assert str(lstm.convert(nn.Linear(2, 2))) == "found no LSTM"


def test_everything_else_stays_the_same_object(model, device):
    calls = []
    model.first.register_forward_hook(lambda *_: calls.append("hook"))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state, mode = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lstm.convert(model)
    assert all(x is modules[name] for name, x in model.named_modules())
    assert all(x is parameters[name] for name, x in model.named_parameters())
    assert type(model.first) is lstm.LSTM and model.again is model.first
    assert type(model.held[0]) is lstm.LSTM and type(model.doubled) is Doubled
    assert type(model.cell) is lstm.LSTMCell
    assert [m.training for m in model.modules()] == mode
    assert not any(p.requires_grad for p in model.frozen.parameters())
    assert list(model.state_dict()) == list(state)
    results(model, device)
    assert calls == ["hook"]
    optimizer.step()
    assert not torch.equal(model.first.weight_hh_l0, state["first.weight_hh_l0"])


def test_revert_undoes_it(model, device):
    before = [x.detach().clone() for x in results(model, device)]
    lstm.convert(model)
    done = lstm.revert(model)
    assert done.replaced == ["first", "blocks.0.1", "frozen", "cell"]
    assert type(model.first) is nn.LSTM and type(model.cell) is nn.LSTMCell
    for actual, expected in zip(results(model, device), before, strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_converted_models_checkpoint_loads_in_the_original(model, device):
    lstm.convert(model)
    original = Model().to(device)
    original.load_state_dict(model.state_dict())
    reverted = copy.deepcopy(model)
    lstm.revert(reverted)
    for actual, expected in zip(results(original, device), results(reverted, device), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_model_may_itself_be_an_lstm(device, launches):
    model = nn.LSTM(5, 8, device=device)
    done = lstm.convert(model)
    assert type(model) is lstm.LSTM and str(done) == "replaced the model itself"
    model(torch.randn(3, 2, 5, device=device))
    assert launches["forward"] == 1
    lstm.revert(model)
    assert type(model) is nn.LSTM


def test_a_parametrized_lstm_is_left_alone(device):
    model = nn.Sequential(parametrizations.weight_norm(nn.LSTM(5, 8), "weight_hh_l0"))
    done = lstm.convert(model)
    assert list(done.skipped) == ["0"] and not done.replaced


def test_a_moved_copied_and_converted_model_still_runs(model, device):
    lstm.convert(model)
    other = copy.deepcopy(model).to(torch.float64).to(torch.float32)
    for actual, expected in zip(results(other, device), results(model, device), strict=True):
        torch.testing.assert_close(actual, expected)
