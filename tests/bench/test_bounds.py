"""What bounds a case, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from bench import bounds
from bench.bounds import CARDS, bound, card_of, of_record, step_cycles, step_of_record
from bench.cases import SEQUENCE, SHORT, Case
from lstm.kernels import config

A100, H100 = CARDS["A100"], CARDS["H100"]
SEQUENCES = [case for case in SHORT if case.mode in SEQUENCE]


# 4 x 128 x 128 x 8 multiply-adds, 1,024 a cycle on an A100 and 2,048 on an H100; then 5 or 8
# special functions of a cell, 16 a cycle, in backward 6 multiplications, 64 or 128 a cycle. Or, at
# 128 bytes a cycle, 2 x 128 x 4 gates of eight sequences, which eight warps read and one has
# written, and ten numbers of each cell.
@pytest.mark.parametrize(
    ("card", "sequences", "dtype", "backward", "cycles"),
    [
        (A100, 8, "bfloat16", False, 512 + 320),
        (A100, 8, "float32", False, 512 + 512),
        (A100, 4, "bfloat16", False, 512 + 160),
        (H100, 8, "bfloat16", False, 256 + 320),
        (A100, 8, "bfloat16", True, 512 + 64 + 160),
        (H100, 8, "float32", True, 512 + 64 + 320),
        (H100, 4, "float32", True, 256 + 32 + 160),
        (A100, 2, "bfloat16", True, 512 + 24),
    ],
)
def test_a_step_of_128_units(card, sequences, dtype, backward, cycles):
    itemsize = 4 if dtype == "float32" else 2
    tile = config.tile(128, sequences, itemsize, block_b=sequences)
    assert step_cycles(tile, dtype, card, backward) == cycles


def test_few_warps_have_few_schedulers():
    """32 units are two warps: 4 x 32 x 32 x 8 multiply-adds at half the rate."""
    assert step_cycles(config.tile(32, 8, 2), "bfloat16", A100) == 32 * 2 + 2 * 32 * 8 * 5 / 16


def test_slices_wait_for_the_second_cache_and_share_a_multiprocessor():
    tile = config.tile(256, 8, 2)
    work = 4 * 16 * 256 * 8 / 1024 + 16 * 8 * 5 / 16
    assert step_cycles(tile, "float16", A100) == 262 + work
    assert step_cycles(tile, "float16", A100, together=2) == 262 + 2 * work


@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_products_are_all_of_a_call(case):
    """Those of float32 outside of the time loop are of TF32, at half the rate."""
    if case.dtype == "float32":
        case = replace(case, dtype="bfloat16")
    rate = H100.multiprocessors * H100.clock * H100.products
    assert bound(case, H100).products * rate == pytest.approx(case.work)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_the_bound_is_at_least_each_of_the_three_and_at_most_all(case, card):
    found = bound(case, card)
    parts = found.products, found.memory, found.chain
    assert max(parts) <= found.least <= sum(parts)
    assert getattr(found, found.by) == max(parts)


def test_memory_counts_where_the_second_cache_is_too_small():
    """Of bfloat16, in numbers of 128 units, steps and sequences, read and written: forward 1 + 4 of
    the product, 4 + 1 + 5 of the steps.
    """
    case = Case("forward", 1024, 512, 128, 128, dtype="bfloat16")
    numbers = 1024 * 512 * 128
    assert bound(case, H100).memory == pytest.approx(15 * 2 * numbers / 3.35e12)
    training = bound(replace(case, mode="forward+backward"), H100)
    assert training.memory == pytest.approx((15 + 10 + 3 * 5) * 2 * numbers / 3.35e12)
    assert bound(replace(case, T=8), H100).memory == 0


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        (dict(B=528), 1),
        # Tiles of eight, one wave and two
        (dict(B=1056), 1),
        (dict(B=1057), 2),
        # Layers at once, as many as there is room for, and one after the other
        (dict(B=128, num_layers=2), 1),
        (dict(B=512, num_layers=2), 2),
        (dict(B=80, num_layers=3), 1),
        (dict(B=80, num_layers=6), 2),
    ],
)
def test_the_chain_is_of_all_steps_that_follow_each_other(sizes, steps):
    case = Case("forward", **dict(T=1000, I=128, H=128, num_layers=1, dtype="float16") | sizes)
    # Room for 132 programs, of two layers at once three a tile, of three five
    block_b = 8 if case.B > 512 else 4
    tile = config.tile(128, case.B, 2, block_b=block_b)
    cycles = steps * 1000 * step_cycles(tile, "float16", H100)
    assert bound(case, H100).chain * H100.clock == pytest.approx(cycles)


def test_two_layers_at_once_are_one_launch():
    """All of it fits into the second cache, so that beside the chain only the lower layer's product
    of the input takes time of its own, in backward that of its gradient and of all weights'.
    """
    case = Case("forward", 100, 16, 128, 128, 2, "float16")
    product = 100 * 16 * 128 * 4 * 128 / (H100.multiprocessors * H100.clock * H100.products)
    forward = bound(case, H100)
    assert forward.least == pytest.approx(product + forward.chain)
    both = bound(replace(case, mode="forward+backward"), H100)
    assert both.least == pytest.approx(6 * product + both.chain)


@pytest.mark.parametrize(
    "case",
    [
        Case("forward", 9, 9, 9, 2048),
        Case("forward", 9, 9, 9, 64, dtype="float64"),
        Case("step", 1, 1, 128, 128),
        Case("cell", 1, 1, 128, 128),
    ],
    ids=str,
)
def test_what_is_not_on_the_sequence_kernels_has_no_bound(case):
    assert bound(case, H100) is None


def test_mnist_wants_no_gradient_of_the_images():
    step = Case("mnist step", 28, 100, 28, 128, 2)
    all_gradients = bound(replace(step, mode="forward+backward"), H100)
    assert 0 < bound(step, H100).products < all_gradients.products


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 PCIe", None),
        ("", None),
    ],
)
def test_cards_are_known_by_the_end_of_their_names(name, card):
    assert card_of(name) == (card and CARDS[card])


def test_records_have_a_bound_where_card_and_precision_are_known():
    case = SEQUENCES[0]
    made = {"env": {"gpu": "NVIDIA H200"}, "case": case.record() | {"fp32_precision": "tf32"}}
    assert of_record(made) == bound(case, CARDS["H200"])
    assert of_record(made | {"env": {"cpu": "a CPU"}}) is None
    exact = made | {"case": made["case"] | {"fp32_precision": "ieee"}}
    assert of_record(exact) is None


def test_records_of_cycles_have_a_step():
    """Of 128 units and many sequences, so tiles of eight; of two lengths, as the stage has them."""
    case = Case("forward+backward", 1024, 1024, 128, 128, dtype="bfloat16")
    made = {"env": {"gpu": "NVIDIA H100 80GB HBM3"}, "case": case.record() | {"T": [1024, 3072]}}
    assert step_of_record(made, "forward") == 256 + 320
    assert step_of_record(made, "backward") == 512 + 64 + 160
    assert step_of_record(made | {"env": {"gpu": "A GPU"}}, "forward") is None


def test_the_table_has_a_line_for_each_case(capsys):
    bounds.main(["--card", "A100"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len([case for case in SHORT if bound(case, A100)])
    assert "| forward T128 B1 I128 H128 float32 | 0 | 0 | 58 | 58 | chain |" in lines
