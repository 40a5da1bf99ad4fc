"""Everything that only a GPU can tell, in one command and one time limit.

    python -m bench.gpu_suite --out DIR --minutes 9
    python -m bench.gpu_suite --out DIR --rehearse     # no GPU: tiny sizes, Triton's interpreter

Stages run in order of worth, each in a process of its own under a limit of its own, so that a crash
or a hang costs one stage. What a stage has measured is in its file at once. DIR then holds

    summary.txt     stages and headline numbers, as printed last
    log.txt         all that the stages and their programs printed
    checks.jsonl    tests, repeats bit for bit, soak, compute-sanitizer
    lstm.jsonl      layers and modules beside torch.nn.LSTM: time, error, peak memory
    mnist.jsonl     MNIST trained by both, three seeds
    cycles.jsonl    cycles per time step of each kernel
    peers.jsonl     other LSTMs, where they can be imported

which bench/plot.py makes figures of. Nothing is installed or fetched. The exit status is 1 if a
stage failed or ran out of time, or if a case is slower than in the records of --baseline.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import geometric_mean, median

import torch

from bench import bounds, plot, record
from bench.stages import STAGES, Run

ROOT = Path(__file__).parents[1]

# Slower than the baseline: the median by more than this, and beyond both 20 to 80 % bands.
SLOWER = 1.05
# Lines of the table about single cases, the worst first; the rest is in the records.
CASES = 40


def limited(name, args, end, log):
    """Run a stage as a process until `end`. Returns: what became of it, in a few words."""
    command = [sys.executable, "-m", "bench.gpu_suite", "--stage", name, "--out", str(args.out)]
    command += ["--end", str(end), *(["--rehearse"] if args.rehearse else [])]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if args.rehearse:
        env |= {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # Not even where there is a GPU.
        env |= {"CUDA_VISIBLE_DEVICES": ""}
    # A session of its own, so that all that the stage has started can be ended with it.
    child = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = child.wait(max(1, end - time.time()))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return "done" if status == 0 else f"failed, exit status {status}"


def headlines(records):
    """The numbers that a reader looks for first, a line each."""
    lines = []
    for made in records:
        line = {
            "tests": _tests,
            "repeats": _repeats,
            "soak": _soak,
            "sanitizer": _sanitizer,
            "cycles": _cycles,
            "peers": _peers,
            "train_mnist": _mnist,
        }.get(made["name"])
        lines += [line(made, run) for run in made["runs"] or [None]] if line else []
    compared = [made for made in records if made["name"] == "lstm" and plot.speedup(made)]
    compared.sort(key=plot.speedup)
    lines += ["", "beside torch.nn.LSTM:"] + [_compared(made) for made in compared[:CASES]]
    fused = [made for made in compared if plot.find(made, "lstm")["path"] == "fused"]
    for title, some in (("all paths", compared), ("kernels", fused)):
        if some:
            ratios = [plot.speedup(made) for made in some]
            lost = sum(ratio < 1 for ratio in ratios)
            lines.append(
                f"{title}: {len(ratios)} cases, speed-up {geometric_mean(ratios):.2f} in geometric "
                f"mean, {min(ratios):.2f} in the worst case, below 1 in {lost}"
            )
    return lines


def _tests(made, run):
    return "tests: " + ", ".join(
        f"{run[k]} {k}" for k in ("passed", "failed", "skipped") if k in run
    )


def _repeats(made, run):
    return f"repeats, {describe(made)}: {run['different']} of {run['repeats']} differ"


def _soak(made, run):
    outcome = run.get("failed") or f"{run['resumed_steps']} of them again with the same bits"
    return f"soak: {made['case']['steps']} steps, {outcome}"


def _sanitizer(made, run):
    return f"{run['tool']}: {run.get('summary') or run.get('skipped') or run.get('failed')}"


def _cycles(made, run):
    cycles = run["cycles_per_step"]
    count = "no clock" if cycles is None else f"{cycles:.0f} cycles"
    sizes = f"H={made['case']['H']} B={made['case']['B']} {made['case']['dtype']}"
    least = bounds.step_of_record(made, run["kernel"])
    bound = f", {least:.0f} at least" if least else ""
    return f"{run['kernel']} kernel, {sizes}: {count}{bound}, {run['us_per_step']:.3f} us a step"


def _peers(made, run):
    return f"peers: {made['case']['versions'] or 'none can be imported'}"


def _mnist(made, run):
    return (
        f"MNIST, seed {made['case']['seed']}, {plot.NAME[run['impl']]}: {run['time_s']:.3f} s, "
        f"first call {run['first_call_s']:.2f} s, {run['accuracy'][-1]:.2f} %"
    )


def _compared(made):
    ours, peer = plot.find(made, "lstm"), plot.find(made, "torch")
    times = f"{median(ours['time_ms']):.4f} and {median(peer['time_ms']):.4f} ms"
    peaks = ""
    if ours["peak_bytes"] is not None:
        peaks = f", {ours['peak_bytes'] / 2**20:.1f} and {peer['peak_bytes'] / 2**20:.1f} MiB"
    share = plot.share_of_time(made)
    bound = f", bound {100 * share:.0f} % of ours" if share else ""
    return f"{plot.speedup(made):6.2f}  {describe(made)}, {ours['path']}: {times}{peaks}{bound}"


def describe(made):
    """A record's case in a line."""
    case = made["case"]
    words = [str(case[key]) for key in ("mode", "dtype", "clock") if key in case]
    sizes = [f"{key}={case[key]}" for key in ("T", "B", "I", "H", "num_layers") if key in case]
    return " ".join(words[:1] + sizes + words[1:])


