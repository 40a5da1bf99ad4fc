"""Figures, and the results section of the README, from records and nothing else.

    python -m bench.plot                          # bench/records in, bench/plots and README.md out
    python -m bench.plot --records DIR --out DIR  # any records, figures only

Without options the records are those that git tracks in bench/records, and one of a commit with
changes, or of a CPU, is refused: the README's numbers can be made again. With none it says so.
"""

import argparse
import io
import math
import re
import sys
from pathlib import Path
from statistics import geometric_mean, median, quantiles

from matplotlib.figure import Figure

from bench import bounds, record

ROOT = Path(__file__).parents[1]
RECORDS, PLOTS, README = ROOT / "bench" / "records", ROOT / "bench" / "plots", ROOT / "README.md"

# One colour means one implementation in every figure. train_mnist has names of its own for two.
COLOUR = {
    "lstm": "tab:orange",
    "torch": "tab:blue",
    "naive": "tab:gray",
    "flashrnn": "tab:green",
    "torchrl": "tab:red",
}
COLOUR |= {"triton": COLOUR["lstm"], "cudnn": COLOUR["torch"]}
NAME = {
    "lstm": "lstm.LSTM",
    "torch": "torch.nn.LSTM",
    "naive": "plain torch loop",
    "flashrnn": "FlashRNN",
    "torchrl": "TorchRL",
}
NAME |= {"triton": NAME["lstm"], "cudnn": NAME["torch"]}
# bench/bounds.py
BOUND = "bound of lstm.LSTM"

BEGIN, END = "<!-- results: made by python -m bench.plot -->\n", "<!-- end of results -->\n"
NOT_MEASURED = "Not measured yet: no record of a GPU is committed.\n"


def times(run):
    """A run's samples in milliseconds, [] where it failed."""
    return run.get("time_ms", [])


def find(made, impl):
    """A record's run of an implementation, if it has times."""
    runs = [run for run in made["runs"] if run["impl"] == impl and times(run)]
    return runs[0] if runs else None


def speedup(made):
    """Time of torch.nn.LSTM over lstm.LSTM's, of medians; None without both."""
    ours, peer = find(made, "lstm"), find(made, "torch")
    return median(times(peer)) / median(times(ours)) if ours and peer else None


def least_ms(made):
    """The bound of our kernels in milliseconds (bench/bounds.py); None where that is not known."""
    found = bounds.of_record(made)
    return 1e3 * found.least if found else None


def share_of_time(made):
    """That bound over our time, of a case on the kernels; None where either is not known."""
    ours, least = find(made, "lstm"), least_ms(made)
    return least / median(times(ours)) if ours and ours["path"] == "fused" and least else None


def where(made):
    """The device that a record was made on; a rehearsal says so."""
    device = made["env"].get("gpu") or made["env"]["cpu"]
    if "processes" in made["case"]:
        device += f", {made['case']['processes']} processes"
    return f"{device}, a rehearsal" if made["case"].get("rehearsal") else device


def of(records, name):
    """The records of a name."""
    return [made for made in records if made["name"] == name]


def groups(records, *keys):
    """{values of keys in the case: [records]}, sorted."""
    found = {}
    for made in records:
        found.setdefault(tuple(made["case"][key] for key in keys), []).append(made)
    return dict(sorted(found.items()))


