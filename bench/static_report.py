"""Static figures of the kernels as shipped: compiled for cards that need not be there.

    python -m bench.static_report [--cards 80 90] [--all] [--check] [--json FILE]

prints what the time loop of each configuration holds, per warp and time step. With --check it fails
where that loop has what a good one has not: spilled registers, weights that do not stay in
registers, barriers and shuffles beyond those of the one exchange between the warps that a step
needs. Columns:

    regs        32-bit registers of a thread          stack    bytes of local memory of a thread
    spill       loads and stores of local memory      instr    all instructions
    mma         tensor core products (HMMA, HGMMA, UTCHMMA)
    mufu        special functions                     bar      barriers between warps
    shfl        shuffles between lanes                lds sts  loads, stores of shared memory
    ldg stg     loads, stores of global memory        shared   bytes of shared memory of a program
    weights     where W_hh lives during the loop      programs that fit one multiprocessor
"""

import argparse
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.record import ROOT, new_record, writable, write
from bench.sass import LoopFigures, loop_figures
from lstm.kernels import config
from lstm.kernels.backward import lstm_backward_kernel
from lstm.kernels.forward import lstm_forward_kernel
from lstm.kernels.joint_backward import lstm_joint_backward_kernel
from lstm.kernels.joint_forward import lstm_joint_forward_kernel
from lstm.kernels.sliced_backward import lstm_sliced_backward_kernel
from lstm.kernels.sliced_forward import lstm_sliced_forward_kernel
from lstm.kernels.step import lstm_step_backward_kernel, lstm_step_kernel
from lstm.plan import interpreted

# What forward writes for backward only.
SAVED = ("steps_ptr", "weight_hh_t_ptr")
# Each with its directions and the pointers that are None.
KERNELS = {
    "forward": (lstm_forward_kernel, 1, ("offsets_ptr",)),
    "forward, not saving": (lstm_forward_kernel, 1, ("offsets_ptr", *SAVED)),
    "backward": (lstm_backward_kernel, 1, ("offsets_ptr",)),
    "forward, both ways": (lstm_forward_kernel, 2, ("offsets_ptr",)),
    "backward, both ways": (lstm_backward_kernel, 2, ("offsets_ptr",)),
    "forward, packed": (lstm_forward_kernel, 2, ("h_0_ptr",)),
    "backward, packed": (lstm_backward_kernel, 2, ()),
    "forward, resets": (lstm_forward_kernel, 1, ("offsets_ptr",)),
    "backward, resets": (lstm_backward_kernel, 1, ("offsets_ptr",)),
    "forward, 4 sequences": (lstm_forward_kernel, 1, ("offsets_ptr",)),
    "backward, 4 sequences": (lstm_backward_kernel, 1, ("offsets_ptr",)),
    "forward, 2 sequences": (lstm_forward_kernel, 1, ("offsets_ptr",)),
    "backward, 2 sequences": (lstm_backward_kernel, 1, ("offsets_ptr",)),
    "forward, exact": (lstm_forward_kernel, 1, ("offsets_ptr",)),
    "backward, exact": (lstm_backward_kernel, 1, ("offsets_ptr",)),
    "forward, joint": (lstm_joint_forward_kernel, 1, ("offsets_ptr", "mask_ptrs")),
    "backward, joint": (lstm_joint_backward_kernel, 1, ("offsets_ptr", "mask_ptrs")),
    "forward, joint packed": (lstm_joint_forward_kernel, 1, ("mask_ptrs",)),
    "backward, joint packed": (lstm_joint_backward_kernel, 1, ("mask_ptrs",)),
    "forward, sliced": (lstm_sliced_forward_kernel, 1, ("offsets_ptr",)),
    "backward, sliced": (lstm_sliced_backward_kernel, 1, ("offsets_ptr",)),
    "forward, sliced wide": (lstm_sliced_forward_kernel, 1, ("offsets_ptr",)),
    "backward, sliced wide": (lstm_sliced_backward_kernel, 1, ("offsets_ptr",)),
    "forward, sliced packed": (lstm_sliced_forward_kernel, 2, ()),
    "backward, sliced packed": (lstm_sliced_backward_kernel, 2, ()),
    "forward, sliced packed resets": (lstm_sliced_forward_kernel, 2, ()),
    "backward, sliced packed resets": (lstm_sliced_backward_kernel, 2, ()),
    "step, few": (lstm_step_kernel, 1, ()),
    "step, many": (lstm_step_kernel, 1, ()),
    "step, tf32": (lstm_step_kernel, 1, ()),
    "step, backward": (lstm_step_backward_kernel, 1, ()),
}
SLICED_KERNELS = tuple(name for name in KERNELS if "sliced" in name)
# Of slices, tiles of sixteen sequences; of one slice, tiles of fewer than eight
WIDE_KERNELS = tuple(name for name in KERNELS if name.endswith("wide"))
NARROW_KERNELS = tuple(name for name in KERNELS if name.endswith(" sequences"))
# Several layers at once, as many as most have, of four sequences a tile
JOINT_KERNELS = tuple(name for name in KERNELS if "joint" in name)
JOINT_LAYERS = 2
# float32 with TF32 switched off, and no other dtype
EXACT_KERNELS = ("forward, exact", "backward, exact")
# No time loop: their figures are of the loop over the inputs, or of the whole kernel.
STEP_KERNELS = ("step, few", "step, many", "step, tf32", "step, backward")
POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}

