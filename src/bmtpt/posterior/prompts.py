"""What a soft prompt is: P rows of D numbers in the space of the language model's input embeddings.

Initialisers return `[P, D]` (one prompt) or `[M, P, D]` (particles) and take their randomness as a generator.
A target prompt is decomposed as θ = A ∘ (u vᵀ): docs/method.md, section 2, after Wang et al. 2023 (MPT).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from bmtpt.errors import SettingsError


def from_vocabulary(rows: Float[Tensor, "N D"], prompt_length: int, generator: Generator) -> Float[Tensor, "P D"]:
    """Draw P different rows among the embeddings of frequent tokens, as a new tensor of their dtype.

    Args:
        rows: Input embeddings of the tokens to draw from (the paper: of the 5,000 most frequent).
        prompt_length: P.
        generator: Its state advances; the same state gives the same prompt on every device.

    Raises:
        SettingsError: P is not between 1 and the number of tokens.
    """
    N = len(rows)
    if not 1 <= prompt_length <= N:
        raise SettingsError(f"prompt_length is {prompt_length}: give 1 to {N}, the number of tokens to draw from")
    order = torch.randperm(N, generator=generator, device=generator.device)
    return rows.detach()[order[:prompt_length].to(rows.device)]


def independent_particles(
    rows: Float[Tensor, "N D"], prompt_length: int, particles: int, generator: Generator
) -> Float[Tensor, "M P D"]:
    """Start each particle from another draw (the paper). Errors as `from_vocabulary`.

    On FLAN-T5-small such particles stayed near their own starts: each was good and their mean was not
    (docs/results.md; `bmtpt.posterior.history.mean_gap_warning`).
    """
    _check_particles(particles)
    return torch.stack([from_vocabulary(rows, prompt_length, generator) for _ in range(particles)])


def around(prompt: Float[Tensor, "P D"], particles: int, jitter: float, generator: Generator) -> Float[Tensor, "M P D"]:
    """Start particles around a prompt, for example one trained with M = 1.

    Args:
        prompt: The centre.
        particles: M.
        jitter: Standard deviation of the Gaussian noise on every number, in embedding units. With 0 the
            particles are identical, and SVGD then moves them as one.
        generator: Its state advances.

    Raises:
        SettingsError: Less than one particle, or a jitter that is negative or not finite.
    """
    _check_particles(particles)
    if not 0 <= jitter < math.inf:
        raise SettingsError(f"jitter is {jitter}: give a standard deviation of at least 0 in embedding units")
    shape = (particles, *prompt.shape)
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=prompt.dtype)
    return prompt.detach() + jitter * noise.to(prompt.device)


def compose(
    full: Float[Tensor, "*#M P D"], row: Float[Tensor, "*#M P"], col: Float[Tensor, "*#M D"]
) -> Float[Tensor, "*M P D"]:
    """Return θ = A ∘ (u vᵀ), differentiable; leading axes broadcast (particles against one task's u and v)."""
    return full * (row[..., :, None] * col[..., None, :])


def _check_particles(particles: int) -> None:
    if particles < 1:
        raise SettingsError(f"particles is {particles}: give at least 1")
