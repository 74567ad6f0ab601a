"""Densities with known moments, and SVGD on them in the one training loop.

Points are particles [M, P, D] like prompts, so kernels, scopes, damping and annealing are those of the source stage;
n = P·D is the dimension. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.posterior import annealing, svgd_direction
from bmtpt.settings import LearnSettings
from bmtpt.train.loop import Loop, Validation
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch


class Density(Protocol):
    """A distribution over n numbers."""

    def score(self, x: Float[Tensor, "M n"]) -> Float[Tensor, "M n"]:
        """Return ∇ log p at every point."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(mean, precision⁻¹)."""

    mean: Float[Tensor, " n"]
    precision: Float[Tensor, "n n"]

    def score(self, x: Float[Tensor, "M n"]) -> Float[Tensor, "M n"]:
        """−Λ(x − μ)."""
        return (self.mean - x) @ self.precision


@dataclass(frozen=True)
class Mixture:
    """C components of equal weight, N(m_c, I) or, with ``freedom`` ν, Student's t_ν(m_c, I).

    Attributes:
        modes: m_c.
        freedom: ν > 2, or None for Gaussians.
    """

    modes: Float[Tensor, "C n"]
    freedom: float | None = None

    def score(self, x: Float[Tensor, "M n"]) -> Float[Tensor, "M n"]:
        """Σ_c r_c(x) ∇ log p_c(x), r_c the share of component c in the density at x."""
        differences = self.modes - x[:, None]  # [M, C, n]
        squared = differences.square().sum(-1)
        if self.freedom is None:
            logs, pull = -squared / 2, torch.ones_like(squared)
        else:
            v, n = self.freedom, x.shape[1]
            logs, pull = -(v + n) / 2 * torch.log1p(squared / v), (v + n) / (v + squared)
        return ((torch.softmax(logs, dim=1) * pull)[..., None] * differences).sum(1)

    @property
    def mean(self) -> Float[Tensor, " n"]:
        return self.modes.mean(0)

    @property
    def variance(self) -> float:
        """Mean over the numbers of their variance: that of a component, and that of the modes around their mean."""
        within = 1.0 if self.freedom is None else self.freedom / (self.freedom - 2)
        return within + float((self.modes - self.mean).square().mean())


class SvgdOnDensity:
    """What the training loop needs: the particles, and −φ as their gradient."""

    def __init__(self, density: Density, particles: Float[Tensor, "M P D"], settings: LearnSettings) -> None:
        self.density = density
        self.particles = particles.clone().requires_grad_(True)
        self.settings = settings

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("particles", [self.particles], self.settings.learning_rate)]

    def draw(self, step: int) -> Mapping[str, TokenBatch]:
        """There are no examples: the density is known."""
        return {}

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave −φ in the particles' gradient; return ‖φ‖ in place of a loss."""
        settings, particles = self.settings, self.particles.detach()
        score = self.density.score(particles.flatten(1)).view_as(particles)
        phi, _ = svgd_direction(
            particles,
            score,
            kernel=settings.kernel,
            bandwidth=settings.bandwidth,
            scope=settings.scope,
            repulsion=settings.repulsion,
            score_scale=annealing(step, settings.steps, settings.annealing),
        )
        self.particles.grad = -phi
        return {"phi": [float(phi.norm())]}

    def validate(self, losses: Sequence[float]) -> Validation:
        """Nothing is selected."""
        return Validation(ranking=[], events=[])


def svgd(density: Density, start: Float[Tensor, "M P D"], settings: LearnSettings) -> tuple[Tensor, float]:
    """Move particles from a start to a density; return them as [M, n], and the seconds that took."""
    outcome = Loop(SvgdOnDensity(density, start, settings), settings).run()
    return outcome.tensors[0].flatten(1), outcome.state.seconds
