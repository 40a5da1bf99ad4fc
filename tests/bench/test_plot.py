"""Figures and the README come from records, and only from those that can be made again."""

import itertools

import pytest
from matplotlib.colors import to_rgba

from bench import plot, record

LOSSES = {"time_s": 0.5, "first_call_s": 2.0, "accuracy": [97.1, 98.0]}
MNIST = {
    "schema": 1,
    "name": "train_mnist",
    "commit": "3f2c1ab",
    "dirty": False,
    "env": {"gpu": "A GPU", "driver": "1", "cuda": "13", "cudnn": 9, "torch": "2", "triton": "3"},
    "case": {"seed": 7, "epochs": 2},
    "runs": [
        {"impl": "triton", "what": "lstm.LSTM", "losses": [2.3, 1.9, None], **LOSSES},
        {"impl": "cudnn", "what": "torch.nn.LSTM", "losses": [2.3, 1.8, 1.7], **LOSSES},
    ],
}


def compared(ours=1.0, peer=2.0, **sizes):
    """A record of both on one case, of these median times."""
    case = {"mode": "forward+backward", "T": 28, "B": 16, "I": 28, "H": 128, "num_layers": 1}
    case |= {"dtype": "float32", "fp32_precision": "tf32", "clock": "python"} | sizes
    runs = [
        {
            "impl": impl,
            "path": impl,
            "error": 1e-4,
            "peak_bytes": 2**20,
            "time_ms": [t, t, 1.01 * t],
        }
        for impl, t in (("lstm", ours), ("torch", peer))
    ]
    return MNIST | {"name": "lstm", "case": case, "runs": runs}


def grid():
    sizes = itertools.product((28, 128), (1, 16), (32, 64, 128), ("float32", "bfloat16"))
    return [compared(T=T, B=B, H=H, dtype=dtype) for T, B, H, dtype in sizes]


def figures(records, *draws):
    return dict(itertools.chain.from_iterable(draw(records) for draw in draws))


@pytest.mark.parametrize("suffix, signature", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_losses_are_drawn_in_the_type_of_the_suffix(suffix, signature, tmp_path):
    path = tmp_path / "plots" / f"losses.{suffix}"
    plot.draw_losses(path, MNIST)
    assert path.read_bytes().startswith(signature)
    assert list(path.parent.iterdir()) == [path]


def test_a_figure_for_each_kind_of_record():
    some = figures(
        [*grid(), MNIST], plot.draw_speedup, plot.draw_steps, plot.draw_memory, plot.draw_mnist
    )
    assert set(some) == {
        "speedup-forward-backward-1-python",
        "steps-forward-backward-1-float32-python",
        "steps-forward-backward-1-bfloat16-python",
        "memory-forward-backward-1-float32",
        "memory-forward-backward-1-bfloat16",
        "mnist",
    }


def test_heat_map_shows_each_speed_up_and_leaves_out_what_failed():
    failed = compared(H=64)
    failed["runs"][0] = {"impl": "lstm", "failed": "out of memory"}
    ((_, figure),) = plot.draw_speedup([compared(peer=2.0), compared(B=1, peer=0.5), failed])
    panel, bar = figure.axes
    assert sorted(text.get_text() for text in panel.texts) == ["0.50", "2.00"]
    assert "times" in bar.get_ylabel()


def test_axes_have_units_and_a_colour_means_one_implementation():
    records = [*grid(), MNIST]
    for name, figure in figures(
        records, plot.draw_steps, plot.draw_memory, plot.draw_mnist
    ).items():
        for axes in figure.axes:
            assert axes.get_xlabel() and "(" in axes.get_ylabel(), name
            colours = [to_rgba(line.get_color()) for line in axes.lines]
            assert colours == [to_rgba("tab:orange"), to_rgba("tab:blue")], name


def test_results_of_no_records_say_so():
    assert plot.results([]) == "Not measured yet: no record of a GPU is committed.\n"


def test_results_count_what_is_slower_and_name_the_worst_case_and_the_source():
    text = plot.results([compared(peer=2.0), compared(B=1, peer=0.5), MNIST])
    assert "| 2 | 1.00 | 0.50: T=28, B=1, H=128, 1 layer, float32 | 1 |" in text
    assert "On A GPU, driver 1, CUDA 13, cuDNN 9, torch 2, Triton 3; commit 3f2c1ab" in text
    assert "| `torch.nn.LSTM` | 7 | 2 | 0.500 | 2.00 | 98.00 |" in text


def on_h100(ours, path="fused"):
    made = compared(ours) | {"env": MNIST["env"] | {"gpu": "NVIDIA H100 80GB HBM3"}}
    made["runs"][0]["path"] = path
    return made


def test_a_known_card_has_a_bound_in_results_and_figures():
    least = plot.least_ms(on_h100(1.0))
    assert "| 0 | 50 % |" in plot.results([on_h100(2 * least)])
    # Only of what ran on the kernels, and of a card that is known.
    assert plot.share_of_time(on_h100(1.0, "torch")) is None
    assert "| 0 | not known |" in plot.results([compared()])
    ((_, figure),) = plot.draw_steps([on_h100(1.0)])
    (axes,) = figure.axes
    assert axes.lines[-1].get_linestyle() == "--"
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(1e3 * least / 28)


def test_devices_are_not_mixed():
    other = compared() | {"env": MNIST["env"] | {"gpu": "Another GPU"}}
    text = plot.results([compared(), other])
    assert text.count("| 1 | 2.00 | 2.00: T=28") == 2
    assert "On A GPU" in text and "On Another GPU" in text


def test_several_processes_are_a_device_of_their_own():
    several = MNIST | {"case": MNIST["case"] | {"processes": 2}}
    text = plot.results([MNIST, several])
    assert "On A GPU, driver" in text and "On A GPU, 2 processes, driver" in text


def test_the_readme_is_what_the_committed_records_make():
    records = [made for path in plot.committed() for made in plot.trustworthy(path)]
    readme = plot.README.read_text()
    assert plot.with_results(readme, plot.results(records)) == readme


def test_a_readme_without_its_marks_is_refused():
    assert plot.with_results(plot.BEGIN + "old\n" + plot.END, "new\n").count("\n") == 3
    with pytest.raises(record.RecordError, match="lacks the line"):
        plot.with_results("text", "new\n")


@pytest.mark.parametrize(
    "change, reason", [({"env": {"cpu": "x"}}, "CPU"), ({"dirty": True}, "no commit has")]
)
def test_only_a_clean_commit_on_a_gpu_makes_results(change, reason, tmp_path):
    path = tmp_path / "lstm.jsonl"
    record.write(path, compared())
    assert plot.trustworthy(path) == [compared()]
    record.write(path, compared() | change)
    with pytest.raises(record.RecordError, match=reason):
        plot.trustworthy(path)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--records", "missing", "--out", "figures"], "no .jsonl file"),
        (["--records", "missing"], "go together"),
        (["--out", "file/below", "--records", "x"], "is no folder"),
        (["--type", "gif"], "invalid choice"),
    ],
)
def test_bad_options_are_refused_and_write_nothing(
    arguments, reason, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        plot.main(arguments)
    assert reason in f"{ended.value}{capsys.readouterr().err}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
