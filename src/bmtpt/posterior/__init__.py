"""The posterior over soft prompts: kernels, the SVGD direction, and how to tell whether it worked."""

from bmtpt.posterior.diagnostics import Diagnostics, History, diagnose, stein_discrepancy, warnings
from bmtpt.posterior.kernels import Bandwidth, evaluate_kernel
from bmtpt.posterior.svgd import SvgdInfo, annealing, svgd_direction

__all__ = [
    "Bandwidth",
    "Diagnostics",
    "History",
    "SvgdInfo",
    "annealing",
    "diagnose",
    "evaluate_kernel",
    "stein_discrepancy",
    "svgd_direction",
    "warnings",
]
