"""The compiled kernels, run by the emulator of PTX, against the equations; and the emulator itself.

The compiler's work and the inline PTX are right or wrong here, without a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.accuracy import CEILING, EXACT_CEILING
from tests.kernels.emulated import CASES, EXCHANGES
from tests.kernels.ptx import PTXError, program, run

ROOT = Path(__file__).parents[2]
CEILINGS = {str(dtype).removeprefix("torch."): ceiling for dtype, ceiling in CEILING.items()}


@pytest.fixture(scope="module")
def emulated():
    """All cases at once: most of what they take is compiling."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.emulated"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_compute_the_equations(case, emulated):
    ceiling = EXACT_CEILING if case.exact else CEILINGS[case.dtype]
    errors = emulated["errors"][str(case)]
    assert not {name: error for name, error in errors.items() if not error <= ceiling}
    assert ("grad_gates" in errors) == case.saved


def test_every_barrier_of_a_kernel_is_missed(emulated):
    found = emulated["defects"]["without a barrier"]
    assert len(found) >= 10
    assert all(error and error.startswith("race") for error in found), found


def test_programs_that_do_not_wait_for_each_other_read_what_is_not_there(emulated):
    errors = emulated["without waiting"]
    # They read what a ring is emptied with: zeros.
    assert {name for name, error in errors.items() if not error <= 0.1} >= {"output", "grad_gates"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_slices_exchange_nan_and_one(dtype, emulated):
    extremes = emulated["extremes"][dtype]
    assert extremes == {"NaN": [False, True, False], "finite": [True, False, True], "most": 1.0}


def test_an_infinite_weight_keeps_warps_together(emulated):
    """All warps multiply again where one has to: they meet at barriers on the way."""
    found, exact = emulated["infinite weight"]["found"], emulated["infinite weight"]["exact"]
    assert found == exact
    # The last step's gradients have met no weight yet, those before them some.
    assert all(map(all, exact[1][-1])) and not all(map(all, exact[1][0]))


@pytest.mark.parametrize("case", EXCHANGES, ids=str)
def test_what_warps_exchange_is_of_different_banks(case, emulated):
    assert set(emulated["conflicts"][str(case)].values()) == {0}


def test_a_tensor_one_number_short_is_found(emulated):
    (error,) = emulated["defects"]["short tensors"]
    assert error.startswith("out of bounds")


def execute(body, *tensors, grid=(1,), together=False):
    """A kernel of 64 threads; %r0 is the thread, %rd1 its place in the first tensor, of 32 bits."""
    parameters = [f"k_param_{n}" for n in range(len(tensors))]
    text = f"""
        .visible .entry k({", ".join(f".param .u64 {name}" for name in parameters)})
        .reqntid 64
        {{
            .reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
            .shared .align 16 .b8 shared_words[256];
            mov.u32 %r0, %tid.x;
            ld.param.b64 %rd0, [k_param_0];
            mad.wide.u32 %rd1, %r0, 4, %rd0;
            mov.b32 %r8, shared_words;
            mad.lo.s32 %r8, %r0, 4, %r8;  // the thread's word of shared memory
            {body}
            ret;
        }}"""
    return run(text, tensors, grid, together=together)


def words(*values):
    """A number for each of 64 threads, the last for all further ones."""
    return np.array([*values, *[values[-1]] * (64 - len(values))], np.uint32)


def bits(x):
    return int(np.float32(x).view(np.uint32))


# %r1 and %r2 hold a and b, %r3 is the result.
@pytest.mark.parametrize(
    ("instruction", "a", "b", "result"),
    [
        ("bfe.u32 %r3, %r1, 4, 8;", 0xABCDE, 0, 0xCD),
        ("bfe.s32 %r3, %r1, 4, 8;", 0xABCDE, 0, 0xFFFFFFCD),
        ("prmt.b32 %r3, %r1, %r2, 0x5410;", 0x33221100, 0x77665544, 0x55441100),
        ("prmt.b32 %r3, %r1, %r2, 0xB8F7;", 0x33221100, 0x80665544, 0x0000FF80),
        ("lop3.b32 %r3, %r1, %r2, %r1, 0xBE;", 12, 10, 14),
        ("shl.b32 %r3, %r1, %r2;", 1, 32, 0),
        ("shr.s32 %r3, %r1, %r2;", 0x80000000, 40, 0xFFFFFFFF),
        ("shf.l.wrap.b32 %r3, %r1, %r2, 8;", 0xAA000000, 0x1, 0x1AA),
        ("mul.hi.s32 %r3, %r1, %r2;", 0xFFFFFFFF, 2, 0xFFFFFFFF),
        ("div.s32 %r3, %r1, %r2;", 0xFFFFFFF9, 2, 0xFFFFFFFD),
        ("rem.s32 %r3, %r1, %r2;", 0xFFFFFFF9, 2, 0xFFFFFFFF),
        ("min.relu.s32 %r3, %r1, %r2;", 0xFFFFFFFF, 2, 0),
        ("max.u16x2 %r3, %r1, %r2;", 0x00018000, 0x00020001, 0x00028000),
        ("mul.bf16x2 %r3, %r1, %r2;", 0x3FC04000, 0x3FC03F80, 0x40104000),
        ("cvt.rn.bf16x2.f32 %r3, %r1, %r2;", bits(1.5), bits(-2 - 2**-7), 0x3FC0C000),
        ("cvt.rn.f16x2.f32 %r3, %r1, %r2;", bits(1e9), bits(-2), 0x7C00C000),
        ("cvt.rni.s32.f32 %r3, %r1;", bits(-2.5), 0, 0xFFFFFFFE),
        ("cvt.rzi.u32.f32 %r3, %r1;", bits(-2.5), 0, 0),
        ("cvt.u16.u32 %rs1, %r1; cvt.s32.s16 %r3, %rs1;", 0x18000, 0, 0xFFFF8000),
        ("mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r3, {%rs2, %rs1};", 0x12345678, 0, 0x56781234),
        ("max.f32 %r3, %r1, %r2;", bits(np.nan), bits(1), bits(1)),
        ("max.NaN.f32 %r3, %r1, %r2; abs.f32 %r3, %r3;", 0xFFC00000, bits(1), 0x7FC00000),
        ("max.f32 %r3, %r1, %r2, 0f40000000;", bits(0), bits(1), bits(2)),
        ("mov.b16 %rs0, 0x3FC0; add.rn.f32.bf16 %r3, %rs0, %r1;", bits(1), 0, bits(2.5)),
        ("ex2.approx.ftz.f32 %r3, %r1;", bits(-127), 0, 0),
        ("fma.rn.f32 %r3, %r1, %r1, %r2;", bits(1 + 2**-23), bits(-1), bits(2**-22 + 2**-46)),
        ("setp.ne.f32 %p1, %r1, %r2; selp.b32 %r3, 1, 0, %p1;", bits(np.nan), bits(1), 0),
        ("setp.neu.f32 %p1, %r1, %r2; selp.b32 %r3, 1, 0, %p1;", bits(np.nan), bits(1), 1),
        ("setp.lt.and.s32 %p1|%p2, %r1, %r2, 1; selp.b32 %r3, 1, 0, !%p2;", 1, 2, 1),
        ("{ .reg .b32 %r<4>; mov.b32 %r3, 7; } mov.b32 %r3, %r1;", 5, 0, 5),
        ("vote.sync.ballot.b32 %r3, 1, -1;", 0, 0, 0xFFFFFFFF),
        ("redux.sync.max.s32 %r3, %r0, -1;", 0, 0, 31),
        ("shfl.sync.bfly.b32 %r3, %r0, 3, 31, -1;", 0, 0, 3),
        ("shfl.sync.down.b32 %r3|%p1, %r0, 9, 0x1807, -1;", 0, 0, 0),
    ],
)  # fmt: skip
def test_instructions(instruction, a, b, result):
    x = words(a)
    execute(f"mov.b32 %r1, {a}; mov.b32 %r2, {b}; {instruction} st.global.b32 [%rd1], %r3;", x)
    assert hex(x[0]) == hex(result)


def test_tensor_core_product():
    """Rows of A are numbered, B selects column 2 of them, C is 100."""
    a, result = np.arange(256, dtype=np.float16), np.zeros(128, np.float32)
    execute(
        """
        ld.param.b64 %rd2, [k_param_1];
        and.b32 %r1, %r0, 31; shr.u32 %r2, %r1, 2; and.b32 %r3, %r1, 3;
        // Lane 4 g + t: row g, numbers 2 t and 2 t + 1
        mad.lo.s32 %r4, %r2, 8, %r3;
        mad.wide.u32 %rd3, %r4, 4, %rd0;
        ld.global.b32 %r4, [%rd3]; ld.global.b32 %r5, [%rd3+256];
        ld.global.b32 %r6, [%rd3+16]; ld.global.b32 %r7, [%rd3+272];
        setp.eq.and.b32 %p1, %r3, 1, 1;
        selp.b32 %r8, 0x3C00, 0, %p1;
        mov.b32 %r3, 0f42C80000; mov.b32 %r1, 0;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
            {%r4, %r5, %r6, %r7}, {%r4, %r5, %r6, %r7}, {%r8, %r1}, {%r3, %r3, %r3, %r3};
        and.b32 %r1, %r0, 3; mad.lo.s32 %r1, %r2, 4, %r1;
        mad.wide.u32 %rd3, %r1, 8, %rd2;
        st.global.v2.b32 [%rd3], {%r4, %r5}; st.global.v2.b32 [%rd3+256], {%r6, %r7};
        """,
        a, result,
    )  # fmt: skip
    expected = a.reshape(16, 16)[:, 2:3].astype(np.float32) + np.full(8, 100, np.float32)
    assert np.array_equal(result.reshape(16, 8), expected)


READ_NEXT = "xor.b32 %r2, %r8, {distance}; ld.shared.b32 %r1, [%r2]; st.global.b32 [%rd1], %r1;"


@pytest.mark.parametrize(
    ("sync", "threads", "race"),
    [
        ("", 0, False),
        ("", 1, True),
        ("bar.warp.sync -1;", 1, False),
        ("bar.warp.sync -1;", 32, True),
        ("bar.sync 0;", 1, False),
        ("barrier.cta.sync.aligned 0;", 32, False),
    ],
)
def test_a_read_of_what_another_thread_wrote_needs_a_barrier(sync, threads, race):
    x = words(0)
    read = READ_NEXT.format(distance=4 * threads)
    body = f"st.shared.b32 [%r8], %r0; {sync} {read}"
    if race:
        with pytest.raises(PTXError, match=r"race: .*read.* ld\.shared"):
            execute(body, x)
    else:
        execute(body, x)
        assert x.tolist() == [n ^ threads for n in range(64)]


EIGHT_BYTES_APART = "and.b32 %r2, %r0, 31; shl.b32 %r2, %r2, 3;"
READ_FOUR = "ld.shared.v4.b32 {%r1, %r3, %r4, %r5}, [%r2];"


@pytest.mark.parametrize(
    ("address", "access", "conflicts"),
    [
        ("mov.b32 %r2, %r8;", "ld.shared.b32 %r1, [%r2];", 0),
        ("and.b32 %r2, %r8, -8;", "ld.shared.b32 %r1, [%r2];", 0),  # twice the same number
        ("and.b32 %r2, %r8, -8;", "ld.shared.v2.b32 {%r1, %r3}, [%r2];", 0),
        # Two lanes to a bank, of two numbers, and four to four banks
        (EIGHT_BYTES_APART, "ld.shared.b32 %r1, [%r2];", 2),
        (EIGHT_BYTES_APART, "ld.shared.v2.b32 {%r1, %r3}, [%r2];", 0),
        ("and.b32 %r2, %r0, 1; shl.b32 %r2, %r2, 7;", READ_FOUR, 8),
    ],
)  # fmt: skip
def test_accesses_that_meet_in_a_bank_are_counted(address, access, conflicts):
    assert execute(f"{address} {access}", words(0)) == conflicts


@pytest.mark.parametrize("sync", ["", "bar.warp.sync -1;", "bar.sync 0;"])
def test_a_write_to_what_another_thread_read_needs_a_barrier(sync):
    read = READ_NEXT.format(distance=128)
    body = f"st.shared.b32 [%r8], %r0; bar.sync 0; {read} {sync} st.shared.b32 [%r8], %r1;"
    if sync.startswith("bar.sync"):
        execute(body, words(0))
    else:
        with pytest.raises(PTXError, match=r"race: .*after another thread's read: st\.shared"):
            execute(body, words(0))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("ld.global.b32 %r1, [%rd1+4];", r"out of bounds.*ld\.global"),
        ("st.global.b32 [%rd1+-4], %r1;", r"out of bounds.*st\.global"),
        ("ld.shared.b32 %r1, [%r8+4];", r"out of bounds.*ld\.shared"),
        ("ld.global.v2.b32 {%r1, %r2}, [%rd1];", r"aligned to 8.*ld\.global\.v2"),
        ("mov.b64 %rd2, 64; ld.global.b32 %r1, [%rd2];", r"in no tensor"),
        ("st.global.b32 [%rd0], %r0;", r"different values"),
        ("frobnicate.b32 %r1, %r2;", r"unknown instruction: frobnicate\.b32 %r1, %r2"),
        ("add.sat.s32 %r1, %r2, %r2;", r"unknown instruction: add\.sat"),
        ("add.s32 %r1, %r2, %r2, %r2;", r"unknown instruction: add"),
        ("bar.sync 0, 32;", r"barrier of some threads"),
        (
            "setp.lt.u32 %p1, %r0, 32; @%p1 bra L; bar.sync 0; ret; L: bar.sync 0;",
            r"different barriers",
        ),
        ("setp.lt.u32 %p1, %r0, 9; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;", r"of a warp"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_instruction(body, error):
    with pytest.raises(PTXError, match=error):
        execute(body, words(0))


def test_threads_part_at_a_branch_and_meet_again():
    x = words(0)
    execute(
        """
        mov.b32 %r1, 0;
        and.b32 %r2, %r0, 3;
        again: setp.ge.u32 %p1, %r1, %r2;
        @%p1 bra done;
        add.s32 %r1, %r1, 1;
        bra again;
        done: bar.sync 0;
        st.global.b32 [%rd1], %r1;
        """,
        x,
    )
    assert x.tolist() == [n % 4 for n in range(64)]


def test_programs_that_wait_for_each_other_take_turns(monkeypatch):
    monkeypatch.setattr(program, "MOST_JUMPS", 100)
    x = words(0)
    body = """
        mov.u32 %r1, %ctaid.x;
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd0, %rd2;
        xor.b32 %r2, %r1, 1;
        mul.wide.u32 %rd3, %r2, 4; add.s64 %rd3, %rd0, %rd3;
        st.relaxed.gpu.global.b32 [%rd2], 1;
        { .reg .pred p; again: ld.relaxed.gpu.global.b32 %r3, [%rd3];
          setp.eq.b32 p, %r3, 0; @p bra again; }
        """
    execute(body, x, grid=(2,), together=True)
    assert x[:2].tolist() == [1, 1]
    with pytest.raises(PTXError, match="does not end"):
        execute(body, words(0))