# Threads, programs and bytes of shared memory of a multiprocessor (CUDA programming guide, table of
# technical specifications per compute capability). Its registers are 65,536 on all of them.
CARDS = {
    80: (2048, 32, 164 * 1024),
    86: (1536, 16, 100 * 1024),
    89: (1536, 24, 100 * 1024),
    90: (2048, 32, 228 * 1024),
    100: (2048, 32, 228 * 1024),
    120: (1536, 24, 100 * 1024),
}

# Compiled for every card: the largest size, whose weights leave the fewest registers. In all dtypes
# for the two cards that most have; float16, as bfloat16 but for the conversion of numbers, nowhere
# else.
MAIN_SIZES = (128,)
MAIN_DTYPES = ("float32", "bfloat16")
MAIN_CARDS = (80, 90)
# A size for each other (BLOCK_H, VEC), each on one card: what sets these apart is how many numbers
# one access moves, which no card changes, and all on all take a quarter hour.
#   BLOCK_H 32: VEC 1, 2, 8, 4;   64: 1, 8, 2, 4;   128: 1, 2, 4
OTHER_SIZES = (1, 10, 16, 31, 22, 20, 24, 37, 64, 50, 36, 101, 70, 100)
# Of a step, where rows are aligned to a single number, to 16 bytes, and there is but one number.
STEP_SIZES = (128, 37, 1)
# Of slices: each number of warps for each dtype on a main card; then each number of weights that a
# thread reads at once, the other kernels, and the other cards, one for each.
SLICED_SIZES = (256, 512, 1024)
OTHER_SLICED_SIZES = (129, 190, 257, 510, 513, 1022)
# Of packed slices what takes the most: on both main cards
MOST_REGISTERS = 512, "float32"
# Compiled for all of these. The other kernels are the same with stores left out, or with another
# first address: one card for each dtype, all of them with --all.
MAIN_KERNELS = ("forward", "backward")

# Never a defect: the kernels are for NVIDIA, and their few lines of PTX are why.
AMD = "gfx942"

INTERPRETER_ON = (
    "TRITON_INTERPRET is set: Triton then replaces kernels by functions that it interprets, and "
    "nothing can be compiled. Unset it."
)


@dataclass(frozen=True)
class Configuration:
    """One kernel as a call gets it.

    kernel: a key of KERNELS; hidden_size: H; dtype: a key of POINTERS; card: compute capability, 90
    for 9.0.
    """

    kernel: str
    hidden_size: int
    dtype: str
    card: int

    def __str__(self):
        return f"{self.kernel}, H={self.hidden_size}, {self.dtype}, sm_{self.card}"

    @property
    def tile(self) -> dict[str, int]:
        """Its row of kernels/config.py, which but for a step is the same for every batch."""
        itemsize = ITEMSIZE[self.dtype]
        if self.kernel in STEP_KERNELS:
            precision = "tf32" if self.kernel == "step, tf32" else "ieee"
            batch = 1000 if self.kernel == "step, many" else 1
            aligned = self.hidden_size % 16 == 0
            tile = config.step_tile(batch, itemsize, precision=precision, aligned=aligned)
            if self.kernel == "step, backward":
                tile = {name: tile[name] for name in ("BLOCK_B", "BLOCK_H", "num_warps")}
            return tile
        block_b = 16 if self.kernel in WIDE_KERNELS else 8
        if self.kernel in NARROW_KERNELS:
            block_b = int(self.kernel.split()[1])
        if self.kernel in JOINT_KERNELS:
            return config.joint_tile(config.tile(self.hidden_size, 1, itemsize, block_b=4))
        exact = self.kernel in EXACT_KERNELS
        return config.tile(self.hidden_size, 1, itemsize, exact=exact, block_b=block_b)


