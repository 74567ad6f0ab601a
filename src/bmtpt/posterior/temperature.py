"""One temperature for a task's answers, MAP under a log-normal prior (docs/method.md, section 5).

    p(y|x) = (1/M) Σ_m softmax(z_m(x)/T)_y                      log T ~ N(0, σ_T²)
    MAP: minimise −Σ_n log p(y_n|x_n) + (log T)²/(2 σ_T²)        the rows n are none that z was fitted to

T > 1 takes confidence back and T < 1 adds to it; the answer of a single prompt stays the same (Guo et al. 2017).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

WIDTH = 0.5
"""σ_T: 95 % of the prior lies between T = 0.38 and 2.7. If all of four rows are right, their likelihood alone sends T
to 0; a hundred rows outweigh the prior."""

LIMIT = 3.0
"""Largest |log T|, six widths: T is between 0.05 and 20."""

STEP = 0.25
"""Distance in log T of the points between which the minimum is looked for: it need not be the only one."""


def log_shares(logits: Float[Tensor, "M N C"], temperature: float = 1.0) -> Float[Tensor, "N C"]:
    """Return log p of every answer, averaged over the prompts' probabilities, float64."""
    each = (logits.double() / temperature).log_softmax(dim=2)
    return each.logsumexp(dim=0) - math.log(len(each))


def fit_temperature(logits: Float[Tensor, "M N C"], labels: Int[Tensor, " N"], width: float = WIDTH) -> float:
    """Return the MAP temperature of N rows; 1 of none.

    Args:
        logits: z of M prompts, which share T.
        labels: y.
        width: σ_T.
    """

    def objective(log_t: float) -> float:
        log_p = log_shares(logits, math.exp(log_t)).gather(1, labels[:, None])
        return -float(log_p.sum()) + log_t**2 / (2 * width**2)

    grid = np.arange(-LIMIT, LIMIT + STEP, STEP)
    best = grid[int(np.argmin([objective(each) for each in grid]))]
    bounds = (max(best - STEP, -LIMIT), min(best + STEP, LIMIT))
    found = minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return math.exp(found.x)
