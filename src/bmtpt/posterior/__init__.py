"""The posterior over soft prompts: kernels, the SVGD direction, and how to tell whether it worked."""

from bmtpt.posterior.diagnostics import Diagnostics, History, diagnose, stein_discrepancy, warnings
from bmtpt.posterior.kernels import Bandwidth, KernelName, Scope, evaluate_kernel
from bmtpt.posterior.svgd import Annealing, SvgdInfo, annealing, svgd_direction

__all__ = [
    "Annealing",
    "Bandwidth",
    "Diagnostics",
    "History",
    "KernelName",
    "Scope",
    "SvgdInfo",
    "annealing",
    "diagnose",
    "evaluate_kernel",
    "stein_discrepancy",
    "svgd_direction",
    "warnings",
]
