"""Replay a pass as a CUDA graph: thousands of small kernels for one launch.

A graph holds for one set of shapes. It is captured when those shapes come for the third time, from zeros, and must then
give twice what the same pass gives without it: on the inputs of that call and on those of the next one. Whatever goes
wrong, all graphs are dropped and the passes run without.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bmtpt.errors import is_out_of_memory

Tensors = tuple[Tensor, ...]
Inputs = tuple[Tensor | None, ...]
Function = Callable[..., Tensors]

SEEN_BEFORE = 2
"""Passes of the same shapes before a capture, which costs about four of them."""

MOST_GRAPHS = 32
TOLERANCE = {torch.float32: 1e-3}
ROUNDED = 2e-2
"""Relative, by the compute dtype; the same kernels run, so only sums in another order may differ. In bfloat16 one that
rounds to the other side goes through all later layers (bfloat16 itself is 5e-2 from fp32)."""


@dataclass
class Captured:
    """A graph with the tensors it reads and writes.

    Attributes:
        replay: Runs the graph, and keeps it alive.
    """

    replay: Callable[[], None]
    inputs: Inputs
    outputs: Tensors

    def __call__(self, inputs: Inputs) -> Tensors:
        for held, given in zip(self.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given, non_blocking=True)
        self.replay()
        return tuple(output.clone() for output in self.outputs)  # the next replay overwrites them


@dataclass
class CudaCapture:
    """Captures functions, all on one stream and in one pool: only one graph runs at a time.

    The stream is its own. torch ≥ 2.12 frees the cuBLAS workspaces of a stream when any graph that was captured on it
    is destroyed (pytorch issue 193402): on torch's default capture stream others' graphs would lose theirs too.
    """

    stream: Any = None
    pool: Any = None

    def __call__(self, function: Function, inputs: Inputs) -> Captured:
        device = next(each.device for each in inputs if each is not None)
        with torch.cuda.device(device):  # it need not be the current one
            graph, held, outputs = self._captured(function, inputs)

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return Captured(replay, held, outputs)

    def _captured(self, function: Function, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, Tensors]:
        # Zeros are valid ids, targets and prompts: a replay that still read them could not be equal.
        held = tuple(None if each is None else torch.zeros_like(each) for each in inputs)
        self.stream = self.stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # torch's libraries must have made their workspaces before a capture
            function(*held)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream current: the outer context gives the stream back.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            outputs = function(*held)
        return graph, held, outputs


@dataclass
class GraphedPasses:
    """Calls a function of tensors, by graph where that has proved equal.

    Attributes:
        tolerance: Relative difference of a replay that is still equal.
        off: Why there are no graphs any more; empty while there may be.
        seen: How often each set of shapes has run without a graph.
        proved: The shapes whose graph has given the right results twice.
    """

    tolerance: float
    capture: Callable[[Function, Inputs], Captured] = field(default_factory=CudaCapture)
    off: str = ""
    seen: Counter[object] = field(default_factory=Counter)
    captured: dict[object, Captured] = field(default_factory=dict)
    proved: set[object] = field(default_factory=set)

    def __call__(self, function: Function, *inputs: Tensor | None) -> Tensors:
        key = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        if key in self.proved:
            return self.captured[key](inputs)
        plain = function(*inputs)
        self.seen[key] += 1
        if self._wants(key):
            self._try(key, function, inputs, plain)
        return plain

    def clear(self) -> None:
        """Let go of every graph and its memory, and capture none again: memory is short."""
        self._give_up("memory is short")

    def _wants(self, key: object) -> bool:
        room = key in self.captured or len(self.captured) < MOST_GRAPHS
        return not self.off and self.seen[key] > SEEN_BEFORE and room

    def _try(self, key: object, function: Function, inputs: Inputs, plain: Tensors) -> None:
        """Capture these shapes, or prove their graph once more."""
        try:
            before = self.captured.get(key)
            found = before or self.capture(function, inputs)
            if not self._gives(found, inputs, plain):
                self._give_up("a replay differed from the same pass without a graph")
            elif before:
                self.proved.add(key)
            else:
                self.captured[key] = found
        except (RuntimeError, ValueError) as error:  # ValueError: the tensors are on no CUDA device
            self._give_up("memory is short" if is_out_of_memory(error) else str(error).splitlines()[0])

    def _gives(self, found: Captured, inputs: Inputs, plain: Tensors) -> bool:
        for output in found.outputs:
            output.fill_(torch.nan)  # only a replay that writes them can be equal
        return all(map(self._equal, found(inputs), plain))

    def _equal(self, replayed: Tensor, plain: Tensor) -> bool:
        distance = torch.linalg.vector_norm(replayed - plain)
        return bool(distance <= self.tolerance * torch.linalg.vector_norm(plain))

    def _give_up(self, reason: str) -> None:
        """Drop all graphs: destroying one can take from the others what they were captured with."""
        if not self.off:
            logging.getLogger("bmtpt").info("cuda graphs are off: %s", reason)
        self.off = reason
        self.captured.clear()
        self.proved.clear()
