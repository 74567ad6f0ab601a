"""Predict the time of a step on many ranks: the busiest rank's passes, the exchange, and what every rank does alone.

    T(W) = max_r Σ_{passes of r} (b + flop/R)  +  c·α·⌈log₂ W⌉ + (n_r + 1)·s·(W − 1)/W / β  +  rest

The passes and their ranks are those that the code makes (`passes`, `shared_out`). Of a machine: b seconds a pass, R
flop a second, α seconds of latency, β bytes a second; of a step: s bytes of gradient, n_r the most passes of a rank,
c collectives. What was measured is fitted from result lines; what was not is an assumption with its source (`GPU`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from bmtpt.backbone.passes import CUDA_FACTOR, PASS_COST, TOKEN_BUDGET, Pass, passes
from bmtpt.backbone.ranked import shared_out
from cases import draw_lengths
from flops import sequence_flop
from shapes import SHAPES

COLLECTIVES = 8
"""Of a step: two gathers of objects in two collectives each, two of the exact sum, and one spare for each."""
WORLDS = tuple(2**i for i in range(11))
BUDGETS = tuple(2**i for i in range(8, 15))
PAYS = 0.5
"""More ranks pay as long as each does at least this share of the work that one alone would do in the time."""


@dataclass(frozen=True)
class Work:
    """A step: N = K·B examples of the lengths of the paper's tasks with M prompts of P rows."""

    size: str
    M: int
    K: int
    B: int
    P: int = 100

    @cached_property
    def tasks(self) -> list[list[tuple[int, int]]]:
        """Positions and label tokens of each example, by task."""
        return [[(self.P + L, T) for L, T in task] for task in draw_lengths(self.K, self.B)]

    @cached_property
    def examples(self) -> list[tuple[int, int]]:
        return [example for task in self.tasks for example in task]

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.M * self.P * SHAPES[self.size].D

    @cache  # noqa: B019 (a few steps, as long as the program)
    def cut(self, budget: int) -> list[Pass]:
        return passes([S for S, _ in self.examples], self.M, budget)

    def flop(self, part: Pass) -> int:
        """Return the operations of a pass, padding included."""
        longest = max(self.examples[i][0] for i in part.rows)
        labels = max(self.examples[i][1] for i in part.rows)
        copies = part.prompts.stop - part.prompts.start
        return copies * len(part.rows) * sequence_flop(SHAPES[self.size], longest, labels)


@dataclass(frozen=True)
class Machine:
    """What a step's time depends on besides its work.

    Attributes:
        rate: Flop a second.
        per_pass: Seconds of a pass, whatever its size.
        latency: Seconds of a collective, per doubling of the ranks.
        bandwidth: Bytes a second that a rank sends within a node, and between nodes.
        node: Ranks of a node.
        rest: Seconds of a step that every rank spends alike: SVGD, the optimiser, drawing rows.
        factor: How many times the token budget of a CPU a pass may have.
    """

    rate: float
    per_pass: float
    latency: float
    bandwidth: tuple[float, float]
    node: int
    rest: float
    factor: int = 1


GPU = Machine(0.4 * 989e12, 15e-3, 20e-6, (450e9, 50e9), 8, 5e-3, CUDA_FACTOR)
"""An H100 SXM in nodes of 8. Assumptions all; `ASSUMED` says where they are from."""

ASSUMED = (
    (
        "rate",
        "40 % of 989 TFLOP/s",
        "NVIDIA's H100 SXM data sheet, dense bf16; 38 to 43 % is what Llama 3's report reached",
    ),
    ("cost of a pass", "15 ms", "3,000 kernels of a T5-base's layers, forward and backward, at 5 µs a launch"),
    ("latency", "20 µs per doubling of the ranks", "a usual order of magnitude of NCCL's small messages"),
    ("within a node", "450 GB/s each way, 8 GPUs", "NVIDIA's data sheet: NVLink 900 GB/s, both ways together"),
    ("between nodes", "50 GB/s a GPU", "one 400 Gb/s network card for each, as in NVIDIA's DGX H100"),
    ("rest of a step", "5 ms", "SVGD and the optimiser on a few MB: a few dozen kernels and one synchronisation"),
)


