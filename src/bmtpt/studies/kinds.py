"""Which code runs a study of which kind."""

from __future__ import annotations

from pathlib import Path

from bmtpt.backbone.execution import AUTOMATIC, Execution
from bmtpt.studies.collapse import CollapseBench
from bmtpt.studies.gaussian import GaussianBench
from bmtpt.studies.grid import GridBench
from bmtpt.studies.jobs import Bench
from bmtpt.studies.smoothing import SmoothingBench
from bmtpt.studies.spec import AnyStudy, CollapseSpec, GaussianSpec, SmoothingSpec


def make_bench(study: AnyStudy, folder: Path, execution: Execution = AUTOMATIC) -> Bench:
    """Return what plans and runs a study.

    Args:
        folder: The study's own.
        execution: How the backbone runs.
    """
    if isinstance(study, GaussianSpec):
        return GaussianBench(study)
    if isinstance(study, CollapseSpec):
        return CollapseBench(study)
    kind = SmoothingBench if isinstance(study, SmoothingSpec) else GridBench
    return kind(study, folder, execution)
