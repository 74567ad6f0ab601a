"""Replay a pass as a CUDA graph: thousands of small kernels for one launch.

A graph holds for one set of shapes. It is captured when those shapes come for the third time, and used only if its
first replay gives what the same pass gave without it; whatever goes wrong, the passes run without graphs.
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

SEEN_BEFORE = 2
"""Passes of the same shapes before a capture, which costs about four of them."""

MOST_GRAPHS = 32
TOLERANCE = {torch.float32: 1e-3}
ROUNDED = 2e-2
"""Relative, by the compute dtype; the same kernels run, so only sums in another order may differ. In bfloat16 one that
rounds to the other side goes through all later layers (bfloat16 itself is 5e-2 from fp32)."""


@dataclass
class Captured:
    """A graph with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    outputs: Tensors

    def __call__(self, inputs: Inputs) -> Tensors:
        for held, given in zip(self.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given, non_blocking=True)
        with torch.cuda.device(_device(self.inputs)):
            self.graph.replay()
        return tuple(output.clone() for output in self.outputs)  # the next replay overwrites them


@dataclass
class GraphedPasses:
    """Calls a function of tensors, by graph where that has proved equal.

    Attributes:
        tolerance: Relative difference of a first replay that is still equal.
        off: Why no graph is captured any more; empty while they are.
    """

    tolerance: float
    off: str = ""
    seen: Counter[object] = field(default_factory=Counter)
    captured: dict[object, Captured] = field(default_factory=dict)
    pool: Any = None

    def __call__(self, function: Callable[..., Tensors], *inputs: Tensor | None) -> Tensors:
        key = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        if key in self.captured:
            return self.captured[key](inputs)
        plain = function(*inputs)
        self.seen[key] += 1
        if not self.off and self.seen[key] > SEEN_BEFORE and len(self.captured) < MOST_GRAPHS:
            self._try(key, function, inputs, plain)
        return plain

    def clear(self) -> None:
        """Let go of every graph and its memory, and capture none again: memory is short."""
        self.captured.clear()
        self.pool = None
        self._give_up("memory is short")

    def _try(self, key: object, function: Callable[..., Tensors], inputs: Inputs, plain: Tensors) -> None:
        try:
            with torch.cuda.device(_device(inputs)):  # it need not be the current one
                found = self._capture(function, inputs)
            for output in found.outputs:
                output.fill_(torch.nan)  # only a replay that writes them can be equal
            if all(map(self._equal, found(inputs), plain)):
                self.captured[key] = found
            else:
                self._give_up("a replay differed from the pass it was captured from")
        except (RuntimeError, ValueError) as error:  # ValueError: the tensors are on no CUDA device
            if is_out_of_memory(error):
                self.clear()
            else:
                self._give_up(str(error).splitlines()[0])

    def _capture(self, function: Callable[..., Tensors], inputs: Inputs) -> Captured:
        held = tuple(None if each is None else each.detach().clone() for each in inputs)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # torch's libraries must have made their workspaces before a capture
            function(*held)
        torch.cuda.current_stream().wait_stream(side)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream current: the outer context gives the stream back.
        # One pool: only one graph runs at a time.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
            outputs = function(*held)
        return Captured(graph, held, outputs)

    def _equal(self, replayed: Tensor, plain: Tensor) -> bool:
        distance = torch.linalg.vector_norm(replayed - plain)
        return bool(distance <= self.tolerance * torch.linalg.vector_norm(plain))

    def _give_up(self, reason: str) -> None:
        if not self.off:
            logging.getLogger("bmtpt").info("cuda graphs are off: %s", reason)
        self.off = reason


def _device(inputs: Inputs) -> torch.device:
    return next(each.device for each in inputs if each is not None)