def draw_speedup(records):
    """Heat maps of the speed-up over torch.nn.LSTM, H by B, one for each T and dtype.

    Yields: (name, figure) for each mode, clock and number of layers.
    """
    known = [made for made in of(records, "lstm") if speedup(made)]
    for (mode, clock, layers), some in groups(known, "mode", "clock", "num_layers").items():
        lengths = sorted({made["case"]["T"] for made in some})
        dtypes = sorted({made["case"]["dtype"] for made in some}, reverse=True)
        size = 2 + 3.2 * len(lengths), 1 + 2.6 * len(dtypes)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(dtypes), len(lengths), squeeze=False)
        for row, dtype in zip(panels, dtypes, strict=True):
            for axes, T in zip(row, lengths, strict=True):
                here = [
                    made
                    for made in some
                    if (made["case"]["dtype"], made["case"]["T"]) == (dtype, T)
                ]
                if not here:
                    axes.set_axis_off()
                    continue
                image = _heat_map(axes, here)
                axes.set(title=f"T={T}, {dtype}", xlabel="H, hidden size", ylabel="B, sequences")
        bar = figure.colorbar(image, ax=panels, label="speed-up over torch.nn.LSTM (times)")
        bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])
        figure.suptitle(
            f"lstm.LSTM, {mode}, {_layers(layers)}, {_clock(clock)}\n{where(some[0])}", fontsize=10
        )
        yield f"speedup-{_slug(mode)}-{layers}-{clock}", figure


