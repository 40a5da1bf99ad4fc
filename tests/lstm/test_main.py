"""`python -m lstm` says what runs here, and notices what is wrong."""

import pytest
import torch

from lstm import __main__, __version__


@pytest.fixture(autouse=True)
def float32_alone(monkeypatch):
    """Half a minute less in the interpreter."""
    monkeypatch.setattr(__main__, "CEILING", {torch.float32: __main__.CEILING[torch.float32]})


def test_it_names_versions_paths_and_finds_nothing_wrong(capsys, launches):
    assert __main__.main() == 0
    printed = capsys.readouterr().out
    assert __version__ in printed and torch.__version__ in printed
    assert "all right" in printed
    assert "LSTM(1, 1025), 64 sequences: PyTorch's own module: hidden_size above 1024" in printed
    assert launches["forward"] > 0 and launches["backward"] > 0


def test_a_wrong_result_ends_with_status_one(capsys, monkeypatch, launches):
    from lstm.kernels import forward

    launch = forward.lstm_forward

    def wrong(*args):
        launch(*args)
        args[4].mul_(1.01)  # output

    monkeypatch.setattr(forward, "lstm_forward", wrong)
    assert __main__.main() == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed and "of them wrong" in printed


def test_without_a_gpu_and_the_interpreter_it_says_so(run_without_interpreter):
    printed = run_without_interpreter("import runpy; runpy.run_module('lstm', run_name='__main__')")
    assert "no NVIDIA GPU" in printed and "all right" in printed
