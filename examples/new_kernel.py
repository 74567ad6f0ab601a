"""Add a kernel: one function of values and gradient weights, and SVGD uses it.

    Matérn 3/2   k(x, y) = (1 + √3 r) exp(−√3 r),  r = ‖x − y‖ / √h        ∇_x k = (3/h) exp(−√3 r) (y − x)

The script moves particles to a Gaussian with the new kernel and with the one of the paper, and prints how well mean and
variance are met.

    python examples/new_kernel.py                       # seconds
"""

from __future__ import annotations

import argparse
import math
from typing import cast

import torch
from torch import Tensor

from bmtpt.posterior.kernels import KERNELS, KernelName, Pairs, squared_distances
from bmtpt.posterior.svgd import svgd_direction


def matern(points: Tensor, h: Tensor) -> Pairs:
    """k = (1 + √3 r) exp(−√3 r);  w = (3/h) exp(−√3 r)."""
    h = h[:, None, None]
    scaled = math.sqrt(3) * (squared_distances(points) / h).sqrt()  # √3 r
    decay = torch.exp(-scaled)
    return Pairs((1 + scaled) * decay, 3 / h * decay, points)


KERNELS["matern"] = matern


def moments(kernel: str, particles: int, dimension: int, steps: int) -> tuple[float, float]:
    """Return ‖θ̄ − μ‖ and the particles' variance over the true one after SVGD on N(μ, I)."""
    mean = torch.ones(dimension, dtype=torch.float64)
    start = torch.randn(particles, 1, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = start
    for _ in range(steps):
        phi, _ = svgd_direction(theta, mean - theta, kernel=cast(KernelName, kernel))
        theta = theta + 0.3 * phi
    error = (theta.mean(dim=0) - mean).norm()
    return float(error), float((theta - theta.mean(dim=0)).square().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    print("kernel    error of the mean    variance over the true one")
    for name in ("rbf", "matern"):
        error, ratio = moments(name, arguments.particles, arguments.dimension, arguments.steps)
        print(f"{name:<10}{error:<21.4f}{ratio:.3f}")
