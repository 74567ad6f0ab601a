"""Target priors from a source posterior, as penalties −log p(θ) without their constants (docs/method.md, section 2).

A penalty belongs to the *summed* negative log-likelihood of the N_T training examples; a loop that trains on the mean
over examples divides it by N_T, so that σ keeps its meaning whatever the batch size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_penalty(
    prompts: Float[Tensor, "R P D"], mean: Float[Tensor, "*R P D"], std: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Return ‖θ_r − θ̄‖² / (2σ_r²): the paper's prior N(θ̄, σ²I), of one mean or one each. An infinite σ gives 0."""
    return (prompts - mean).pow(2).sum(dim=(1, 2)) / (2 * std**2)


def mixture_penalty(
    prompts: Float[Tensor, "R P D"], particles: Float[Tensor, "M P D"], std: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Return −log (1/M) Σ_m exp(−‖θ_r − θ_m‖² / (2σ_r²)): one Gaussian per particle, exactly, by logsumexp."""
    differences = prompts[:, None] - particles[None]  # [R, M, P, D]
    exponents = -differences.pow(2).sum(dim=(2, 3)) / (2 * std[:, None] ** 2)  # [R, M]
    return math.log(len(particles)) - torch.logsumexp(exponents, dim=1)