@dataclass(frozen=True)
class Step:
    """The predicted seconds of a step, how many passes it has, and the most that one rank has."""

    passes: int
    most: int
    compute: float
    exchange: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange + self.rest


def predicted(work: Work, machine: Machine, ranks: int, budget: int = TOKEN_BUDGET) -> Step:
    parts = work.cut(budget * machine.factor)
    owners = shared_out([PASS_COST + part.tokens for part in parts], ranks)
    loads = [0.0] * ranks
    for part, owner in zip(parts, owners, strict=True):
        loads[owner] += machine.per_pass + work.flop(part) / machine.rate
    exchange, most = 0.0, max(map(owners.count, set(owners)))
    if ranks > 1:
        sent = (most + 1) * work.gradient_bytes * (ranks - 1) / ranks
        exchange = COLLECTIVES * machine.latency * math.ceil(math.log2(ranks))
        exchange += sent / machine.bandwidth[ranks > machine.node]
    return Step(len(parts), most, max(loads), exchange, machine.rest)


def best(work: Work, machine: Machine, ranks: int) -> tuple[int, Step]:
    """Return the token budget with which a step is fastest, and the step."""
    found = {budget: predicted(work, machine, ranks, budget) for budget in BUDGETS}
    budget = min(found, key=lambda each: found[each].seconds)
    return budget, found[budget]


def pays_up_to(work: Work, machine: Machine) -> int:
    """Return the most ranks, a power of two, that are worth having."""
    alone = best(work, machine, 1)[1].seconds
    worth = [W for W in WORLDS if alone / best(work, machine, W)[1].seconds >= PAYS * W]
    return max(worth)


def shares(work: Work, ranks: int, budget: int = TOKEN_BUDGET) -> dict[str, float]:
    """Return which share of a perfect speed-up each way to spread the work leaves, by the busiest rank's tokens.

    Whole examples with all their particles (what the code does), whole tasks, or particles with all examples.
    """
    S = [positions for positions, _ in work.examples]
    useful = work.M * sum(S)

    def cost(lengths: Sequence[int], copies: int) -> list[int]:
        return [PASS_COST + part.tokens for part in passes(lengths, copies, budget)]

    def busiest(costs: Sequence[int]) -> int:
        owners = shared_out(costs, ranks)
        return max(sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(ranks))

    groups = [work.M // ranks + (r < work.M % ranks) for r in range(ranks)]
    found = {
        "examples": busiest(cost(S, work.M)),
        "tasks": busiest([sum(cost([s for s, _ in task], work.M)) for task in work.tasks]),
        "particles": max(sum(cost(S, group)) for group in groups if group),
    }
    return {name: useful / (ranks * tokens) for name, tokens in found.items()}


# Fitted to what was measured


def fitted(lines: Sequence[Mapping[str, Any]]) -> Machine:
    """Return the machine that result lines of `scaling_out.py` were measured on, from its CPU seconds."""
    alone = [line for line in lines if line["ranks"] == 1]
    pairs = [(line["work"], each) for line in alone for each in line["passes"]]
    flop, seconds = (np.array(values) for values in zip(*((e["flop"], e["cpu"]) for _, e in pairs), strict=True))
    rate, per_pass = _line(flop, seconds)
    shared = list(_exchanges(lines))
    doublings, sent, took = (np.array(values) for values in zip(*shared, strict=True))
    latency, per_byte = np.linalg.lstsq(np.stack([COLLECTIVES * doublings, sent], 1), took, rcond=None)[0]
    rest = float(np.median([line["rest"] for line in alone]))
    beta = 1 / max(float(per_byte), 1e-12)
    return Machine(1 / rate, max(per_pass, 0.0), max(float(latency), 0.0), (beta, beta), 8, rest)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset)


def _exchanges(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, float, float]]:
    """Yield doublings of the ranks, bytes that the busiest rank sends, and the seconds of the exchange alone."""
    for line in lines:
        if (W := line["ranks"]) > 1:
            sent = (line["most_passes"] + 1) * line["gradient_bytes"] * (W - 1) / W
            yield math.ceil(math.log2(W)), sent, line["exchange"]
