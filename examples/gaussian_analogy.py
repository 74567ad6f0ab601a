"""Where averaging fails and SVGD does not: the product of Gaussian task posteriors (arXiv 2402.08594, appendix A).

    Π_k N(θ; μ_k, Σ_k) ∝ N(θ; m, Λ⁻¹)        Λ = Σ_k Σ_k⁻¹,   m = Λ⁻¹ Σ_k Σ_k⁻¹ μ_k

In general m is not a convex combination of the μ_k. The error of an estimate t is its distance from m in standard
deviations of the product, √((t − m)ᵀ Λ (t − m)). In the plane m lies among the convex combinations for some draws, in
more dimensions for none.

    python examples/gaussian_analogy.py                                    # seconds
    python examples/gaussian_analogy.py --seeds 10 --plot gaussian.svg     # with a picture of the plane
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from bmtpt.posterior.svgd import svgd_direction


class Gaussian(NamedTuple):
    """N(mean, precision⁻¹)."""

    mean: Tensor
    precision: Tensor

    def error(self, estimate: Tensor) -> float:
        """Return the distance from the mean in standard deviations."""
        difference = estimate - self.mean
        return float((difference @ self.precision @ difference).sqrt())


def draw_posteriors(tasks: int, dimension: int, anisotropy: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return means [K, n] from N(0, 4I) and precisions [K, n, n] with random axes.

    Standard deviations go from 1/√a to √a (a: anisotropy).
    """
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(tasks, dimension, generator=generator, dtype=torch.float64)
    stds = anisotropy ** torch.linspace(-0.5, 0.5, dimension, dtype=torch.float64)
    axes, _ = torch.linalg.qr(torch.randn(tasks, dimension, dimension, generator=generator, dtype=torch.float64))
    return means, axes @ torch.diag(stds**-2) @ axes.transpose(1, 2)


def product_of(means: Tensor, precisions: Tensor) -> Gaussian:
    """Return N(m, Λ⁻¹)."""
    precision = precisions.sum(0)
    weighted = (precisions @ means[..., None]).sum(0)[:, 0]
    return Gaussian(torch.linalg.solve(precision, weighted), precision)


def best_convex_combination(means: Tensor, product: Gaussian) -> Tensor:
    """Return the convex combination of the μ_k with the least error."""
    # ‖L w − b‖ with weights that sum to one: the heavy last row enforces the sum.
    root = torch.linalg.cholesky(product.precision).T
    columns = root @ means.T
    heavy = 1e6 * columns.abs().max()
    system = torch.cat([columns, heavy.expand(1, len(means))])
    weights, _ = nnls(system.numpy(), torch.cat([root @ product.mean, heavy[None]]).numpy())
    return torch.from_numpy(weights / weights.sum()) @ means


def svgd(product: Gaussian, start: Tensor, steps: int, rate: float = 0.1) -> Tensor:
    """Move particles [M, n] to the product by SVGD under Adam, its rate falling to zero."""
    theta = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        particles = theta.detach()
        score = (product.mean - particles) @ product.precision
        phi, _ = svgd_direction(particles[:, None], score[:, None])
        theta.grad = -phi[:, 0]
        optimiser.step()
    return theta.detach()


def estimates(
    dimension: int, seed: int, *, tasks: int, anisotropy: float, particles: int, steps: int
) -> dict[str, float]:
    """Return the error of every way to combine K posteriors."""
    means, precisions = draw_posteriors(tasks, dimension, anisotropy, seed)
    product = product_of(means, precisions)
    generator = torch.Generator().manual_seed(seed)
    start = means.mean(0) + torch.randn(particles, dimension, generator=generator, dtype=torch.float64)
    return {
        "mean of the means": product.error(means.mean(0)),
        "best single mean": min(map(product.error, means)),
        "best convex combination": product.error(best_convex_combination(means, product)),
        "SVGD": product.error(svgd(product, start, steps).mean(0)),
    }


def plot(path: Path, *, tasks: int, anisotropy: float, particles: int, steps: int, seed: int) -> None:
    """Draw the plane: the posteriors, their product, the best average and the particles."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    means, precisions = draw_posteriors(tasks, 2, anisotropy, seed)
    product = product_of(means, precisions)
    start = means.mean(0) + torch.randn(particles, 2, generator=torch.Generator().manual_seed(seed)).double()
    circle = np.stack([np.cos(angles := np.linspace(0, 2 * np.pi, 100)), np.sin(angles)])
    figure, axis = plt.subplots(figsize=(7, 5))
    for mean, precision in (*zip(means, precisions, strict=True), product):
        outline = np.linalg.cholesky(np.linalg.inv(precision.numpy())) @ circle
        axis.plot(*(mean.numpy()[:, None] + outline), linewidth=3 if mean is product.mean else 1)
    axis.fill(*means.numpy().T, alpha=0.15, label="convex combinations of the means")  # three tasks: a triangle
    axis.plot(*svgd(product, start, steps).numpy().T, "o", markersize=4, label="SVGD particles")
    axis.plot(*best_convex_combination(means, product).numpy(), "s", fillstyle="none", label="best convex combination")
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--seeds", type=int, default=3, help="draws of the posteriors, from seed 3 on")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--anisotropy", type=float, default=5.0)
    parser.add_argument("--particles", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--plot", type=Path, help="where a picture of the plane goes")
    options = vars(parser.parse_args())
    dimensions, seeds, picture = options.pop("dimensions"), range(3, 3 + options.pop("seeds")), options.pop("plot")
    found = {n: [estimates(n, seed, **options) for seed in seeds] for n in dimensions}
    print("error in standard deviations, mean over draws".ljust(48), *(f"n = {n:<7}" for n in dimensions))
    for name in found[dimensions[0]][0]:
        print(name.ljust(48), *(f"{np.mean([each[name] for each in found[n]]):<11.3f}" for n in dimensions))
    if picture:
        plot(picture, seed=seeds[0], **options)


if __name__ == "__main__":
    main()
