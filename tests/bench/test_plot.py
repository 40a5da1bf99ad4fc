"""Figures come out in the type that their name asks for."""

import pytest

from bench.plot import draw_losses

RECORD = {
    "runs": [
        {"impl": "triton", "what": "lstm.LSTM", "losses": [2.3, 1.9, None]},
        {"impl": "cudnn", "what": "torch.nn.LSTM", "losses": [2.3, 1.8, 1.7]},
    ]
}


@pytest.mark.parametrize("suffix, signature", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_losses_are_drawn_in_the_type_of_the_suffix(suffix, signature, tmp_path):
    path = tmp_path / "plots" / f"losses.{suffix}"
    draw_losses(path, RECORD)
    assert path.read_bytes().startswith(signature)
