"""Which path a call takes on each card, and why."""

from itertools import product

import pytest
import torch

from lstm import plan as plans
from lstm.plan import DTYPES, NO_GPU, Plan, cell_plan, interpreted, plan

CARDS = {
    "A100": (8, 0),
    "RTX_3090": (8, 6),
    "L4": (8, 9),
    "RTX_4090": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX_5090": (12, 0),
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_card_from_ampere_on_runs_the_kernels(card, dtype):
    row_mnist = plan(128, 100, dtype, card, multiprocessors=58)
    assert (row_mnist.path, row_mnist.programs) == ("fused", 50)
    assert row_mnist.operands == ("bfloat16" if dtype == torch.bfloat16 else "float16")
    assert f"compute capability {card[0]}.{card[1]}" in row_mnist.reason
    assert plan(1, 1, dtype, card).path == "fused"


# Reason, and what differs from a call that the H100 runs
NOT_ON_THE_KERNELS = {
    "no NVIDIA GPU": dict(card=None),
    "compute capability 7.0 is below 8.0": dict(card=(7, 0)),
    "compute capability 7.5 is below 8.0": dict(card=(7, 5)),
    "hidden_size above 1024": dict(hidden_size=1025),
    "64 programs would have to run at once, the card holds 58": dict(
        hidden_size=1024, multiprocessors=58
    ),
    "would take 8 launches": dict(hidden_size=1024, multiprocessors=132, batch=256),
    "torch.float64": dict(dtype=torch.float64),
    "torch.int64": dict(dtype=torch.int64),
    "TF32 switched off": dict(precision="ieee"),
    "the batch is empty": dict(batch=0),
}
CALL = dict(hidden_size=128, batch=100, dtype=torch.float32, card=(9, 0))


@pytest.mark.parametrize(("reason", "change"), NOT_ON_THE_KERNELS.items(), ids=NOT_ON_THE_KERNELS)
def test_the_reason_names_what_is_not_on_the_kernels(reason, change):
    assert plan(**CALL).path == "fused"
    other = plan(**(CALL | change))
    assert other.path == "torch"
    assert reason in other.reason
    assert str(other) == f"PyTorch's own module: {other.reason}"
    assert (other.tile, other.programs, other.operands) == ((), 0, "")


MULTIPROCESSORS = {
    "A100": 108, "RTX_3090": 82, "L4": 58, "RTX_4090": 128, "H100": 132, "H200": 132, "B200": 148,
    "RTX_5090": 170,
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("hidden_size", [129, 192, 256, 257, 512, 768, 1000, 1024])
@pytest.mark.parametrize("batch", [1, 16, 64, 100, 128, 256])
@pytest.mark.parametrize("D", [1, 2])
def test_slices_that_meet_are_all_on_the_card(name, hidden_size, batch, D):
    card, multiprocessors = CARDS[name], MULTIPROCESSORS[name]
    p = plan(
        hidden_size, batch, torch.bfloat16, card, bidirectional=D == 2,
        multiprocessors=multiprocessors,
    )  # fmt: skip
    if p.path == "torch":
        assert "at once" in p.reason or "launches" in p.reason
        return
    tile = dict(p.tile)
    tiles = -(-batch // tile["BLOCK_B"])
    assert p.slices == -(-hidden_size // 16) and p.programs == tiles * D * p.slices
    # A thread has at most 255 registers, so a warp at most 8,192 of a multiprocessor's 65,536.
    room = multiprocessors * (8 // tile["num_warps"])
    assert 1 <= p.at_once <= tiles and p.at_once * D * p.slices <= room
    # More sequences a program only where they do not fit otherwise.
    assert tile["BLOCK_B"] == 8 or -(-batch // 8) * D * p.slices > room


def test_what_slices_say_of_themselves():
    call = dict(batch=64, dtype=torch.bfloat16, card=(9, 0), multiprocessors=132)
    assert "32 slices exchange h at every step, 1 launches" in str(plan(hidden_size=512, **call))
    assert "64 slices exchange h at every step, 2 launches" in str(plan(hidden_size=1024, **call))
    stepwise = str(plan(hidden_size=512, **call | dict(card=None), interpret=True))
    assert "32 slices exchange h at every step, a launch a step" in stepwise


@pytest.mark.parametrize(
    ("hidden_size", "batch", "directions", "sequences"),
    [
        (128, 1, 1, 2), (128, 256, 1, 2), (128, 257, 1, 4), (128, 512, 1, 4), (128, 513, 1, 8),
        (128, 124, 2, 2), (128, 125, 2, 4), (128, 249, 2, 8), (128, 10**6, 1, 8),
        # As many warps as a multiprocessor has schedulers, or half of them
        (64, 256, 1, 2), (64, 257, 1, 4), (32, 520, 1, 2), (32, 521, 1, 4), (1, 520, 1, 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fewest_sequences_with_which_all_programs_run_at_once(
    hidden_size, batch, directions, sequences, dtype
):
    call = dict(hidden_size=hidden_size, batch=batch, dtype=dtype, card=(9, 0))
    p = plan(**call, bidirectional=directions == 2, multiprocessors=132)
    assert dict(p.tile)["BLOCK_B"] == sequences
    assert p.programs == directions * -(-batch // sequences)
    unknown = plan(**call, bidirectional=directions == 2)
    assert dict(unknown.tile)["BLOCK_B"] == 8


def test_both_directions_take_twice_the_programs():
    assert plan(**CALL, bidirectional=True).programs == 2 * plan(**CALL).programs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_float32_switch_is_of_float32_alone(dtype):
    assert plan(**(CALL | dict(dtype=dtype, precision="ieee"))).path == "fused"


CELL = dict(input_size=28, hidden_size=128, batch=100, dtype=torch.float32, card=(9, 0))


@pytest.mark.parametrize(
    ("reason", "change"),
    {
        "no NVIDIA GPU": dict(card=None),
        "compute capability 7.5 is below 8.0": dict(card=(7, 5)),
        "input_size + hidden_size above 1024 cuBLAS is faster (estimated)": dict(input_size=897),
        "torch.float64": dict(dtype=torch.float64),
        "the batch is empty": dict(batch=0),
    }.items(),
)
def test_the_reason_names_what_a_cell_leaves_to_pytorch(reason, change):
    assert cell_plan(**CELL).path == "fused"
    other = cell_plan(**(CELL | change))
    assert other.path == "torch" and reason in other.reason


def test_a_cells_plan_counts_tiles_of_sequences_and_units():
    assert cell_plan(**CELL).programs == 2 * 8
    assert cell_plan(**(CELL | dict(batch=17, hidden_size=17))).programs == 2 * 2
    assert cell_plan(**CELL).operands == "float32"
    assert cell_plan(**CELL, precision="tf32").operands == "tf32"
    assert cell_plan(**(CELL | dict(dtype=torch.float16)), precision="tf32").operands == "float16"
    assert cell_plan(**CELL, interpret=True).programs == 1


def test_the_interpreter_needs_no_card_and_takes_one_tile():
    interpreted = plan(128, 100, torch.float32, None, interpret=True)
    assert (interpreted.path, interpreted.programs) == ("fused", 1)
    assert "interpreter" in interpreted.reason


def test_a_plan_prints_path_programs_warps_tile_and_dtypes():
    text = str(plan(100, 17, torch.bfloat16, (8, 0)))
    assert text.startswith("fused kernels: compute capability 8.0\n")
    assert "3 programs of 8 warps, each of 8 sequences by 128 units" in text
    assert "products in bfloat16, sums in float32" in text


def test_plans_are_kept():
    assert plan(**CALL) is plan(**CALL)
    assert plan(**CALL) == plan(**(CALL | dict(batch=99)))  # as many programs
    assert hash(plan(**CALL)) == hash(plan(**(CALL | dict(batch=99))))


def test_every_tile_covers_its_call():
    sizes = product(range(1, 129), (1, 8, 17, 300, 2000), DTYPES, (False, True))
    for hidden_size, batch, dtype, interpret in sizes:
        p = plan(hidden_size, batch, dtype, (8, 0), interpret, multiprocessors=108)
        tile = dict(p.tile)
        assert tile["BLOCK_H"] >= hidden_size
        assert (p.programs - 1) * tile["BLOCK_B"] < batch <= p.programs * tile["BLOCK_B"]


@pytest.mark.parametrize("value", ["1", "true", "True", "on", "yes"])
def test_the_interpreters_switch_is_read_as_triton_reads_it(value, monkeypatch):
    import triton

    interpreted.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreted() and triton.knobs.runtime.interpret
    interpreted.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not interpreted() and not triton.knobs.runtime.interpret
    interpreted.cache_clear()


# A GPU that cannot run the kernels


GPU = torch.device("cuda")
OLD = Plan("torch", "compute capability 7.5 is below 8.0")
AMD = Plan("torch", "AMD GPUs are not supported yet")
NO_TRITON = Plan("torch", "Triton is not installed")


@pytest.fixture
def refusals(monkeypatch):
    """Has the module meet an NVIDIA GPU, outside the interpreter, of this capability."""

    def meet(card):
        monkeypatch.setattr(plans, "interpreted", lambda: False)
        monkeypatch.setattr(plans, "capability", lambda device: card)
        for function in (plans.device_refusal, plans.plan_on):
            function.cache_clear()

    yield meet
    for function in (plans.device_refusal, plans.plan_on):
        function.cache_clear()


def assert_refused_once(expected):
    with pytest.warns(UserWarning, match=expected.reason) as caught:
        assert plans.device_refusal(GPU) == expected
        assert plans.device_refusal(GPU) == expected
    assert len(caught) == 1 and "cuda" in str(caught[0].message)
    assert plans.plan_on(GPU, 128, 100, torch.float32, "tf32", True) == expected


def test_an_old_card_falls_back_and_says_so_once(refusals):
    refusals((7, 5))
    assert_refused_once(OLD)


def test_a_card_without_triton_falls_back_and_says_so_once(refusals, monkeypatch):
    refusals((9, 0))
    monkeypatch.setattr(plans, "find_spec", lambda name: None)
    assert_refused_once(NO_TRITON)


def test_an_amd_card_falls_back_and_says_so_once(refusals, monkeypatch):
    refusals(None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert_refused_once(AMD)


def test_a_card_that_runs_them_says_nothing(refusals):
    refusals((8, 0))
    assert plans.device_refusal(GPU) is None
    assert plans.device_refusal(torch.device("cpu")) == NO_GPU
