"""The step that every implementation trains with: loss, gradients, Adam; on a GPU one CUDA graph.

Below float32 the whole model runs in the lower type and Adam keeps float32 weights, which are
rounded into the model after each step. Autocast would not compare like with like: on CUDA it gives
torch.nn.LSTM float16, whatever type is asked for.
"""

import contextlib
import time

import torch
from torch import nn
from torch.backends.cudnn.rnn import get_cudnn_mode
from torch.nn.functional import cross_entropy

from bench import distributed

# Lifts gradients above float16's smallest numbers; a power of two, so it rounds nothing. Without it
# the gradient of weight_ih_l0 is 1.2 % off in the first step of MNIST, with it 0.08 % (CPU).
LOSS_SCALE = {torch.float32: 1, torch.bfloat16: 1, torch.float16: 1024}


def flatten_weights(model):
    """Have the weights of each bfloat16 torch.nn.LSTM on a GPU in one piece of memory, in place.

    cuDNN makes one of them at each call otherwise, which is no part of a comparison, and nn.LSTM
    sees to it in other dtypes only (torch 2.11 to 2.14).
    """
    for module in model.modules():
        if type(module) is not nn.LSTM or module.weight_hh_l0.dtype != torch.bfloat16:
            continue
        if module.weight_hh_l0.is_cuda:
            # Where cuDNN has no layout for them, they stay as they are.
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                torch._cudnn_rnn_flatten_weight(
                    module._flat_weights, 4, module.input_size, get_cudnn_mode("LSTM"),
                    module.hidden_size, 0, module.num_layers, module.batch_first, False,
                )  # fmt: skip


class Training:
    """A classifier with its data, optimizer, losses and clock; `model` comes in float32.

    With several processes (bench/distributed.py) batches and losses are this one's part, gradients
    and weights those of all.

    Shapes: images (N, ...) in `dtype` and labels (N,), on the model's device. `losses` holds a
        scalar tensor per step.
    """

    def __init__(
        self, model, images, labels, batch_size, lr, dtype=torch.float32, cuda_graph=False
    ):
        self.model, self.images, self.labels = model, images, labels
        self.weights = self.parameters = list(model.parameters())
        if dtype != torch.float32:
            self.weights = [parameter.detach().clone() for parameter in self.parameters]
            model.to(dtype)
            flatten_weights(model)
        self.logits = distributed.parallel(model)
        self.scale = LOSS_SCALE[dtype]
        self.optimizer = torch.optim.Adam(
            self.weights, lr=lr, fused=images.is_cuda, capturable=images.is_cuda
        )
        self.cuda_graph = cuda_graph
        self.batch = torch.zeros(batch_size, dtype=torch.int64, device=images.device)
        self.losses = []
        self.first_call_s = self.time_s = 0.0

    def step(self):
        """Train once on the images that `self.batch` indexes; returns their mean loss before it."""
        images = self.images.index_select(0, self.batch)
        labels = self.labels.index_select(0, self.batch)
        self.model.zero_grad(set_to_none=True)
        loss = cross_entropy(self.logits(images).float(), labels)
        (loss if self.scale == 1 else loss * self.scale).backward()
        self.update()
        return loss.detach()

    @torch.no_grad()
    def update(self):
        """Adam, on the model's own weights in float32, else on the float32 weights behind them."""
        if self.weights is self.parameters:
            self.optimizer.step()
            return
        # All at once: a kernel for each would take longer than the layers.
        grads = [torch.empty_like(weight) for weight in self.weights]
        torch._foreach_copy_(grads, [parameter.grad for parameter in self.parameters])
        if self.scale != 1:
            torch._foreach_div_(grads, self.scale)
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        self.optimizer.step()
        torch._foreach_copy_(self.parameters, self.weights)

    def first_call(self, batch):
        """The first step on its own clock, with what comes once: compilation, warm-up, capture."""
        begin = time.perf_counter()
        if self.cuda_graph:
            self.capture()
        self.run(batch[None])
        self.first_call_s, self.time_s = time.perf_counter() - begin, 0.0

    def run(self, batches, tick=lambda: None):
        """A step for each row of indices in `batches` (steps, batch size), timed to its end."""
        begin = time.perf_counter()
        for batch in batches:
            self.batch.copy_(batch)
            # A copy, because the next replay overwrites the loss.
            self.losses.append(self.step().clone())
            tick()
        if self.images.is_cuda:
            torch.cuda.synchronize()
        self.time_s += time.perf_counter() - begin

    def capture(self):
        """Make `self.step` replay one CUDA graph, and leave the training where it began."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.warm_up()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.step()

        def replay():
            graph.replay()
            return loss

        self.step = replay

    def warm_up(self):
        """Three steps that compile and allocate, undone in place: a graph keeps the addresses."""
        tensors = [*self.weights, *self.parameters]
        before = [tensor.detach().clone() for tensor in tensors]
        for _ in range(3):
            self.step()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for state in self.optimizer.state.values():
                for moment in state.values():
                    moment.zero_()