def configurations(cards=tuple(CARDS), everything=False) -> list[Configuration]:
    """What is compiled for these cards: the main sizes and kernels for each of them, the others
    spread over all cards.

    everything: all sizes and kernels for each card.
    """
    main = [(size, dtype) for size in MAIN_SIZES for dtype in POINTERS]
    kinds = {_kind(*case) for case in main}
    chosen = []

    def add(kernels, size, dtype, on):
        """Kernels for those of the cards that are in `on`, or for the one that is number `on`."""
        on = [tuple(CARDS)[on % len(CARDS)]] if isinstance(on, int) else on
        here = [card for card in cards if card in on]
        chosen.extend(
            Configuration(kernel, size, dtype, card) for card in here for kernel in kernels
        )

    apart = NARROW_KERNELS + JOINT_KERNELS + EXACT_KERNELS + STEP_KERNELS + SLICED_KERNELS
    common = [kernel for kernel in KERNELS if kernel not in apart]
    variants = [kernel for kernel in common if kernel not in MAIN_KERNELS]
    for d, (size, dtype) in enumerate(main):
        # Every card, but those that few have in one dtype each
        by_turns = {card for n, card in enumerate(CARDS) if MAIN_DTYPES[n % 2] == dtype}
        add(MAIN_KERNELS, size, dtype, CARDS if everything else {*MAIN_CARDS, *by_turns})
        if everything or dtype in MAIN_DTYPES:
            add(variants, size, dtype, CARDS if everything else 2 * d + 1)
            add(NARROW_KERNELS, size, dtype, CARDS if everything else MAIN_CARDS)
            add(JOINT_KERNELS[:2], size, dtype, CARDS if everything else MAIN_CARDS)
            add(JOINT_KERNELS[2:], size, dtype, CARDS if everything else [MAIN_CARDS[d == 0]])
    for s, size in enumerate(OTHER_SIZES):
        for d, dtype in enumerate(POINTERS if everything else MAIN_DTYPES):
            # Odd sizes in both dtypes, for they take most registers; the others by turns.
            by_turns = not everything and size % 2 == 0 and d == s % 2
            # float32 has no VEC 8: there a size may be of the kind of an earlier one.
            if _kind(size, dtype) not in kinds and not by_turns:
                kinds.add(_kind(size, dtype))
                if everything:
                    add([*common, *NARROW_KERNELS, *JOINT_KERNELS], size, dtype, CARDS)
                else:
                    add(MAIN_KERNELS, size, dtype, s + 2 * d)
        if s % 4 == 3 and not everything:
            # Of odd sizes, in one dtype, the fewest sequences, and layers at once
            dtype = MAIN_DTYPES[s // 4 % 2]
            add(NARROW_KERNELS[-2:], size, dtype, s)
            add(JOINT_KERNELS[:2], size, dtype, s + 1)
    exact_kinds = set()
    for s, size in enumerate(OTHER_SIZES):
        if size <= config.MAX_EXACT_HIDDEN_SIZE and _kind(size, "float32") not in exact_kinds:
            exact_kinds.add(_kind(size, "float32"))
            add(EXACT_KERNELS, size, "float32", CARDS if everything else s)
    for s, size in enumerate(STEP_SIZES):
        for d, dtype in enumerate(POINTERS):
            kernels = [k for k in STEP_KERNELS if k != "step, tf32" or dtype == "float32"]
            add(kernels, size, dtype, CARDS if everything else s + 2 * d)
    sliced = SLICED_KERNELS[:2]
    for s, size in enumerate(SLICED_SIZES + OTHER_SLICED_SIZES):
        for d, dtype in enumerate(POINTERS):
            if everything:
                add(SLICED_KERNELS, size, dtype, CARDS)
            elif size in SLICED_SIZES:
                add(sliced, size, dtype, [MAIN_CARDS[(s + d) % 2]])
                if (size, dtype) == MOST_REGISTERS:
                    packed = [k for k in SLICED_KERNELS if k.endswith("packed")]
                    add(packed, size, dtype, MAIN_CARDS)
                elif d == s:
                    # The other kernels at one size each
                    add(SLICED_KERNELS[2 + s :: len(SLICED_SIZES)], size, dtype, s + 2 * d)
            elif d == s % 3:
                add(sliced, size, dtype, s)
    return sorted(chosen, key=lambda configuration: configuration.card)


def _kind(size: int, dtype: str) -> tuple[str, int, int]:
    tile = config.tile(size, 1, ITEMSIZE[dtype])
    return dtype, tile["BLOCK_H"], tile["VEC"]


def compile_configuration(configuration: Configuration, target: GPUTarget | None = None):
    """The kernel, specialised as a launch does it: T and B any numbers, pointers 16-byte aligned,
    save those whose alignment the kernel ignores.

    target: instead of the configuration's card.
    Returns: Triton's compiled kernel.
    Raises: RuntimeError if Triton's interpreter is on.
    """
    if interpreted():
        raise RuntimeError(INTERPRETER_ON)
    kernel, directions, absent = KERNELS[configuration.kernel]
    tile = configuration.tile
    names = kernel.arg_names
    # As in a launch, what is no argument of the kernel is an option of the compiler.
    options = {name: value for name, value in tile.items() if name not in names}
    if target is None:
        target = GPUTarget("cuda", configuration.card, 32)
    else:
        options.pop("maxnreg", None)  # NVIDIA's
    sizes = {name: value for name, value in tile.items() if name in names}
    size = configuration.hidden_size
    constants = {"H": size, "D": directions} if kernel.params[names.index("H")].is_constexpr else {}
    constants = {name: value for name, value in constants.items() if name in names}
    # Slices that meet carry no states from launch to launch.
    lacking = ["states_ptr"] + ["resets_ptr"] * ("resets" not in configuration.kernel)
    if configuration.kernel not in JOINT_KERNELS + STEP_KERNELS and not config.bias_parts(tile):
        lacking.append("grad_bias_ptr")
    constants |= sizes | {name: None for name in (*absent, *lacking) if name in names}
    pointers = [param for param in kernel.params if param.name.endswith(("_ptr", "_ptrs"))]
    # The numbers that a launch looks at: whether they are 1, or divisible by 16.
    numbers = [
        param.name
        for param in kernel.params
        if not param.do_not_specialize and param not in pointers and param.name not in constants
    ]
    if size == 1:
        constants |= dict.fromkeys(numbers, 1)
    own = {
        "offsets_ptr": "*i64",
        "resets_ptr": "*u8",
        "exchange_ptr": "*fp32",
        "taken_ptr": "*i32",
        "rings_ptr": "*i32",
        "grad_bias_ptr": "*fp32",
    }
    signature, constexprs, aligned = {}, {}, []
    for n, param in enumerate(kernel.params):
        name, paths, kind = param.name, [(n,)], "i32"
        if param in pointers:
            kind = own.get(name, POINTERS[configuration.dtype])
            given = ["gates_ih_ptr"] + ["grad_output_ptr"] * (size % 2)
            if name in given and configuration.kernel in JOINT_KERNELS:
                kind = "*fp32"
        if name in constants:
            kind = "constexpr"
        if name.endswith("_ptrs"):
            # One of each layer, or between any two of them
            count = JOINT_LAYERS - (name in ("mask_ptrs", "weight_ih_ptrs"))
            paths = [(n, k) for k in range(count)]
        signature[name] = kind if len(paths[0]) == 1 else (kind,) * len(paths)
        by_16 = size % 16 == 0 if name in numbers else param in pointers
        if name in constants:
            constexprs |= dict.fromkeys(paths, constants[name])
        elif by_16 and not param.do_not_specialize_on_alignment:
            aligned += paths
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constexprs,
        attrs={path: [["tt.divisibility", 16]] for path in aligned},
    )
    return triton.compile(source, target, options)


