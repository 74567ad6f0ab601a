"""Figures of studies without a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bmtpt.report.svg import INK, as_file, colour, panels, style, to_svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MARKS = "Xs*"


def gaussian_picture(
    means: NDArray[np.float64],
    covariances: NDArray[np.float64],
    product_mean: NDArray[np.float64],
    product_covariance: NDArray[np.float64],
    points: Mapping[str, NDArray[np.float64]],
    particles: NDArray[np.float64],
) -> str:
    """Draw K Gaussians [K, 2], their convex hull, their product, SVGD's particles [M, 2] and named points [2].

    Returns:
        An SVG file's text. Ellipses are one standard deviation.
    """
    with style():
        figure, (axis,) = panels(1, (7.2, 5.0))
        for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
            _ellipse(axis, mean, covariance, colour(0), "task posteriors" if k == 0 else None)
        axis.fill(*_hull(means).T, color=colour(0), alpha=0.15, label="convex combinations of their means")
        _ellipse(axis, product_mean, product_covariance, colour(1), "their product")
        axis.plot(*particles.T, "o", color=colour(2), markersize=4, alpha=0.7, label="SVGD particles")
        for mark, (name, point) in zip(MARKS, points.items(), strict=True):
            axis.plot(*point, mark, color=INK, markersize=8, fillstyle="none", label=name)
        axis.set_aspect("equal", adjustable="datalim")
        figure.legend(loc="outside right upper")
        return as_file(to_svg(figure, "Gaussian task posteriors, their product, averages of their means, and SVGD"))


def _ellipse(
    axis: Axes, mean: NDArray[np.float64], covariance: NDArray[np.float64], shade: str, label: str | None
) -> None:
    import numpy as np

    angles = np.linspace(0, 2 * np.pi, 100)
    outline = np.linalg.cholesky(covariance) @ np.stack([np.cos(angles), np.sin(angles)])
    axis.plot(*(mean[:, None] + outline), color=shade, linewidth=1.5, label=label)
    axis.plot(*mean, ".", color=shade)


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners of the convex hull in order; fewer than three points are their own."""
    if len(points) < 3:
        return points
    from scipy.spatial import ConvexHull

    return points[ConvexHull(points).vertices]  # type: ignore[no-any-return]
