"""Mode collapse and variance collapse where the truth is known: SVGD on mixtures, against dimension.

    covered modes    modes that some particle is at: in the span of the modes, closer than half the separation
    mean error       ‖θ̄ − E θ‖ in standard deviations of the whole distribution, √(n · variance)
    variance ratio   variance of the particles around θ̄ over the distribution's own, both averaged over the numbers

On N(μ, I) with n ≥ M − 1 the variance ratio of the RBF kernel has a closed form, (M−1)/M · log(M+1)/n.

    python examples/collapse.py                                            # seconds
    python examples/collapse.py --dimensions 2 10 50 200 --seeds 5 --steps 400 --particles 10
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bmtpt.posterior.svgd import annealing, svgd_direction

FREEDOM = 3.0
"""Of Student's t: the smallest whole number with a variance."""

ROW_WIDTH = 2
"""D: a point of n numbers is seen as n/D rows, which the kernel scope `row` compares one by one."""

CURES: dict[str, dict[str, Any]] = {
    "as the paper": {},
    "repulsion × 10": {"repulsion": 10.0},
    "linear annealing": {"annealing": "linear"},
    "one kernel per row": {"scope": "row"},
    "linear kernel": {"kernel": "linear"},
}


@dataclass(frozen=True)
class Mixture:
    """C components of equal weight, N(m_c, I) or, with ``freedom`` ν > 2, Student's t_ν(m_c, I)."""

    modes: Tensor
    freedom: float | None = None

    def score(self, x: Tensor) -> Tensor:
        """Return Σ_c r_c(x) ∇ log p_c(x), r_c the share of component c in the density at x [M, n]."""
        differences = self.modes - x[:, None]  # [M, C, n]
        squared = differences.square().sum(-1)
        if self.freedom is None:
            logs, pull = -squared / 2, torch.ones_like(squared)
        else:
            v, n = self.freedom, x.shape[1]
            logs, pull = -(v + n) / 2 * torch.log1p(squared / v), (v + n) / (v + squared)
        return ((torch.softmax(logs, dim=1) * pull)[..., None] * differences).sum(1)

    @property
    def variance(self) -> float:
        """Mean over the numbers of their variance: that of a component plus that of the modes around their mean."""
        within = 1.0 if self.freedom is None else self.freedom / (self.freedom - 2)
        return within + float((self.modes - self.modes.mean(0)).square().mean())


def make_target(name: str, dimension: int, *, modes: int, separation: float, seed: int) -> Mixture:
    """Return a distribution whose modes lie ``separation`` from the centre.

    They lie at right angles or, where the space has too few dimensions, evenly on a circle; `gaussian` has one mode.
    """
    if name == "gaussian":
        return Mixture(torch.zeros(1, dimension, dtype=torch.float64))
    if dimension >= modes:
        drawn = torch.randn(dimension, modes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        directions = torch.linalg.qr(drawn)[0].T
    else:
        angles = 2 * torch.pi * torch.arange(modes, dtype=torch.float64) / modes
        circle = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = torch.cat([circle, circle.new_zeros(modes, dimension - 2)], dim=1)
    return Mixture(separation * directions, FREEDOM if name == "student mixture" else None)


def covered_modes(particles: Tensor, target: Mixture, within: float) -> int:
    """Count the modes that some particle is at: in the span of the modes, the nearest and closer than ``within``.

    Outside that span all modes are the same, and a draw from any of them lies about √n away.
    """
    basis = torch.linalg.qr(target.modes.T)[0]
    closest, nearest = torch.cdist(particles @ basis, target.modes @ basis).min(dim=1)
    return len(set(nearest[closest <= within].tolist()))


def svgd(target: Mixture, start: Tensor, steps: int, settings: Mapping[str, Any], rate: float = 0.1) -> Tensor:
    """Move particles [M, n] to the target by SVGD under Adam, its rate falling to zero."""
    kernel = {name: value for name, value in settings.items() if name != "annealing"}
    theta = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        points = theta.detach().unflatten(1, (-1, ROW_WIDTH))  # [M, n/D, D]
        score = target.score(theta.detach()).view_as(points)
        scale = annealing(step, steps, settings.get("annealing", "none"))
        phi, _ = svgd_direction(points, score, score_scale=scale, **kernel)
        theta.grad = -phi.flatten(1)
        optimiser.step()
    return theta.detach()


def figures(particles: Tensor, target: Mixture, within: float) -> dict[str, float]:
    """Return the three figures of this module's first lines."""
    mean, n = particles.mean(0), particles.shape[1]
    return {
        "covered modes": float(covered_modes(particles, target, within)),
        "mean error": float((mean - target.modes.mean(0)).norm()) / (n * target.variance) ** 0.5,
        "variance ratio": float((particles - mean).square().mean()) / target.variance,
    }


def measure(
    name: str, dimension: int, seed: int, cure: str, *, particles: int, steps: int, modes: int, separation: float
) -> dict[str, float]:
    """Return the figures of one run from particles that are drawn widely around the centre."""
    target = make_target(name, dimension, modes=modes, separation=separation, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = separation / 2 * torch.randn(particles, dimension, generator=generator, dtype=torch.float64)
    return figures(svgd(target, start, steps, CURES[cure]), target, separation / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = ["gaussian", "gaussian mixture", "student mixture"]
    parser.add_argument("--targets", nargs="+", choices=targets, default=targets[:2])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 10, 50], help="multiples of 2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--modes", type=int, default=4)
    parser.add_argument("--separation", type=float, default=6.0)
    options = vars(parser.parse_args())
    names, dimensions, seeds = (options.pop(name) for name in ("targets", "dimensions", "seeds"))
    print(f"{'target':<18}{'n':>4}  {'cure':<20}{'covered modes':>14}{'mean error':>12}{'variance ratio':>16}")
    for name in names:
        for n in dimensions:
            for cure in CURES:
                runs = [measure(name, n, seed, cure, **options) for seed in range(seeds)]
                modes, error, ratio = (sum(run[key] for run in runs) / seeds for key in runs[0])
                print(f"{name:<18}{n:>4}  {cure:<20}{modes:>14.1f}{error:>12.3f}{ratio:>16.3f}")


if __name__ == "__main__":
    main()
