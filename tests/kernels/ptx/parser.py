"""From the text of a module to the instructions of its kernel."""

import re
from functools import cache

from .arithmetic import NUMBERS, WIDTH
from .statements import SPECIAL, Address, Immediate, Instruction, Kernel, Negated, PTXError
from .warps import OTHERS

NAME = r"[%$\w][\w$.]*"


class Parser:
    """Of a function's body; names are those of the innermost block that has them."""

    def __init__(self):
        self.scopes = [{}]
        self.code, self.registers, self.special, self.jumps = [], [], {}, []
        self.static_bytes, self.dynamic = 0, []

    def declare(self, name, width):
        self.scopes[-1][name] = len(self.registers)
        self.registers.append(width)

    def find(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def share(self, statement):
        """Shared memory with a name. Of a size that the launch gives, it begins after the rest."""
        align, width, name, count = re.search(
            rf"\.align\s+(\d+)\s+\.b(\d+)\s+({NAME})\s*\[\s*(\d*)\s*\]", statement
        ).groups()
        begin = -(-self.static_bytes // int(align)) * int(align)
        self.scopes[-1][name] = Immediate(begin)
        if count:
            self.static_bytes = begin + int(count) * int(width) // 8
        else:
            self.dynamic.append((self.scopes[-1][name], int(align)))

    def body(self, text):
        statement = re.compile(
            rf"\s*(?:(?P<open>{{)|(?P<close>}})|(?P<label>{NAME})\s*:(?!:)|(?P<rest>[^;]*);)"
        )
        at = 0
        while found := statement.match(text, at):
            at = found.end()
            if found["open"]:
                self.scopes.append({})
            elif found["close"]:
                self.scopes.pop()
            elif found["label"]:
                self.scopes[-1][found["label"]] = len(self.code)
            elif found["rest"].strip():
                self.statement(" ".join(found["rest"].split()))
        if text[at:].strip():
            raise PTXError(f"what is this: {text[at:].strip()[:80]}")

    def statement(self, text):
        if text.startswith(".reg"):
            width = WIDTH[text.split()[1][1:]]
            for name in text.split(None, 2)[2].split(","):
                name, count = re.fullmatch(rf"\s*({NAME})(?:<(\d+)>)?\s*", name).groups()
                for each in [name] if count is None else [f"{name}{n}" for n in range(int(count))]:
                    self.declare(each, width)
        elif text.startswith(".shared"):
            self.share(text)
        elif not text.startswith(".pragma"):
            self.instruction(text)

    def instruction(self, text):
        guard, negated, operation, operands = re.fullmatch(
            rf"(?:@(!?)({NAME})\s+)?([\w.:]+)\s*(.*)", text
        ).group(2, 1, 3, 4)
        if guard is not None:
            guard = self.find(guard)
            guard = Negated(guard) if negated else guard
        name, *parts = operation.split(".")
        types = [x for x in parts if x in WIDTH]
        modifiers = [x for x in parts if x not in WIDTH]
        for longer in ("wide", "hi", "warp"):
            if longer in modifiers and f"{name}.{longer}" in NUMBERS | OTHERS:
                name = f"{name}.{longer}"
        name = "bar" if name == "barrier" else name
        if len(types) == 2 and f"{name}.mixed" in NUMBERS:
            name += ".mixed"
        table = NUMBERS if name in NUMBERS else OTHERS
        understood = table[name][2 if name in NUMBERS else 1].split() if name in table else []
        known = name in table and set(modifiers) <= set(understood)
        operands = [self.operand(x) for x in re.split(r",(?![^{]*})", operands) if x.strip()]
        if known and name in NUMBERS:
            sources = NUMBERS[name][1]
            counts = len(sources.split("?")[0]), len(sources.replace("?", ""))
            known = len(types) == 1 + ("s" in sources) and len(operands) - 1 in counts
        if not known:
            raise PTXError(f"unknown instruction: {text}")
        if name == "bra":
            self.jumps.append((len(self.code), text.split()[-1], tuple(self.scopes)))
        self.code.append(Instruction(text, guard, name, modifiers, types, operands))

    def operand(self, text):
        text = text.strip()
        if text[0] == "{":
            return [self.operand(x) for x in text[1:-1].split(",")]
        if text[0] == "[":
            inner = re.fullmatch(r"([^+]*?)\s*(?:\+\s*(-?\w+)\s*)?", text[1:-1].strip())
            base, offset = inner.groups()
            base = base if "_param_" in base else self.operand(base)
            return Address(base, int(offset or "0", 0))
        if "|" in text:
            return tuple(self.operand(x) for x in text.split("|"))
        if text[0] == "!":
            return Negated(self.find(text[1:]))
        if text == "_":
            return None
        if (known := self.find(text)) is not None:
            return known
        if text in SPECIAL:
            width = self.scopes[0][text] = len(self.registers)
            self.registers.append(32)
            self.special[text] = width
            return width
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}|-?0[xX]\w+|-?\d+U?", text):
            digits = text.rstrip("U")
            return Immediate(int(digits[2:], 16) if digits[1:2] in [*"fFdD"] else int(digits, 0))
        if re.fullmatch(r"-?\d+\.\d*(e-?\d+)?", text):
            return Immediate(float(text))
        if parameter := re.fullmatch(r"\w+_param_(\d+)", text):
            return Immediate(int(parameter[1]))
        return Immediate(text)


@cache
def parse(ptx):
    """The kernel of a module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*\.(loc|file)\b[^\n]*", "", ptx, flags=re.S | re.M)
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*?)\{", text, re.S)
    end, depth = entry.end(), 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    parser = Parser()
    for statement in re.findall(r"[^;{}]*\.shared\b[^;]*;", text[: entry.start()]):
        parser.share(statement)
    parser.body(text[entry.end() : end - 1])
    for at, label, scopes in parser.jumps:
        (target,) = [scope[label] for scope in scopes if label in scope][-1:]
        parser.code[at].operands[:] = [target]
    for name, align in parser.dynamic:
        name.value = -(-parser.static_bytes // align) * align
        parser.static_bytes = name.value
    return Kernel(
        parser.code,
        parser.registers,
        parser.special,
        re.findall(r"(\w+_param_\d+)", entry[1]),
        int(re.search(r"\.reqntid\s+(\d+)", entry[2])[1]),
        parser.static_bytes,
    )
