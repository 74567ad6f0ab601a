"""Where averaging fails and SVGD does not: the product of Gaussian task posteriors (the paper's Appendix A).

    Π_k N(θ; μ_k, Σ_k) ∝ N(θ; m, Λ⁻¹)        Λ = Σ_k Σ_k⁻¹,   m = Λ⁻¹ Σ_k Σ_k⁻¹ μ_k

m is in general no convex combination of the μ_k. The error of an estimate t is its distance from m in standard
deviations of the product, √((t − m)ᵀ Λ (t − m)).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.results import Result
from bmtpt.studies.analytic import AnalyticBench, Measured
from bmtpt.studies.densities import Gaussian, svgd
from bmtpt.studies.jobs import Job
from bmtpt.studies.spec import GaussianSpec
from bmtpt.train.events import Listener

PICTURE = "gaussian.svg"


class Posteriors(NamedTuple):
    """K Gaussian task posteriors N(μ_k, Λ_k⁻¹)."""

    means: Float[Tensor, "K n"]
    precisions: Float[Tensor, "K n n"]

    def product(self) -> Gaussian:
        """Return N(m, Λ⁻¹)."""
        precision = self.precisions.sum(0)
        weighted = (self.precisions @ self.means[..., None]).sum(0)[:, 0]
        return Gaussian(torch.linalg.solve(precision, weighted), precision)


def draw_posteriors(tasks: int, dimension: int, anisotropy: float, seed: int) -> Posteriors:
    """Draw means from N(0, 4I), and covariances with random axes and standard deviations 1/√a to √a (a: anisotropy)."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(tasks, dimension, generator=generator, dtype=torch.float64)
    stds = anisotropy ** torch.linspace(-0.5, 0.5, dimension, dtype=torch.float64)
    axes, _ = torch.linalg.qr(torch.randn(tasks, dimension, dimension, generator=generator, dtype=torch.float64))
    return Posteriors(means, axes @ torch.diag(stds**-2) @ axes.transpose(1, 2))


def best_convex_combination(posteriors: Posteriors) -> Float[Tensor, " n"]:
    """Return the convex combination of the μ_k with the least error."""
    from scipy.optimize import nnls

    product = posteriors.product()
    # ‖L w − b‖ with weights that sum to one: the last row says so, with a weight that leaves no room for error.
    root = torch.linalg.cholesky(product.precision).T
    columns = root @ posteriors.means.T
    heavy = 1e6 * columns.abs().max()
    system = torch.cat([columns, heavy.expand(1, len(posteriors.means))])
    weights, _ = nnls(system.numpy(), torch.cat([root @ product.mean, heavy[None]]).numpy())
    return torch.from_numpy(weights / weights.sum()) @ posteriors.means


def error(estimate: Float[Tensor, " n"], product: Gaussian) -> float:
    """Return the distance from the product's mean, in standard deviations of the product."""
    difference = estimate - product.mean
    return float((difference @ product.precision @ difference).sqrt())


class GaussianBench(AnalyticBench[GaussianSpec]):
    """SVGD on the product, the mean of the μ_k, their best convex combination and their best single one."""

    averages = ("mean_of_means", "best_convex", "best_single")
    metrics = frozenset({"mean_error"})

    def settings(self) -> list[tuple[str, str, int]]:
        """Return target name, point of the variant's name, and dimension."""
        return [("gaussian product", f"dimension={n}", n) for n in self.study.dimensions]

    def measure(self, job: Job, listener: Listener | None) -> Measured:
        method, _, dimension, seed = job.work
        posteriors = draw_posteriors(self.study.tasks, dimension, self.study.anisotropy, seed)
        product = posteriors.product()
        if method == "svgd":
            particles, seconds = svgd_on(product, posteriors, self.study_of(job), seed)
            return Measured({"mean_error": error(particles.mean(0), product)}, particles.numel(), seconds)
        return Measured({"mean_error": error(self._average(method, posteriors), product)}, 0, 0.0)

    def _average(self, method: str, posteriors: Posteriors) -> Float[Tensor, " n"]:
        if method == "best_convex":
            return best_convex_combination(posteriors)
        if method == "mean_of_means":
            return posteriors.means.mean(0)
        product = posteriors.product()
        best: Tensor = min(posteriors.means, key=lambda mean: error(mean, product))
        return best

    def finish(self, results: Sequence[Result], folder: Path) -> None:
        """Draw the plane, if it is among the dimensions."""
        if 2 in self.study.dimensions:
            write_text_atomically(folder / PICTURE, picture(self.study))


def svgd_on(product: Gaussian, posteriors: Posteriors, study: GaussianSpec, seed: int) -> tuple[Tensor, float]:
    """Run SVGD from particles drawn around the mean of the μ_k."""
    generator = torch.Generator().manual_seed(seed)
    M, n = study.learn.particles, len(product.mean)
    start = posteriors.means.mean(0) + torch.randn(M, n, generator=generator, dtype=torch.float64)
    return svgd(product, start[:, None], study.learn)


def picture(study: GaussianSpec) -> str:
    """Draw the plane of the first seed: the posteriors, their product, where the averages end and where SVGD does."""
    from bmtpt.report.density_plots import gaussian_picture

    posteriors = draw_posteriors(study.tasks, 2, study.anisotropy, study.seeds[0])
    product = posteriors.product()
    particles, _ = svgd_on(product, posteriors, study, study.seeds[0])
    return gaussian_picture(
        means=posteriors.means.numpy(),
        covariances=torch.linalg.inv(posteriors.precisions).numpy(),
        product_mean=product.mean.numpy(),
        product_covariance=torch.linalg.inv(product.precision).numpy(),
        points={
            "mean of the means": posteriors.means.mean(0).numpy(),
            "best convex combination": best_convex_combination(posteriors).numpy(),
            "mean of the SVGD particles": particles.mean(0).numpy(),
        },
        particles=particles.numpy(),
    )
