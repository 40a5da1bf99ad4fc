"""What a text becomes: its statements, and their operands."""

from typing import Any, NamedTuple

import numpy as np

SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIAL += ["%laneid", "%warpid"]


class PTXError(Exception):
    """What the emulator found, with the instruction."""


class Immediate:
    """A number in the text, or the address of a name."""

    def __init__(self, value):
        self.value = value
        self.known = {}

    def bits(self, width):
        if width not in self.known:
            value = self.value
            if isinstance(value, float):
                value = int(np.array(value, f"f{width // 8}").view(f"u{width // 8}"))
            dtype = bool if width == 1 else f"u{width // 8}"
            self.known[width] = np.array([value % (1 << width)], dtype)
        return self.known[width]


class Address(NamedTuple):
    base: Any
    offset: int


class Negated(NamedTuple):
    register: int


class Instruction(NamedTuple):
    """One statement. guard: a register, or Negated, or None."""

    text: str
    guard: Any
    name: str
    modifiers: list
    types: list
    operands: list

    def fail(self, reason):
        raise PTXError(f"{reason}: {self.text}")


class Kernel(NamedTuple):
    """A parsed kernel. registers: widths in bits; special: registers of SPECIAL."""

    code: list
    registers: list
    special: dict
    parameters: list
    threads: int
    static_bytes: int
