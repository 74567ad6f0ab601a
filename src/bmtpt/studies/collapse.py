"""Mode collapse and variance collapse where the truth is known: SVGD on mixtures, against dimension (open question 2).

covered_modes    modes that some particle is at: in the span of the modes, within half the separation
mean_error       ‖θ̄ − E θ‖ in standard deviations of the whole distribution, √(n · variance)
variance_ratio   variance of the particles around θ̄ over the distribution's own, both averaged over the numbers
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.studies.analytic import AnalyticBench, Measured
from bmtpt.studies.densities import Mixture, svgd
from bmtpt.studies.jobs import Job
from bmtpt.studies.spec import CollapseSpec
from bmtpt.train.events import Listener

FREEDOM = 3.0
"""Of Student's t: the heaviest tails of a whole number that still have a variance."""


def make_target(study: CollapseSpec, distribution: str, dimension: int, seed: int) -> Mixture:
    """Return a distribution whose modes lie `separation` from the centre: at right angles, or, where the space has not
    enough of these, evenly on a circle. `gaussian` has one mode, at the centre.
    """
    if distribution == "gaussian":
        return Mixture(torch.zeros(1, dimension, dtype=torch.float64))
    modes = study.separation * _directions(study.modes, dimension, seed)
    return Mixture(modes, FREEDOM if distribution == "student_mixture" else None)


def _directions(count: int, dimension: int, seed: int) -> Float[Tensor, "C n"]:
    if dimension >= count:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(dimension, count, generator=generator, dtype=torch.float64)
        orthonormal: Tensor = torch.linalg.qr(drawn)[0]
        return orthonormal.T
    angles = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / count
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.cat([circle, circle.new_zeros(count, dimension - 2)], dim=1)


def covered_modes(particles: Float[Tensor, "M n"], target: Mixture, within: float) -> int:
    """Count the modes that some particle is at: in the span of the modes, the nearest and closer than ``within``.

    Outside of that span all modes are the same, and a draw from any of them lies about √n away.
    """
    basis = torch.linalg.qr(target.modes.T)[0]
    distances = torch.cdist(particles @ basis, target.modes @ basis)
    closest, nearest = distances.min(dim=1)
    return len(set(nearest[closest <= within].tolist()))


def figures(particles: Float[Tensor, "M n"], target: Mixture, within: float) -> dict[str, float]:
    """Return the three figures of this module's first lines."""
    mean = particles.mean(0)
    n = particles.shape[1]
    return {
        "covered_modes": float(covered_modes(particles, target, within)),
        "mean_error": float((mean - target.mean).norm()) / (n * target.variance) ** 0.5,
        "variance_ratio": float((particles - mean).square().mean()) / target.variance,
    }


class CollapseBench(AnalyticBench[CollapseSpec]):
    """SVGD with every variant, on every distribution and dimension."""

    metrics = frozenset({"covered_modes", "mean_error", "variance_ratio"})
    primary = "variance_ratio"

    def settings(self) -> list[tuple[str, str, int]]:
        """Return target name, point of the variant's name, and dimension."""
        study = self.study
        return [(name, f"dimension={n}", n) for name in study.distributions for n in study.dimensions]

    def measure(self, job: Job, listener: Listener | None) -> Measured:
        _, distribution, dimension, seed = job.work
        study = self.study_of(job)
        target = make_target(study, distribution, dimension, seed)
        generator = torch.Generator().manual_seed(seed)
        shape = study.learn.particles, dimension // study.row_width, study.row_width
        start = study.start_std * torch.randn(shape, generator=generator, dtype=torch.float64)
        particles, seconds = svgd(target, start, study.learn)
        return Measured(figures(particles, target, study.separation / 2), particles.numel(), seconds)
