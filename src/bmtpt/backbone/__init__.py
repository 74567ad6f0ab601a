"""The frozen language model. The names below are imported on first use: whoever asks for a choice needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmtpt.backbone.backbone import Backbone
    from bmtpt.backbone.engine import Engine
    from bmtpt.backbone.execution import Execution

_HOME = {"Backbone": "backbone", "Engine": "engine", "Execution": "execution"}

__all__ = ["Backbone", "Engine", "Execution"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bmtpt.backbone' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bmtpt.backbone.{_HOME[name]}"), name)
