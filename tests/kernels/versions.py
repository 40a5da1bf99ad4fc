"""Whether launching.Versions tells apart what Triton does: as a program it prints what is wrong.

No GPU, and not in the interpreter: of a launch only the look at the arguments takes place.
"""

import itertools
import json
from functools import cache

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from lstm.kernels import (
    backward,
    config,
    forward,
    joint_backward,
    joint_forward,
    launching,
    slices,
    step,
)


def captured(function, *arguments, **keywords):
    """What each kernel[grid](...) of a launcher is called with: kernel, arguments, keywords."""
    calls = []

    def launch(kernel, grid, *given, **options):
        assert len(grid) == 3
        calls.append((kernel, given, options))

    for module in (forward, backward, joint_forward, joint_backward, slices, step):
        module.launch = launch
    function(*arguments, **keywords)
    return calls


def sequence_calls():
    """Launches of both sequence kernels that differ in one thing or another."""
    for H, dtype, T, B, D in [
        (20, torch.float32, 5, 3, 1),
        (20, torch.float32, 6, 3, 1),
        (20, torch.float32, 1, 1, 2),
        (20, torch.bfloat16, 5, 3, 1),
        (16, torch.float16, 16, 16, 1),
        (1, torch.float32, 1, 1, 1),
        (37, torch.float32, 5, 3, 1),
    ]:
        for exact in (False, True) if dtype == torch.float32 else (False,):
            tile = config.tile(H, B, dtype.itemsize, exact=exact)
            size = tile["BLOCK_H"] * tile["BLOCK_B"]

            def tensor(*shape, offset=0, dtype=dtype):
                numbers = torch.Size(shape).numel()
                return torch.zeros(numbers + 8, dtype=dtype)[offset : offset + numbers].view(shape)

            for offset, bias, state, saved, packed, resets in itertools.product(
                (0, 1), (False, True), (False, True), (False, True), (False, True), (False, True)
            ):
                gates = tensor(D, T, B, 4, H)
                biases = [tensor(D, 4, H, offset=offset)] * 2 if bias else [None, None]
                states = [tensor(D, B, H, offset=offset)] * 2 if state else [None, None]
                steps = tensor(D, 1, 1 + 5 * T, size) if saved else None
                offsets = torch.zeros(T + 1, dtype=torch.int64) if packed else None
                cuts = torch.zeros(T, B, dtype=torch.uint8) if resets else None
                weight = tensor(D, 4, H, H, offset=offset)
                output, h_n = tensor(T, B, D, H), tensor(D, B, H)
                transposed = tensor(D, H, 4, H) if saved else None
                yield from captured(
                    forward.lstm_forward, gates, *biases, weight, output, steps, transposed,
                    *states, h_n, h_n, 0, D, T, B, tile, offsets, cuts,
                )  # fmt: skip
                if saved:
                    grad = tensor(T, B, D, H, offset=offset)
                    sums = tensor(D, 4 * H, dtype=torch.float32) if bias else None
                    yield from captured(
                        backward.lstm_backward, steps, transposed, grad, *states, gates, *states,
                        sums, 0, D, T, B, tile, offsets, cuts,
                    )  # fmt: skip


def sliced_calls():
    """Launches of several slices, which have all arguments."""
    T, B, H, D = 3, 20, 200, 1
    for dtype, at_once in itertools.product((torch.float32, torch.bfloat16), (0, 1, 2)):
        tile = config.tile(H, B, dtype.itemsize)
        x, state = torch.zeros(64, dtype=dtype), torch.zeros(1, 1, H, dtype=dtype)
        words = torch.zeros(64)
        meeting = slices.Meeting(words, words if at_once == 0 else None, at_once)
        yield from captured(
            forward.lstm_forward, x, x, x, x, x, x, None, None, x, state, state,
            0, D, T, B, tile, None, None, meeting,
        )  # fmt: skip