def amd_verdict(kernel: str) -> str:
    """Whether a kernel compiles for AMD: "compiles", or the first error.

    In a process of its own: LLVM prints hundreds of errors for each, and may carry on regardless.
    """
    source = (
        "from bench.static_report import *\n"
        f"at = Configuration({kernel!r}, {MAIN_SIZES[0]}, 'bfloat16', 90)\n"
        f"compile_configuration(at, GPUTarget('hip', {AMD!r}, 64))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "does not compile within two minutes"
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    if errors or done.returncode:
        return f"does not compile: {(errors or ['no reason given'])[0]:.200}"
    return "compiles"


@dataclass(frozen=True)
class Row:
    """A configuration, its figures and the shared memory of one program."""

    configuration: Configuration
    figures: LoopFigures
    shared_bytes: int

    @property
    def programs(self) -> int:
        """Programs that fit one multiprocessor at once."""
        threads, programs, shared_bytes = CARDS[self.configuration.card]
        warps = self.figures.num_warps
        # A warp's registers come in units of 256; the system keeps 1 KiB of each program's memory.
        registers = -(-self.figures.registers * 32 // 256) * 256
        return min(
            65536 // (registers * warps),
            threads // (32 * warps),
            programs,
            shared_bytes // (self.shared_bytes + 1024),
        )

    @property
    def weights(self) -> str:
        """Where W_hh lives during the time loop, as far as counts tell; "memory" without one."""
        limit = limits(self.configuration)
        if self.configuration.kernel in STEP_KERNELS:
            return "memory"
        if self.figures.hgmma or self.figures.utchmma:
            return "shared"
        if self.figures.lds + self.figures.ldsm > limit["lds + ldsm"]:
            return "shared"
        if self.figures.ldg > limit["ldg"]:
            return "global"
        return "local" if self.figures.spills else "registers"


def measure(configuration: Configuration) -> Row:
    """Compile a configuration and read it."""
    compiled = compile_configuration(configuration)
    figures = loop_figures(compiled.asm["cubin"], configuration.tile["num_warps"])
    # Beside the compiler's own what the kernels declare themselves (exchange.py)
    declared = re.findall(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]", compiled.asm["ptx"])
    return Row(configuration, figures, compiled.metadata.shared + sum(map(int, declared)))


def limits(configuration: Configuration) -> dict[str, int]:
    """What a step needs of what slows it down, per warp."""
    if configuration.kernel in STEP_KERNELS:
        return {"spills": 0}
    if configuration.kernel in SLICED_KERNELS:
        return _slice_limits(configuration)
    tile = configuration.tile
    warps = tile["num_warps"]
    exact = configuration.kernel in EXACT_KERNELS
    backward = configuration.kernel.startswith("backward")
    # A scale for each sequence: the largest number of all warps, from a table. Once more, with all
    # of the exchange, where the scale of two steps before turns out too large.
    scaled = backward and configuration.dtype == "float32"
    again = scaled and not exact
    packed, resets = "packed" in configuration.kernel, "resets" in configuration.kernel
    joint = configuration.kernel in JOINT_KERNELS
    # A step exchanges h, or the gradients of four gates: BLOCK_H * BLOCK_B numbers of 16 bits each,
    # or two of each. Every warp needs all of them, in 32-bit registers of its 32 lanes, four to a
    # read. W_hh takes BLOCK_H such registers, so reading even a quarter of it again adds
    # BLOCK_H / 16 reads.
    exchanged = tile["BLOCK_H"] * max(8, tile["BLOCK_B"]) * (4 if backward else 1) // 64
    reads = -(-exchanged // 4) * (2 if exact or again else 1)
    # Numbers of a tile in one thread; an access moves both units of a pair if rows are aligned so.
    numbers = tile["BLOCK_H"] * tile["BLOCK_B"] // (32 * warps)
    accesses = numbers if configuration.hidden_size % 2 else max(1, numbers // 2)
    sequences = max(1, tile["BLOCK_B"] // 4)  # of a thread
    # Backward reads i, f, g, o and c, 16 bytes at once, and one tile: grad_output.
    saved = -(-numbers * ITEMSIZE[configuration.dtype] // 16)
    if joint and backward and not scaled:
        # In 16 bits each unit of a pair is read for itself (rings.in_parts).
        accesses = numbers
    loads = 5 * saved + accesses if backward else 4 * accesses
    if joint:
        # What another stage hands it is read again where it was not there yet; so is how far the
        # next stage is.
        loads += (1 if backward else 4) * accesses + 2
    return {
        "spills": 0,
        "hgmma + utchmma": 0,
        # One for each exchange, and for the table, but for a scale of two steps before
        "bar": 1 + scaled + again,
        "lds + ldsm": reads + scaled + again,
        # Packed also where the rows of a later step begin and end; resets of a thread's sequences.
        "ldg": loads + 2 * packed + resets * sequences,
        "membar": 0,
        # The largest number of the lanes of a sequence and then of the warps, three steps each, two
        # sequences at once
        "shfl": (6 * scaled + 3 * again) * -(-sequences // 2),
    }


def _slice_limits(configuration: Configuration) -> dict[str, int]:
    """`limits` of slices, which read what others write."""
    tile = configuration.tile
    threads, sequences = 32 * tile["num_warps"], tile["BLOCK_B"]
    backward = configuration.kernel.startswith("backward")
    packed, resets = "packed" in configuration.kernel, "resets" in configuration.kernel
    # A thread's numbers of a tile of 16 units, and of all h, four in a word's read; or a part of
    # each slice for each number.
    numbers = -(-16 * sequences // threads)
    slices = config.slices(configuration.hidden_size, tile)
    words = numbers * slices if backward else tile["BLOCK_K"] * sequences // threads // 4
    # Two threads add the parts of a number where there are so many, and meet in shared memory.
    shared = threads >= 32 * sequences and slices % 2 == 0
    words = words // 2 if backward and shared else words
    # Of W_hh a quarter would be as many reads of four registers, and 16 are for the sum of parts.
    return {
        "spills": 0,
        "hgmma + utchmma": 0,
        "membar": 0,
        # Forward adds the warps' sums, and exchanges them twice over.
        "bar": 1 + shared if backward else sequences // 4,
        "lds + ldsm": 16 + tile["BLOCK_K"] // tile["num_warps"] // 16 + 2 * shared,
        # Packed also where the rows of a later step begin and end, twice if resets look there too.
        "ldg": words + (6 if backward else 4) * numbers + 2 * packed * (1 + resets) + resets,
    }


def defects(figures: LoopFigures, configuration: Configuration) -> list[str]:
    """What the time loop has beyond `limits`, one sentence each."""
    found = []
    for names, limit in limits(configuration).items():
        count = sum(getattr(figures, name) for name in names.split(" + "))
        if count > limit:
            found.append(f"{names} is {count} in each step, at most {limit} needed")
    return found


HEADER = (
    "kernel                 H dtype    card | regs stack spill instr mma mufu bar shfl lds sts ldg "
    "stg | shared weights   programs"
)


def line(row: Row) -> str:
    """One line of the table under HEADER."""
    at, of = row.configuration, row.figures
    mma = of.hmma + of.hgmma + of.utchmma
    return (
        f"{at.kernel:19} {at.hidden_size:4} {at.dtype:8} {at.card:4} | {of.registers:4} "
        f"{of.stack_bytes:5} {of.spills:5} {of.instructions:5} {mma:3} {of.mufu:4} {of.bar:3} "
        f"{of.shfl:4} {of.lds + of.ldsm:3} {of.sts:3} {of.ldg:3} {of.stg:3} | "
        f"{row.shared_bytes:6} {row.weights:9} {row.programs:8}"
    )


def run(row: Row) -> dict:
    """A row as the record has it."""
    return {
        **asdict(row.configuration),
        "tile": row.configuration.tile,
        **asdict(row.figures),
        "shared_bytes": row.shared_bytes,
        "weights": row.weights,
        "programs": row.programs,
        "defects": defects(row.figures, row.configuration),
    }


def main(arguments=None):
    """Compile, print and record; with --check, exits with all defects if there is one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cards", type=int, nargs="+", choices=CARDS, default=tuple(CARDS), help="default: all")
    add("--all", action="store_true", help="all sizes for each card; takes a quarter of an hour")
    add("--check", action="store_true", help="fail if there is a defect")
    add("--json", type=writable, metavar="FILE", help="write a record")
    args = parser.parse_args(arguments)
    if interpreted():
        parser.error(INTERPRETER_ON)
    rows = []
    print(HEADER)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for row in processes.map(measure, configurations(args.cards, args.all)):
            print(line(row), flush=True)
            rows.append(row)
        amd = dict(zip(MAIN_KERNELS, processes.map(amd_verdict, MAIN_KERNELS), strict=True))
    for kernel, verdict in amd.items():
        print(f"{kernel} on AMD {AMD}: {verdict}")
    if args.json:
        case = {"cards": args.cards, AMD: amd}
        try:
            write(args.json, new_record("static", "cpu", case, list(map(run, rows))))
        except OSError as error:
            sys.exit(f"static_report: {error}")
    found = [
        f"{row.configuration}: {defect}"
        for row in rows
        for defect in defects(row.figures, row.configuration)
    ]
    if args.check and found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