def _heat_map(axes, records):
    """One panel: blue where torch.nn.LSTM is faster, red where lstm.LSTM is, white where equal."""
    batches = sorted({made["case"]["B"] for made in records})
    hidden = sorted({made["case"]["H"] for made in records})
    values = [[math.nan] * len(hidden) for _ in batches]
    for made in records:
        at = batches.index(made["case"]["B"]), hidden.index(made["case"]["H"])
        values[at[0]][at[1]] = math.log2(speedup(made))
        axes.text(at[1], at[0], f"{speedup(made):.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(hidden)), labels=hidden)
    axes.set_yticks(range(len(batches)), labels=batches)
    return axes.imshow(values, cmap="coolwarm", vmin=-2, vmax=2, origin="lower", aspect="auto")


def draw_steps(records):
    """Microseconds per time step against H, a line for each implementation and for the bound.

    Yields: (name, figure) for each mode, clock, dtype and number of layers.
    """
    keys = ("mode", "num_layers", "dtype", "clock")
    for (mode, layers, dtype, clock), some in groups(of(records, "lstm"), *keys).items():
        title = f"{mode}, {_layers(layers)}, {dtype}, {_clock(clock)}\n{where(some[0])}"
        figure = _panels(
            some,
            title,
            "time per step (us)",
            lambda made, run: [1e3 * ms / made["case"]["T"] for ms in times(run)],
            lambda made, ms: 1e3 * ms / made["case"]["T"],
        )
        yield f"steps-{_slug(mode)}-{layers}-{dtype}-{clock}", figure


def draw_memory(records):
    """Peak memory of a call against H, a line for each implementation.

    Yields: (name, figure) for each mode, dtype and number of layers.
    """
    known = [
        made
        for made in of(records, "lstm")
        if made["case"]["clock"] == "python" and any(run.get("peak_bytes") for run in made["runs"])
    ]
    keys = ("mode", "num_layers", "dtype")
    for (mode, layers, dtype), some in groups(known, *keys).items():
        title = f"{mode}, {_layers(layers)}, {dtype}, beyond inputs and weights\n{where(some[0])}"
        figure = _panels(
            some,
            title,
            "peak memory of a call (MiB)",
            lambda made, run: [run["peak_bytes"] / 2**20] if run.get("peak_bytes") else [],
        )
        yield f"memory-{_slug(mode)}-{layers}-{dtype}", figure


def _panels(records, title, label, values, bound=None):
    """A panel for each T and B: median and 20 to 80 % band of values(record, run) against H, and
    dashed, if there is one, bound(record, its least time).
    """
    panels = groups(records, "T", "B")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 1.2 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    drawn = {}
    for axes, ((T, B), some) in zip(grid, panels.items(), strict=False):
        some = sorted(some, key=lambda made: made["case"]["H"])
        for impl in NAME:
            points = []
            for made in some:
                run = find(made, impl)
                if run and values(made, run):
                    points.append((made["case"]["H"], *band(values(made, run))))
            if points:
                H, low, middle, high = zip(*points, strict=True)
                (drawn[impl],) = axes.plot(H, middle, "o-", color=COLOUR[impl], markersize=4)
                axes.fill_between(H, low, high, color=COLOUR[impl], alpha=0.2)
        known = [(made, ms) for made in some if bound and (ms := least_ms(made))]
        floor = [(made["case"]["H"], bound(made, ms)) for made, ms in known]
        if floor:
            (drawn[BOUND],) = axes.plot(*zip(*floor, strict=True), "--", color="black", linewidth=1)
        hidden = sorted({made["case"]["H"] for made in some})
        axes.set_xscale("log", base=2)
        axes.set_xticks(hidden, labels=hidden, fontsize=7)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set(title=f"T={T}, B={B}", xlabel="H, hidden size", ylabel=label)
    names = [NAME.get(impl, impl) for impl in drawn]
    figure.legend(list(drawn.values()), names, loc="outside lower center", ncols=len(names) or 1)
    figure.suptitle(title, fontsize=10)
    return figure


def band(values):
    """20th percentile, median and 80th percentile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    fifths = quantiles(values, n=5, method="inclusive")
    return fifths[0], median(values), fifths[3]


def draw_mnist(records):
    """MNIST's training loss against time for both, a thin line a seed.

    Yields: (name, figure), if there are such records.
    """
    trainings = of(records, "train_mnist")
    if not trainings:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for made in trainings:
        for run in made["runs"]:
            # A step takes the same time as any other: all are one replayed graph.
            steps = len(run["losses"])
            seconds = [run["time_s"] * (step + 1) / steps for step in range(steps)]
            draw_loss(axes, seconds, run)
    _legend_once(axes)
    seeds = ", ".join(str(made["case"]["seed"]) for made in trainings)
    axes.set(
        xlabel="time without the first call (s)",
        ylabel="cross entropy of the batch (nats)",
        title=f"MNIST training, seeds {seeds}\n{where(trainings[0])}",
    )
    axes.set_ylim(bottom=0)
    yield "mnist", figure


def draw_loss(axes, x, run):
    """A run's losses over x."""
    losses = [math.nan if loss is None else loss for loss in run["losses"]]
    axes.plot(x, losses, color=COLOUR[run["impl"]], label=NAME[run["impl"]], linewidth=0.8)


def _legend_once(axes):
    """A legend with each name once."""
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    axes.legend(first.values(), first.keys())


def draw_losses(path, made):
    """Loss against step, a line per run of a train_mnist record; the suffix says the file type."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run in made["runs"]:
        draw_loss(axes, range(1, len(run["losses"]) + 1), run)
    axes.set(xlabel="step", ylabel="cross entropy of the batch (nats)", title="MNIST training loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(path, figure)


def save(path, figure):
    """Write a figure in the type of the path's suffix, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:] or "png")
    record.replace(path, content.getvalue())


def _slug(text):
    """Text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _layers(number):
    return "1 layer" if number == 1 else f"{number} layers"


def _clock(clock):
    return "as called from Python" if clock == "python" else "device time in a CUDA graph"


def results(records):
    """The results section of the README."""
    if not records:
        return NOT_MEASURED
    return "\n".join(map(_results_on, by_device(records).values()))


def by_device(records):
    """{device: records}, in the records' order."""
    found = {}
    for made in records:
        found.setdefault(where(made), []).append(made)
    return found


def _results_on(records):
    """Results of one device: where from, speed-ups, MNIST."""
    env = records[0]["env"]
    commits = ", ".join(sorted({made["commit"] for made in records}))
    lines = [
        f"On {where(records[0])}, driver {env['driver']}, CUDA {env['cuda']}, cuDNN "
        f"{env['cudnn']}, torch {env['torch']}, Triton {env['triton']}; commit {commits}, from "
        "[bench/records](bench/records), figures in [bench/plots](bench/plots).",
        "",
    ]
    rows = []
    for (mode, clock), some in groups(of(records, "lstm"), "mode", "clock").items():
        ratios = {_sizes(made): speedup(made) for made in some if speedup(made)}
        if ratios:
            lost = sum(ratio < 1 for ratio in ratios.values())
            worst = min(ratios, key=ratios.get)
            shares = [share for made in some if (share := share_of_time(made))]
            rows.append(
                f"| {mode} | {_clock(clock)} | {len(ratios)} | "
                f"{geometric_mean(ratios.values()):.2f} | {ratios[worst]:.2f}: {worst} | {lost} | "
                f"{f'{100 * median(shares):.0f} %' if shares else 'not known'} |"
            )
    if rows:
        lines += [
            "Speed-up over `torch.nn.LSTM`, of medians of alternating rounds; and, of cases on the "
            "kernels, the median share of our time that is the bound of these kernels "
            "([bench/bounds.py](bench/bounds.py)):",
            "",
            "| mode | clock | cases | geometric mean | worst | slower | bound |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    trainings = of(records, "train_mnist")
    if trainings:
        lines += [
            "MNIST, `bench/train_mnist.py`:",
            "",
            "| | seed | epochs | time without the first call (s) | first call (s) | accuracy (%) |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for made in trainings:
            case = made["case"]
            lines += [
                f"| `{NAME[run['impl']]}` | {case['seed']} | {case['epochs']} | "
                f"{run['time_s']:.3f} | {run['first_call_s']:.2f} | {run['accuracy'][-1]:.2f} |"
                for run in made["runs"]
            ]
        lines.append("")
    return "\n".join(lines)


def _sizes(made):
    """A case's sizes in a few words."""
    case = made["case"]
    sizes = [f"{key}={case[key]}" for key in ("T", "B", "H")]
    return ", ".join([*sizes, _layers(case["num_layers"]), case["dtype"]])


def with_results(readme, section):
    """The README's text with this results section.

    Raises: RecordError if the text lacks the two marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise record.RecordError(f"README.md lacks the line {BEGIN.strip()} or {END.strip()}")
    return before + begin + section + end + after


def committed():
    """The files in bench/records that git tracks and that have no changes."""
    listed = record.output("git", "-C", ROOT, "ls-files", "--", RECORDS)
    changed = record.output("git", "-C", ROOT, "diff", "--name-only", "HEAD", "--", RECORDS)
    changed = (changed or "").splitlines()
    return [ROOT / name for name in (listed or "").splitlines() if name not in changed]


def trustworthy(path):
    """The records in a committed file.

    Raises: RecordError if one is not of a GPU, or of a commit with changes.
    """
    records = record.read(path)
    for made in records:
        if "gpu" not in made["env"]:
            raise record.RecordError(f"{path}: made on a CPU, which says nothing about the kernels")
        if made["dirty"] is not False:
            raise record.RecordError(f"{path}: made with changes that no commit has")
    return records


def main(arguments=None):
    """Read, draw and write; exits with the reason if records or folders are no good."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=Path, metavar="DIR", help="instead of bench/records")
    parser.add_argument("--out", type=record.writable_folder, metavar="DIR", help="figures")
    parser.add_argument("--type", choices=["svg", "png", "pdf"], default="svg")
    args = parser.parse_args(arguments)
    if bool(args.records) != bool(args.out):
        parser.error("--records and --out go together: the README is for committed records")
    try:
        if args.records:
            files = sorted(args.records.glob("*.jsonl"))
            if not files:
                raise record.RecordError(f"{args.records}: no .jsonl file in it")
            records = [made for path in files for made in record.read(path)]
        else:
            records = [made for path in committed() for made in trustworthy(path)]
            section = with_results(README.read_text(), results(records))
            record.replace(README, section.encode())
            print(f"wrote {README.name}" + ("" if records else ": not measured yet"))
        for device, some in by_device(records).items():
            for draw in (draw_speedup, draw_steps, draw_memory, draw_mnist):
                for name, figure in draw(some):
                    path = (args.out or PLOTS) / f"{_slug(device)}-{name}.{args.type}"
                    save(path, figure)
                    print(f"wrote {path}")
    except (record.RecordError, OSError) as error:
        sys.exit(f"plot: {error}")


if __name__ == "__main__":
    main()
