"""What the compiler makes of the kernels, for cards that need not be there.

bench/static_report.py says what a good time loop has; here all it compiles must be one. It runs in
a child, since under TRITON_INTERPRET nothing can be compiled.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from bench.sass import LoopFigures
from bench.static_report import (
    CARDS,
    EXACT_KERNELS,
    ITEMSIZE,
    KERNELS,
    MAIN_CARDS,
    MAIN_DTYPES,
    MAIN_KERNELS,
    MAIN_SIZES,
    NARROW_KERNELS,
    OTHER_SLICED_SIZES,
    SLICED_KERNELS,
    SLICED_SIZES,
    STEP_KERNELS,
    STEP_SIZES,
    Configuration,
    Row,
    configurations,
    defects,
    limits,
)
from lstm.kernels import config

ROOT = Path(__file__).parents[2]
BFLOAT16 = Configuration("forward", 128, "bfloat16", 90)


def static_report(*arguments, **env):
    """python -m bench.static_report, finished."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | env
    command = [sys.executable, "-m", "bench.static_report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What static_report records, all cards at once: a child takes seconds to start."""
    path = tmp_path_factory.mktemp("static") / "static.json"
    done = static_report("--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "on AMD gfx942: " in done.stdout
    return json.loads(path.read_text())


@pytest.fixture
def runs(record):
    return record["runs"]


def configuration(run):
    return Configuration(run["kernel"], run["hidden_size"], run["dtype"], run["card"])


def figures(configuration, **counts):
    """Figures of a time loop at all its limits, but for `counts`."""
    limit = limits(configuration)
    at_limits = dict.fromkeys(LoopFigures.__dataclass_fields__, 0) | {
        "registers": 255,
        "num_warps": configuration.tile["num_warps"],
        "bar": limit["bar"],
        "lds": limit["lds + ldsm"],
        "ldg": limit["ldg"],
        "shfl": limit["shfl"],
    }
    return LoopFigures(**(at_limits | counts))


def test_every_kind_of_tile_is_compiled_and_the_main_sizes_for_every_card():
    def kind(kernel, size, dtype):
        tile = config.tile(size, 1, ITEMSIZE[dtype])
        return kernel, dtype, tile["BLOCK_H"], tile["VEC"]

    def wanted(kernels, dtypes=ITEMSIZE, largest=config.MAX_ONE_SLICE):
        sizes = range(1, largest + 1)
        return {kind(k, size, dtype) for k in kernels for size in sizes for dtype in dtypes}

    exact = wanted(EXACT_KERNELS, ["float32"], config.MAX_EXACT_HIDDEN_SIZE)
    apart = STEP_KERNELS + SLICED_KERNELS
    common = set(KERNELS) - set(EXACT_KERNELS) - set(apart)

    compiled = [c for c in configurations() if c.kernel not in apart]
    kinds = {kind(c.kernel, c.hidden_size, c.dtype) for c in compiled}
    odd = {k for k in wanted(MAIN_KERNELS, MAIN_DTYPES) if k[-1] == 1}
    assert kinds >= odd | exact
    # The others in one dtype or another
    assert {(k[0], *k[2:]) for k in kinds} >= {(k[0], *k[2:]) for k in wanted(MAIN_KERNELS)}
    assert max(Counter(compiled).values()) == 1
    everything = Counter(c for c in configurations(everything=True) if c.kernel not in apart)
    assert max(everything.values()) == 1
    for card in CARDS:
        here = [c for c in everything if c.card == card]
        kinds = {kind(c.kernel, c.hidden_size, c.dtype) for c in here}
        assert kinds == wanted(common) | exact
    for card in CARDS:
        main = {(c.kernel, c.hidden_size, c.dtype) for c in configurations([card])}
        if card in MAIN_CARDS:
            assert main >= set(product(MAIN_KERNELS, MAIN_SIZES, ITEMSIZE))
        else:
            assert any(main >= set(product(MAIN_KERNELS, MAIN_SIZES, [d])) for d in MAIN_DTYPES)
    for card in MAIN_CARDS:
        main = {(c.kernel, c.hidden_size, c.dtype) for c in configurations([card])}
        assert main >= set(product(NARROW_KERNELS, MAIN_SIZES, MAIN_DTYPES))
    variants = {(c.kernel, c.dtype) for c in compiled if c.hidden_size in MAIN_SIZES}
    of_main = set(product(common, MAIN_DTYPES)) | set(product(MAIN_KERNELS, ITEMSIZE))
    assert variants == of_main


def test_every_kind_of_step_is_compiled():
    wanted = {
        (kernel, size, dtype)
        for kernel in STEP_KERNELS
        for size in STEP_SIZES
        for dtype in ITEMSIZE
        if kernel != "step, tf32" or dtype == "float32"
    }
    steps = [c for c in configurations() if c.kernel in STEP_KERNELS]
    assert {(c.kernel, c.hidden_size, c.dtype) for c in steps} == wanted
    assert len(steps) == len(wanted)
    assert {c.card for c in steps} == set(CARDS)
    steps = [c for c in configurations(everything=True) if c.kernel in STEP_KERNELS]
    assert len(steps) == len(set(steps)) == len(wanted) * len(CARDS)


def test_every_kind_of_slice_is_compiled():
    def kind(size, dtype):
        tile = config.tile(size, 1, ITEMSIZE[dtype])
        return tile["BLOCK_K"], tile["VEC"]

    compiled = [c for c in configurations() if c.kernel in SLICED_KERNELS]
    assert max(Counter(compiled).values()) == 1
    main = {(c.kernel, c.hidden_size, c.dtype) for c in compiled if c.card in MAIN_CARDS}
    assert main >= set(product(SLICED_KERNELS[:2], SLICED_SIZES, ITEMSIZE))
    sizes = range(config.MAX_ONE_SLICE + 1, config.MAX_HIDDEN_SIZE + 1)
    kinds = {(c.kernel, *kind(c.hidden_size, c.dtype)) for c in compiled}
    wanted = {kind(size, dtype) for size in sizes for dtype in ITEMSIZE}
    assert kinds >= {(kernel, *k) for kernel in SLICED_KERNELS[:2] for k in wanted}
    assert {c.kernel for c in compiled} == set(SLICED_KERNELS)
    assert {c.card for c in compiled} == set(CARDS)
    everything = [c for c in configurations(everything=True) if c.kernel in SLICED_KERNELS]
    assert (
        len(everything)
        == len(set(everything))
        == len(CARDS)
        * len(list(product(SLICED_KERNELS, SLICED_SIZES + OTHER_SLICED_SIZES, ITEMSIZE)))
    )


def test_with_a_spin_limit_a_program_says_what_it_waited_for():
    source = (
        "from bench.static_report import *\n"
        "for kernel in (*SLICED_KERNELS[:2], *JOINT_KERNELS):\n"
        "    at = Configuration(kernel, 64 if kernel in JOINT_KERNELS else 256, 'bfloat16', 90)\n"
        "    assert 'vprintf' in compile_configuration(at).asm['ptx']\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"FUSED_LSTM_SPIN_LIMIT": "1000", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=env, check=True)


@pytest.mark.parametrize("kernel", SLICED_KERNELS)
@pytest.mark.parametrize("name", ["spills", "hgmma", "utchmma", "membar", "bar", "ldsm", "ldg"])
def test_one_more_than_a_slice_needs_is_a_defect(kernel, name):
    at = Configuration(kernel, 512, "bfloat16", 90)
    limit = limits(at)
    counts = dict.fromkeys(LoopFigures.__dataclass_fields__, 0)
    counts |= {"lds": limit["lds + ldsm"], "ldg": limit["ldg"], "bar": limit["bar"]}
    assert defects(LoopFigures(**counts), at) == []
    counts[name] += 1
    (defect,) = defects(LoopFigures(**counts), at)
    assert name in defect


@pytest.mark.parametrize("card", CARDS)
def test_the_time_loops_have_no_defect(runs, card):
    runs = [run for run in runs if run["card"] == card]
    assert [configuration(run) for run in runs] == configurations([card])
    found = {str(configuration(run)): run["defects"] for run in runs if run["defects"]}
    assert not found
    for run in runs:
        assert run["weights"] == ("memory" if run["kernel"] in STEP_KERNELS else "registers")


@pytest.mark.parametrize(("kernel", "instructions"), [("forward", 200), ("backward", 230)])
def test_bfloat16_at_128_units_on_sm_90_keeps_its_figures(runs, kernel, instructions):
    wanted = Configuration(kernel, 128, "bfloat16", 90)
    (run,) = [run for run in runs if configuration(run) == wanted]
    assert run["tile"]["BLOCK_B"] == 8
    assert run["instructions"] <= instructions
    assert (run["bar"], run["shfl"], run["spills"], run["stack_bytes"]) == (1, 0, 0, 0)
    # Both buffers of the exchange
    assert run["shared_bytes"] >= 2 * 8 * 128 * 2 * (1 if kernel == "forward" else 4)
    # All of W_hh against eight sequences: blocks of 16 rows, 8 sequences and 16 of K.
    assert run["hmma"] == 4 * (128 // 16) * (8 // 8)


@pytest.mark.parametrize(
    ("kernel", "hidden_size", "dtype", "card"),
    [
        (kernel, size, dtype, card)
        for kernel in KERNELS if kernel not in STEP_KERNELS + SLICED_KERNELS
        for size in (1, 37, 128)
        for dtype, card in [("float32", 80), ("bfloat16", 90)]
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["spills", "hgmma", "utchmma", "bar", "ldsm", "ldg", "shfl"])
def test_one_more_than_needed_is_a_defect(kernel, hidden_size, dtype, card, name):
    at = Configuration(kernel, hidden_size, dtype, card)
    good = figures(at)
    assert defects(good, at) == []
    (defect,) = defects(figures(at, **{name: getattr(good, name) + 1}), at)
    assert name in defect


@pytest.mark.parametrize("kernel", STEP_KERNELS)
def test_a_spill_in_a_step_is_a_defect(kernel):
    at = Configuration(kernel, 128, "float32", 90)
    counts = dict.fromkeys(LoopFigures.__dataclass_fields__, 0)
    assert defects(LoopFigures(**counts), at) == []
    (defect,) = defects(LoopFigures(**(counts | {"spills": 1})), at)
    assert "spills" in defect


@pytest.mark.parametrize("size", [1, 20, 37, 64, 128])
@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("card", CARDS)
def test_weights_read_again_in_every_step_are_a_defect(size, dtype, card):
    at = Configuration("forward", size, dtype, card)
    block_h = at.tile["BLOCK_H"]
    exchange = max(1, block_h * 8 // 64 // 4)
    # A quarter of them, four registers at once: how the operands would leave shared memory.
    loop = figures(at, lds=exchange, ldsm=max(1, block_h // 16))
    assert any("lds + ldsm" in defect for defect in defects(loop, at))
    assert Row(at, loop, 0).weights == "shared"


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ({}, "registers"),
        ({"hgmma": 4}, "shared"),
        ({"ldg": 40}, "global"),
        ({"spills": 1}, "local"),
    ],
)
def test_where_the_weights_live(counts, weights):
    assert Row(BFLOAT16, figures(BFLOAT16, **counts), 0).weights == weights


@pytest.mark.parametrize(
    ("registers", "num_warps", "shared_bytes", "card", "programs"),
    [
        pytest.param(222, 8, 2048, 90, 1, id="registers"),
        pytest.param(128, 4, 1024, 90, 4, id="registers of a warp in units of 256"),
        pytest.param(64, 1, 0, 86, 16, id="programs"),
        pytest.param(32, 8, 0, 80, 8, id="threads"),
        pytest.param(32, 4, 49 * 1024, 120, 2, id="shared memory"),
    ],
)
def test_programs_of_a_multiprocessor(registers, num_warps, shared_bytes, card, programs):
    at = Configuration("forward", 16 * num_warps, "float16", card)
    loop = figures(at, registers=registers, num_warps=num_warps)
    assert Row(at, loop, shared_bytes).programs == programs


@pytest.mark.parametrize(
    ("arguments", "env", "reason"),
    [
        (["--check"], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET is set"),
        (["--cards", "70"], {}, "invalid choice: 70"),
        (["--json", __file__ + "/x.json"], {}, "is no folder"),
    ],
)
def test_bad_options_are_refused_before_anything_compiles(arguments, env, reason):
    done = static_report(*arguments, **env)
    assert done.returncode == 2
    assert reason in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("kernel", MAIN_KERNELS)
def test_it_says_whether_amd_compiles(record, kernel):
    verdict = record["case"]["gfx942"][kernel]
    assert verdict == "compiles" or verdict.startswith("does not compile: error")
    assert "\n" not in verdict
