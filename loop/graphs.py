"""A training step as CUDA graphs: one call launches its thousand small kernels, which by themselves wait for Python."""

import collections
import gc

import torch

from cli.errors import UserError

WARM = 3  # calls with new shapes before they are captured: libraries and the optimiser set themselves up in the first
MOST = 256  # captured shapes; further ones run as they are


class Graphs:
    """Calls `step(*inputs)` -> tuple of tensors by one captured CUDA graph per shape of the inputs.

    In the first WARM calls with inputs (tensors) of new shapes the step runs as it is. A captured step must not look
    at a value, draw numbers on the CPU or copy from it; random numbers of the GPU go on as in the step. The tensors
    that a call returns are overwritten by the next call. All graphs share one pool of memory, which is safe in any
    order: a graph reads its own inputs and what lies outside, parameters and optimiser.
    """

    def __init__(self, step):
        self.step, self.seen, self.captured = step, collections.Counter(), {}
        # every step and capture on one stream: gradients remember the stream that they were first made on
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, *inputs):
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if shapes not in self.captured and self.seen[shapes] >= WARM and len(self.captured) < MOST:
            self.captured[shapes] = self.capture(inputs)
        if shapes in self.captured:
            graph, held, outputs = self.captured[shapes]
            for into, x in zip(held, inputs):
                into.copy_(x, non_blocking=True)
            graph.replay()
            return outputs
        self.seen[shapes] += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def capture(self, inputs):
        """Record the step without running it; -> graph, the tensors that it reads, those that it writes.

        After a capture that failed this process can capture no more, and may draw no random numbers on the GPU.
        """
        if not self.captured:
            gc.collect()
        held = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # to free another graph, or a kernel, would spoil the capture
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                outputs = self.step(*held)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a spoilt capture fails too, and says nothing of why
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise UserError(f"this step cannot be captured as a CUDA graph ({cause}); give --no-graph") from error
        finally:
            gc.enable()
        return graph, held, outputs
