"""A training step as CUDA graphs: its thousand small kernels start at once instead of one by one. On a CPU: the step."""

import collections

import torch

WARM = (
    3  # steps of a shape that run one by one before it is captured: libraries and optimiser set themselves up in them
)


class Graphs:
    """Calls `step(*inputs)`, tensors or None -> tuple of tensors, by one captured CUDA graph per shape of the inputs.

    With `use` false, and for the first WARM calls with inputs of new shapes, the step runs as it is. A captured step
    must not look at a value, draw numbers on the CPU or copy from it; random numbers of the GPU go on as in the step.
    The tensors that a call returns are overwritten by the next call.
    """

    def __init__(self, step, use):
        self.step, self.use = step, use
        self.seen, self.captured = collections.Counter(), {}
        self.eager = 0  # calls that ran one by one
        # every step and capture on one stream: gradients remember the stream that they were first made on
        self.stream = torch.cuda.Stream() if use else None
        self.pool = torch.cuda.graph_pool_handle() if use else None

    def __call__(self, *inputs):
        shapes = tuple(None if x is None else tuple(x.shape) for x in inputs)
        if self.use and self.seen[shapes] == WARM and shapes not in self.captured:
            self.captured[shapes] = self.capture(inputs)
        if shapes in self.captured:
            graph, held, outputs = self.captured[shapes]
            for into, x in zip(held, inputs):
                if x is not None:
                    into.copy_(x, non_blocking=True)
            graph.replay()
            return outputs
        self.seen[shapes] += 1
        self.eager += 1
        if not self.use:
            return self.step(*inputs)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def capture(self, inputs):
        """Record the step without running it; -> graph, the tensors that it reads, those that it writes."""
        held = [None if x is None else x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            outputs = self.step(*held)
        return graph, held, outputs
