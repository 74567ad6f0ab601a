"""Experiments as YAML: methods × targets × shots × seeds, run job by job into result lines."""

from bmtpt.studies.load import load_study, named_studies
from bmtpt.studies.run import run_study
from bmtpt.studies.spec import StudySpec

__all__ = ["StudySpec", "load_study", "named_studies", "run_study"]
