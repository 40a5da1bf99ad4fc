"""Static figures of a compiled kernel: what its time loop holds, read without a GPU.

Triton ships NVIDIA's cuobjdump and nvdisasm. The first states a kernel's registers and stack, the
second lists its machine instructions (SASS). The time loop is the largest loop among them; of
several layers at once there is another, the product between them, in which only spills are looked
for.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Each function is a section, with labels of its own.
SECTION = re.compile(r"^\s*\.section\s", re.MULTILINE)
LABEL = re.compile(r"\s*(\.L\w+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(@\S+\s+)?([A-Z]\w*)([^;]*);")
TARGET = re.compile(r"`\((\.L\w+)\)")
RESOURCES = re.compile(r"\bREG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class LoopFigures:
    """Figures of one kernel and its time loop.

    A count is per warp and iteration, as if every instruction of the loop ran once: an upper bound
    where a branch skips some, a lower one where a wait repeats.

    registers: 32-bit registers of a thread, of which a multiprocessor has 65,536.
    stack_bytes: local memory of a thread, where spilled registers go; spills outside the loop too.
    num_warps: warps of one program, as the caller gave it.
    instructions: all instructions.
    hmma: tensor core products whose operands are registers (mma.sync).
    hgmma: tensor core products of four warps, with an operand in shared memory (wgmma, sm_90).
    utchmma: tensor core products that accumulate in tensor memory (tcgen05, sm_100).
    mufu: exp2, reciprocal and other special functions.
    bar: barriers between the warps of a program.
    shfl: shuffles between the lanes of a warp: a reduction, or a change of layout.
    lds: loads from shared memory; with ldsm, what tells whether the weights stay in registers.
    ldsm: loads of tensor core operands from shared memory (ldmatrix).
    sts: stores to shared memory, one register at a time or as matrices (STS, STSM).
    ldg: loads from global memory.
    stg: stores to global memory.
    spills: stores to and loads from local memory (STL, LDL) in all loops, none in good ones.
    membar: memory fences, which wait until earlier writes are seen by others.
    """

    registers: int
    stack_bytes: int
    num_warps: int
    instructions: int
    hmma: int
    hgmma: int
    utchmma: int
    mufu: int
    bar: int
    shfl: int
    lds: int
    ldsm: int
    sts: int
    ldg: int
    stg: int
    spills: int
    membar: int

    @property
    def issue_cycles(self) -> int:
        """Least cycles per iteration to issue from a multiprocessor's four schedulers."""
        return self.instructions * self.num_warps // 4

    @property
    def mufu_cycles(self) -> int:
        """Least cycles per iteration in the special function units, 16 lanes a cycle."""
        return self.mufu * self.num_warps * 2


def loop_figures(cubin: bytes, num_warps: int) -> LoopFigures:
    """Figures of the time loop of a compiled kernel, `compiled.asm["cubin"]`; of all of a kernel
    that has no loop.

    Returns: LoopFigures.
    Raises: FileNotFoundError if Triton lacks a tool; RuntimeError if one rejects the cubin.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = RESOURCES.findall(_run("cuobjdump", "--dump-resource-usage", path))
        largest, all_loops = _loops(_run("nvdisasm", "--print-code", path))
    loop = Counter(largest)
    # A kernel that calls functions lists each; the caller's registers and stack include theirs.
    registers, stack_bytes = (max(map(int, column)) for column in zip(*usage, strict=True))
    return LoopFigures(
        registers=registers,
        stack_bytes=stack_bytes,
        num_warps=num_warps,
        instructions=loop.total(),
        hmma=loop["HMMA"],
        hgmma=loop["HGMMA"],
        utchmma=loop["UTCHMMA"],
        mufu=loop["MUFU"],
        bar=loop["BAR"],
        shfl=loop["SHFL"],
        lds=loop["LDS"],
        ldsm=loop["LDSM"],
        sts=loop["STS"] + loop["STSM"],
        ldg=loop["LDG"],
        stg=loop["STG"],
        spills=sum(opcode in ("LDL", "STL") for opcode in all_loops),
        membar=loop["MEMBAR"],
    )


def _run(tool: str, *arguments: str | Path) -> str:
    """What one of Triton's tools prints."""
    path = TOOLS / tool
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: Triton's wheels for Linux ship it")
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout


def _loops(sass: str) -> tuple[list[str], list[str]]:
    """Opcodes of the largest loop and of all loops, or twice of a kernel without one, without
    modifiers.

    A loop is a branch to an instruction that every path to the branch passes, and all that can run
    between the two. Being backward is not enough: waits and other cold code lie behind the kernel's
    end and branch back to where they left.
    """
    largest: list[str] = []
    all_loops: list[str] = []
    everything: list[str] = []
    for function in SECTION.split(sass):
        opcodes, edges = _flow(function)
        everything += opcodes
        in_loops: set[int] = set()
        reversed_edges: list[list[int]] = [[] for _ in edges]
        for source, targets in enumerate(edges):
            for target in targets:
                reversed_edges[target].append(source)
        for source in _reach(edges, 0):
            for target in edges[source]:
                if target <= source and source not in _reach(edges, 0, barred=target):
                    body = _reach(reversed_edges, source, barred=target) | {target}
                    largest = max(largest, [opcodes[index] for index in body], key=len)
                    in_loops |= body
        all_loops += [opcodes[index] for index in in_loops]
    return largest or everything, all_loops or everything


def _flow(function: str) -> tuple[list[str], list[list[int]]]:
    """Opcodes of one function, and for each the indices of those that can run after it."""
    instructions: list[tuple[str, str, str]] = []
    labels: dict[str, int] = {}
    for line in function.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction.groups(default=""))
    # One past the end, where a label may stand.
    edges: list[list[int]] = [[] for _ in range(len(instructions) + 1)]
    for index, (predicate, opcode, operands) in enumerate(instructions):
        target = TARGET.search(operands) if opcode == "BRA" else None
        if target:
            edges[index].append(labels[target[1]])
        # A branch's condition is a predicate before it, or an operand before its target.
        always = not predicate and not (target and operands[: target.start()].strip())
        if not (always and opcode in ("BRA", "EXIT", "RET")):
            edges[index].append(index + 1)
    return [opcode for _, opcode, _ in instructions], edges


def _reach(edges: list[list[int]], start: int, barred: int | None = None) -> set[int]:
    """Indices on paths from `start` that do not enter `barred`."""
    reached: set[int] = set()
    ahead = [start]
    while ahead:
        index = ahead.pop()
        if index != barred and index not in reached:
            reached.add(index)
            ahead += edges[index]
    return reached
