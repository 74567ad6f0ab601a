"""Experiments as YAML: methods × targets × shots × seeds, run cell by cell into result lines."""

from bmtpt.studies.run import run_study
from bmtpt.studies.spec import StudySpec, load_study

__all__ = ["StudySpec", "load_study", "run_study"]
