"""An emulator of PTX: runs what Triton compiled for NVIDIA, on a machine that has no GPU.

Triton's interpreter runs a kernel's Python. This runs the compiled kernel: its inline PTX, its
shared memory and its tensor-core operands, in the order the compiler gave them.

    compiled = bench.static_report.compile_configuration(configuration)
    run(compiled.asm["ptx"], arguments, grid, compiled.metadata.shared)

Launchers run on it unchanged with emulated.Emulated in their kernel's place.

All threads of a program are one numpy array, so they go in lockstep, which hides missing barriers.
These are therefore looked for: an access to shared memory that no barrier orders is an error. So
are an access outside of a tensor or of its alignment, and an instruction that is not in the tables.
Accesses to shared memory that its banks serve one after the other are counted.

    register    an array of bits, one element a thread; bool for a predicate
    mask        the threads that take part, None for all
    front       threads at one instruction; a branch may part them, the same address joins them

Numerics: float32 as numpy has it; what the hardware approximates is exact, a tensor core's sum is
one of float32. Not looked at: races in global memory, which all programs share; the asynchronous
copies, wgmma and clusters, which are no instructions here.
"""

from .program import run
from .statements import PTXError

__all__ = ["PTXError", "run"]