def failures(records):
    """What the records have as failed, a line each."""
    return [
        f"{made['name']}, {describe(made)}: {run['impl']}: {run['failed']}"
        for made in records
        for run in made["runs"]
        if "failed" in run
    ]


def slower(records, baseline):
    """Cases of ours that take longer than in the baseline's records, a line each."""

    def key(made):
        return made["env"].get("gpu"), json.dumps(made["case"], sort_keys=True)

    before = {key(made): made for made in baseline if made["name"] == "lstm"}
    lines = []
    for made in records:
        old = before.get(key(made)) if made["name"] == "lstm" else None
        was, now = (plot.find(x, "lstm") if x else None for x in (old, made))
        if was and not now:
            lines.append(f"{describe(made)}: no time, {median(was['time_ms']):.4f} ms before")
        elif was:
            low, middle, _ = plot.band(now["time_ms"])
            _, middle_before, high_before = plot.band(was["time_ms"])
            if middle > SLOWER * middle_before and low > high_before:
                lines.append(f"{describe(made)}: {middle:.4f} ms, {middle_before:.4f} ms before")
    return lines


def read_all(folder):
    """The records in all files of a folder."""
    return [made for path in sorted(folder.glob("*.jsonl")) for made in record.read(path)]


def parse(arguments):
    """The command line, refused with a reason before anything runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=record.writable_folder, required=True, metavar="DIR", help="made if need be")
    add("--minutes", type=float, default=9, help="for everything; default: 9")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="some of them only")
    add("--rehearse", action="store_true", help="tiny sizes on the CPU, to try the suite itself")
    add("--baseline", type=Path, metavar="DIR", help="records that no case may be slower than")
    add("--stage", choices=STAGES, help=argparse.SUPPRESS)
    add("--end", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.out = args.out.absolute()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --rehearse tries the suite itself without one")
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    if not args.stage and list(args.out.glob("*.jsonl")):
        parser.error(f"--out {args.out} holds records already")
    try:
        args.before = read_all(args.baseline) if args.baseline else []
    except record.RecordError as error:
        parser.error(str(error))
    if args.baseline and not args.before:
        parser.error(f"--baseline {args.baseline} holds no records")
    return args


def run_stage(args):
    """One stage, in this process; exits with what failed in it."""
    if args.rehearse:
        torch.set_num_threads(1)
    stage = STAGES[args.stage]
    run = Run(args.out / f"{stage.file}.jsonl", args.rehearse, args.end)
    stage.run(run)
    if run.failures:
        sys.exit("\n".join(run.failures))


def run_all(args):
    """All stages. Returns: the lines of the table, and whether something is wrong."""
    args.out.mkdir(parents=True, exist_ok=True)
    whole = 60 * args.minutes
    # The table takes its time too.
    last = time.time() + whole - min(10, whole / 10)
    lines, wrong = [f"{'stage':10} {'outcome':24} {'seconds':>7}"], False
    if args.rehearse:
        lines.insert(0, "A rehearsal: its times are the interpreter's and say nothing of kernels.")
    with open(args.out / "log.txt", "w") as log:
        print(record.environment("cpu" if args.rehearse else "cuda:0"), file=log)
        for name, stage in STAGES.items():
            if name not in args.stages:
                continue
            print(f"\n== {name}: {stage.what}", file=log, flush=True)
            begin = time.time()
            end = min(last, begin + stage.share * whole)
            outcome = limited(name, args, end, log) if end - begin > 1 else "out of time"
            lines.append(f"{name:10} {outcome:24} {time.time() - begin:7.1f}")
            print(lines[-1], flush=True)
            # The grid takes what time there is.
            wrong |= outcome != "done" and (name, outcome) != ("grid", "out of time")
    records = read_all(args.out)
    lines += ["", *headlines(records)]
    for title, found in (
        ("failed:", failures(records)),
        ("slower than the baseline:", slower(records, args.before)),
    ):
        lines += ["", title, *found] if found else []
    return lines, wrong or bool(slower(records, args.before))


def main(arguments=None):
    """All stages and their table, or, with --stage, one of them in this process."""
    args = parse(arguments)
    if args.stage:
        run_stage(args)
        return
    try:
        lines, wrong = run_all(args)
        text = "\n".join(lines) + "\n"
        record.replace(args.out / "summary.txt", text.encode())
    except (OSError, record.RecordError) as error:
        sys.exit(f"gpu_suite: {error}")
    print("\n" + text, end="")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
