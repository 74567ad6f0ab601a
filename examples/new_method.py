"""Add a method: one record, and every study can compare it.

The method here starts prompt tuning from the elementwise median of the source prompts. A record in a file of
src/bmtpt/methods/ is found by itself; this script registers its own and compares it with plain prompt tuning.

    python examples/new_method.py                       # the `offline` backbone, about a minute
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bmtpt.methods.registry import Method, Setup, register
from bmtpt.methods.target import Candidate
from bmtpt.results import Result
from bmtpt.studies import StudySpec, run_study


def candidates(setup: Setup) -> list[Candidate]:
    """Return one start, θ⁰ = median_k θ^k."""
    prompts = torch.stack(list(setup.learned.prompts.values()))  # [K, P, D]
    return [Candidate(prompts.median(dim=0).values, "median of source prompts")]


register(
    Method(
        "source_median",
        display_name="median of source prompts",
        paper="this script",
        candidates=candidates,
        needs="source prompts",
    )
)


def compare(folder: Path, **changes: Any) -> list[Result]:
    """Run the method next to `pt` with 8 examples; return the result lines."""
    steps = {"steps": 20, "evaluate_every": 20, "validation_rows": 8}
    values = {
        "name": "new-method",
        "data": "offline",
        "sources": ["sst2", "mrpc", "boolq"],
        "targets": ["rte"],
        "shots": [8],
        "methods": ["pt", "source_median"],
        "learn": {"prompt_length": 8},
        "source_prompt": {**steps, "particles": 1, "prompt_length": 8},
        "adapt": {**steps, "batch_size": 4, "max_length": 96},
        "limits": {"train": 100, "select": 16, "test": 64},
        "candidates": 1,
    }
    return run_study(StudySpec.model_validate(values | changes), folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="offline")
    parser.add_argument("--sources", nargs="+", default=["sst2", "mrpc", "boolq"])
    parser.add_argument("--targets", nargs="+", default=["rte"])
    with tempfile.TemporaryDirectory() as scratch:
        for line in compare(Path(scratch), **vars(parser.parse_args())):
            if line.primary:
                print(f"{line.method:<15}{line.target:<12}{line.metric} {line.value:.1f}")
