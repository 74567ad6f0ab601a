"""How wide a readout's prior should be, by tasks like the one to come: empirical Bayes (docs/method.md, section 5).

    nll_k(σ) = mean over tasks and draws of k labels of −log p(y|x) of a task's other rows,
               by the MAP readout of the draw under the widths σ = (σ_b, σ_w, σ_a)
    σ̂_k      = argmin_σ nll_k(σ)

Each task, seen through k random labels, is a draw from the prior of a, b and w. The draws are the same for every σ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.posterior.readout import Labelled, Widths

SHOTS = (4, 16, 64)
"""Numbers of labels that widths are chosen for."""

GRID = tuple(Widths(b, w, a) for a, w, b in product((0.0, 0.3), (0.0, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)))
"""Widths that are compared, the simplest first, which fits nothing: of equals the first is taken."""

DRAWS = 4
"""Draws of k labels per task."""


def held_back_nll(
    task: Labelled, shots: int, grid: Sequence[Widths] = GRID, *, draws: int = DRAWS, seed: int = 0
) -> Float[Tensor, " G"]:
    """Return one task's mean NLL in nats, at each of G widths, of the rows that a readout was not fitted to."""
    found = torch.zeros(draws, len(grid), dtype=torch.float64)
    for d in range(draws):
        order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(seed + d))
        taught, rest = task.rows(order[:shots]), task.rows(order[shots:])
        for g, widths in enumerate(grid):
            z = taught.fit(widths).logits(rest.scores, rest.states)
            found[d, g] = -z.log_softmax(dim=1)[range(len(rest.labels)), rest.labels].mean()
    return found.mean(dim=0)


def width_curves(
    tasks: Sequence[Labelled], grid: Sequence[Widths] = GRID, *, seed: int = 0
) -> Mapping[int, Float[Tensor, " G"]]:
    """Return nll_k at each of G widths, by k; a task counts for a k that leaves at least as many rows to score."""
    curves = {}
    for k in SHOTS:
        if own := [held_back_nll(task, k, grid, seed=seed) for task in tasks if len(task.labels) >= 2 * k]:
            curves[k] = torch.stack(own).mean(dim=0)
    return curves
