"""What is timed: particles, and rows of six source tasks with the lengths that real ones have."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bmtpt.types import TokenBatch

SOURCES = {
    "mnli": (45, (2, 4)),
    "qnli": (60, (4, 6)),
    "qqp": (45, (2, 4)),
    "sst2": (25, (2, 2)),
    "squad": (180, (2, 8)),
    "record": (240, (2, 6)),
}
"""Mean text tokens, and fewest and most label tokens (end included), of the paper's source tasks."""
SHORTEST, LONGEST = 8, 256
Lengths = list[tuple[int, int]]
"""(text tokens, label tokens) of each example of a task."""


@dataclass(frozen=True)
class Case:
    """One step's work.

    Attributes:
        size: Name of the shape.
        particles: θ, [M, P, D] fp32.
        tasks: K batches of B examples.
    """

    size: str
    particles: Tensor
    tasks: Sequence[TokenBatch]

    @cached_property
    def rows(self) -> TokenBatch:
        """All N = K·B examples, task by task."""
        return TokenBatch([x for task in self.tasks for x in task.inputs], [y for t in self.tasks for y in t.targets])

    @cached_property
    def weights(self) -> Tensor:
        """[N]: with them Σ_n weight_n · loss_n is Σ_k of task k's mean loss per label token."""
        factors = [1 / sum(task.target_tokens()) for task in self.tasks for _ in task.inputs]
        return torch.tensor(factors, device=self.particles.device)

    def to(self, device: torch.device) -> Case:
        """Send the particles; token ids stay on the CPU, from where training sends them too."""
        return replace(self, particles=self.particles.to(device))


def draw_lengths(K: int, B: int, seed: int = 0) -> list[Lengths]:
    """Draw B examples for each of K tasks: mean · exp(0.35·z − 0.06) text tokens, clipped to 8…256.

    The draw goes example by example over the tasks, so that a smaller B is the beginning of a larger one. Under this
    order seed 0 pads at B = 4 as the design's own draw does, whose generator is not known.
    """
    rng = random.Random(seed)
    sources = [list(SOURCES.values())[k % len(SOURCES)] for k in range(K)]
    rounds = [[(text_length(rng, mean), rng.randint(*labels)) for mean, labels in sources] for _ in range(B)]
    return [list(task) for task in zip(*rounds, strict=True)]


def padding_cost(lengths: Sequence[Lengths], P: int, padded_to: int = LONGEST) -> float:
    """Return encoder tokens with every text padded to a length, as a multiple of the useful ones."""
    texts = [L for task in lengths for L, _ in task]
    return len(texts) * (P + padded_to) / sum(P + L for L in texts)


def make_case(size: str, M: int, P: int, lengths: Sequence[Lengths], table: Tensor, seed: int = 0) -> Case:
    """Return random tokens of the given lengths, and prompts of random rows of the embedding table [V, D]."""
    rng = torch.Generator().manual_seed(seed)
    V = len(table)

    def ids(count: int) -> Tensor:
        return torch.randint(3, V, (count,), generator=rng)

    starts = torch.randint(3, V, (M, P), generator=rng)
    tasks = [TokenBatch([ids(L) for L, _ in task], [ids(T) for _, T in task]) for task in lengths]
    return Case(size, table.cpu()[starts].clone(), tasks)


def text_length(rng: random.Random, mean: int) -> int:
    """Draw the tokens of a text of a task with this mean."""
    drawn = mean * math.exp(0.35 * rng.normalvariate(0, 1) - 0.06)
    return int(min(LONGEST, max(SHORTEST, drawn)))
