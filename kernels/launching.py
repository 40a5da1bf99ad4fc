"""Launching a kernel for the second time.

At each launch Triton asks of every argument what its compiler asks: of what type it is, whether it
is None, what it is divisible by. Most of a launch's Python is that. What it found is kept here for
the next launch, which asks only what may have changed.
"""

from itertools import chain

from triton import JITFunction

_versions = {}


def launch(kernel, grid, *arguments, **keywords):
    """kernel[grid](*arguments, **keywords), in half the time once it is compiled.

    Args: kernel: its pointers come first, or tuples of them, all of the dtype of the first or
        always of the same, then the numbers with do_not_specialize; grid: three numbers. The
        current device is that of the arguments.
    """
    if isinstance(kernel, JITFunction):
        versions = _versions.get(kernel.fn)
        if versions is None:
            versions = _versions[kernel.fn] = Versions(kernel)
        versions.launch(grid, arguments, keywords)
    else:
        kernel[grid](*arguments, **keywords)  # interpreted


class Versions:
    """A kernel as compiled for all the arguments it has been launched with."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.compiled = {}
        self.names = kernel.arg_names
        self.tuples = sum(name.endswith("_ptrs") for name in self.names)
        self.pointers = self.tuples + sum(name.endswith("_ptr") for name in self.names)
        # Then come those numbers at which Triton is told not to look.
        ignored = [param.do_not_specialize for param in kernel.params[self.pointers :]]
        self.looked_at = self.pointers + sum(ignored)
        if sorted(ignored, reverse=True) != ignored:
            raise ValueError(f"{kernel.fn.__name__}: numbers that are looked at stand last")

    def whole(self, arguments, keywords):
        """All arguments of the kernel, in order, of which some may be given by name."""
        return [*arguments, *[keywords[name] for name in self.names[len(arguments) :]]]

    def launch(self, grid, arguments, keywords):
        whole = self.whole(arguments, keywords)
        key = self.key(whole, keywords)
        compiled = self.compiled.get(key)
        if compiled is None:
            launched = self.kernel[grid](*arguments, **keywords)
            # In Triton's AsyncCompileMode it is no kernel yet.
            if hasattr(type(launched), "__getitem__"):
                self.compiled[key] = launched
        else:
            compiled[grid](*whole)

    def key(self, arguments, options):
        """What the compiled kernel depends on: the same only for arguments between which Triton
        makes no difference. arguments: as `whole` has them; options: the compiler's, at least.
        """
        pointers = [*chain(*arguments[: self.tuples]), *arguments[self.tuples : self.pointers]]
        first = pointers[0]
        return (
            first.get_device(),
            first.dtype,
            *[None if x is None else x.data_ptr() % 16 for x in pointers],
            # Of these it does ask whether they are None, or of more than 32 bits.
            *[x is None or x >> 31 for x in arguments[self.pointers : self.looked_at]],
            *arguments[self.looked_at :],
            *options.values(),
        )
