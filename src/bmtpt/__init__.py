"""Bayesian Multi-Task Prompt Tuning: a posterior over soft prompts as the prior for the next task.

The names below are the public API. They are imported on first use, so that `bmtpt --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmtpt.artifacts.saved import Posterior, Prompt
    from bmtpt.backbone import Backbone
    from bmtpt.errors import BmtptError
    from bmtpt.inference.predict import predict
    from bmtpt.settings import AdaptSettings, LearnSettings
    from bmtpt.stages.evaluate import evaluate
    from bmtpt.stages.source import learn
    from bmtpt.stages.target import adapt, adapt_together
    from bmtpt.tasks import load_data, load_task

_HOME = {
    "AdaptSettings": "bmtpt.settings",
    "Backbone": "bmtpt.backbone",
    "BmtptError": "bmtpt.errors",
    "LearnSettings": "bmtpt.settings",
    "Posterior": "bmtpt.artifacts.saved",
    "Prompt": "bmtpt.artifacts.saved",
    "adapt": "bmtpt.stages.target",
    "adapt_together": "bmtpt.stages.target",
    "evaluate": "bmtpt.stages.evaluate",
    "learn": "bmtpt.stages.source",
    "load_data": "bmtpt.tasks",
    "load_task": "bmtpt.tasks",
    "predict": "bmtpt.inference.predict",
}

__all__ = [
    "AdaptSettings",
    "Backbone",
    "BmtptError",
    "LearnSettings",
    "Posterior",
    "Prompt",
    "adapt",
    "adapt_together",
    "evaluate",
    "learn",
    "load_data",
    "load_task",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bmtpt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
