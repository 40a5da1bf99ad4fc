"""Counts of small kernels whose machine code is known by construction."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import sass
from bench.sass import loop_figures

ROOT = Path(__file__).parents[2]
ARCHS = (80, 90, 100)
WARPS = {"dot_loop": 4, "spill_loop": 1, "no_loop": 1}


@triton.jit
def dot_loop(x_ptr, T, BLOCK: tl.constexpr):
    """A square float16 product per step, accumulated."""
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for t in range(T):
        x = tl.load(x_ptr + t * BLOCK * BLOCK + offs)  # (BLOCK, BLOCK)
        acc = tl.dot(x, x, acc)
    tl.store(x_ptr + offs, acc.to(tl.float16))


@triton.jit
def spill_loop(x_ptr, T, BLOCK: tl.constexpr):
    """A recurrence on BLOCK values, each of them needed in every step."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    for t in range(T):
        x = tl.exp2(x) + tl.load(x_ptr + t)
    tl.store(x_ptr + offs, x)


@triton.jit
def no_loop(x_ptr, T, BLOCK: tl.constexpr):
    """One pass over BLOCK values."""
    offs = tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs) + T)


def compile_all():
    """The cubin of each kernel above for each of ARCHS."""
    cubins = {}
    for kernel, pointer, block, options in (
        (dot_loop, "*fp16", 64, {}),
        # 128 values per thread and only 64 registers.
        (spill_loop, "*fp32", 4096, {"maxnreg": 64}),
        (no_loop, "*fp32", 32, {}),
    ):
        name = kernel.__name__
        source = ASTSource(
            fn=kernel,
            signature={"x_ptr": pointer, "T": "i32", "BLOCK": "constexpr"},
            constexprs={(2,): block},
            attrs={(0,): [["tt.divisibility", 16]]},
        )
        for arch in ARCHS:
            target = GPUTarget("cuda", arch, 32)
            options = {"num_warps": WARPS[name], "num_stages": 1, **options}
            cubins[name, arch] = triton.compile(source, target, options).asm["cubin"]
    return cubins


@pytest.fixture(scope="module")
def cubins():
    """compile_all() in a child, since under TRITON_INTERPRET nothing can be compiled."""
    code = (
        "import pickle, sys; from tests.bench.test_sass import compile_all;"
        "pickle.dump(compile_all(), sys.stdout.buffer)"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def figures(cubins, name, arch):
    return loop_figures(cubins[name, arch], WARPS[name])


def test_a_product_of_64_cubed_is_32_mma_sync_per_warp_on_sm_80(cubins):
    loop = figures(cubins, "dot_loop", 80)
    # One mma.sync is 16 x 8 x 16, and four warps share the product.
    assert (loop.hmma, loop.hgmma) == ((64 // 16) * (64 // 8) * (64 // 16) // 4, 0)
    assert loop.ldsm > 0
    assert loop.ldg > 0


def test_a_product_of_64_cubed_is_4_wgmma_on_sm_90(cubins):
    loop = figures(cubins, "dot_loop", 90)
    # One wgmma is 64 x 64 x 16, and the four warps issue it together.
    assert (loop.hmma, loop.hgmma) == (0, 64 // 16)


def test_a_product_of_64_cubed_is_4_tcgen05_mma_on_sm_100(cubins):
    loop = figures(cubins, "dot_loop", 100)
    assert (loop.hmma, loop.hgmma, loop.utchmma) == (0, 0, 64 // 16)


@pytest.mark.parametrize("arch", ARCHS)
def test_operands_reach_the_tensor_core_through_shared_memory_and_a_barrier(cubins, arch):
    loop = figures(cubins, "dot_loop", arch)
    assert loop.sts > 0
    assert loop.bar > 0
    # On sm_100 a wait inside the loop is compiled to code behind the store, which branches back.
    assert loop.stg == 0, "the store lies behind the loop"
    assert loop.spills == loop.stack_bytes == loop.mufu == loop.shfl == 0
    assert loop.membar == (arch >= 90), "wgmma and tcgen05 read through the asynchronous proxy"
    assert loop.issue_cycles == loop.instructions  # four warps, four schedulers


@pytest.mark.parametrize("arch", ARCHS)
def test_more_values_than_registers_spill(cubins, arch):
    loop = figures(cubins, "spill_loop", arch)
    assert loop.registers <= 64
    assert loop.spills > 0
    assert loop.stack_bytes >= 4 * (128 - 64)
    assert loop.mufu == 128  # one exp2 for each value of a lane
    assert loop.mufu_cycles == 2 * 128
    assert loop.bar == loop.hmma == loop.hgmma == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_without_a_loop_is_counted_whole(cubins, arch):
    assert figures(cubins, "no_loop", arch).stg == 1


def test_a_missing_tool_is_named(cubins, monkeypatch, tmp_path):
    monkeypatch.setattr(sass, "TOOLS", tmp_path)
    with pytest.raises(FileNotFoundError, match="cuobjdump"):
        figures(cubins, "dot_loop", 80)


def test_what_is_no_cubin_is_an_error():
    with pytest.raises(RuntimeError, match="cuobjdump"):
        loop_figures(b"not a cubin", num_warps=4)