def joint_calls(first=0):
    """Launches of several layers at once. first: where in memory their counters begin."""
    for H, dtype, layers, saved, masked, bias, offset in [
        (1, torch.float32, 2, True, False, True, 0),
        (20, torch.bfloat16, 2, True, True, True, 0),
        (20, torch.float32, 2, False, False, False, 0),
        (20, torch.float32, 3, True, True, True, 0),
        # W_hh of a layer above, or a gradient, that is not aligned
        (20, torch.float32, 3, True, True, True, 1),
    ]:
        tile, numbers = config.tile(H, 3, dtype.itemsize), 4 * H * H * 64
        x, moved = (torch.zeros(numbers + 4, dtype=dtype)[at:] for at in (0, offset))
        state, taken = torch.zeros(layers, 3, H, dtype=dtype), torch.zeros(12, dtype=torch.int32)
        taken = taken[first : first + config.stages(layers)].view(-1, 1)
        kept = (x, torch.zeros(2, H, 4 * H, dtype=dtype)) if saved else (None, None)
        own = [
            (*([x, x] if bias else [None, None]), weight, x, *kept)
            for weight in (x, moved, x)[:layers]
        ]
        gates_ih = torch.zeros(4 * H * 64)
        masks = (layers - 1) * [x] if masked else None
        cuts = torch.zeros(48, dtype=torch.uint8) if masked else None
        offsets = torch.zeros(17, dtype=torch.int64) if layers == 3 else None
        yield from captured(
            joint_forward.lstm_joint_forward, own, gates_ih, (layers - 1) * [x], masks, None, state,
            state, state, taken, 0, 16, 3, tile, offsets, cuts,
        )  # fmt: skip
        if saved:
            sums = torch.zeros(layers, 4 * H) if bias else None
            yield from captured(
                joint_backward.lstm_joint_backward, *([y] * layers for y in kept),
                moved, layers * [x], masks, state, None, None, state, sums, taken,
                0, 16, 3, tile, offsets, cuts,
            )  # fmt: skip


def step_calls():
    """Launches of both kernels of a step."""
    for B, I, H, dtype in [
        (1, 1, 1, torch.float32),
        (5, 16, 20, torch.float32),
        (5, 20, 16, torch.bfloat16),
        (70, 20, 16, torch.bfloat16),
        (7, 20, 16, torch.bfloat16),
    ]:
        tile = config.step_tile(B, dtype.itemsize)
        x, h = torch.zeros(B, I, dtype=dtype), torch.zeros(B, H, dtype=dtype)
        wide = torch.zeros(B, 2 * H, dtype=dtype)[:, :H]
        weights = torch.zeros(4 * H, I, dtype=dtype), torch.zeros(4 * H, H, dtype=dtype)
        gates = torch.zeros(B, 4, H, dtype=dtype)
        for state in (None, h, wide):
            yield from captured(
                step.lstm_step, x, *weights, None, None, state, state, h, h, None, gates, tile
            )
            yield from captured(
                step.lstm_step_backward, gates, state, h, h, None, gates, state, tile
            )


@cache
def bound_to(kernel):
    """Triton's look at the arguments of a kernel, and ours."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    return binder, launching.Versions(kernel)


def main():
    calls = [*sequence_calls(), *joint_calls(), *sliced_calls(), *step_calls()]
    seen, wrong = {}, []
    for kernel, arguments, keywords in calls:
        binder, versions = bound_to(kernel)
        bound, looked_at, options = binder(*arguments, **keywords)
        whole = versions.whole(arguments, keywords)
        if not all(a is b for a, b in zip(whole, bound.values(), strict=True)):
            wrong.append(f"{kernel.fn.__name__}: other arguments than Triton's")
        key = kernel.fn.__name__, *versions.key(whole, keywords)
        triton_key = str(looked_at), str(options)
        if seen.setdefault(key, triton_key) != triton_key:
            wrong.append(f"{key}: both {seen[key]} and {triton_key}")
    # With the number of tiles the counters of a backward begin elsewhere, and those of one that is
    # captured as a CUDA graph, where nothing may be compiled.
    for (kernel, *first), (_, *second) in zip(joint_calls(), joint_calls(first=1), strict=True):
        looked_at = [
            bound_to(kernel)[0](*given, **options)[1] for given, options in (first, second)
        ]
        if looked_at[0] != looked_at[1]:
            wrong.append(f"{kernel.fn.__name__}: compiled again for counters that begin elsewhere")
    print(json.dumps({"calls": len(calls), "versions": len(seen), "wrong": wrong}))


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret
    main()
