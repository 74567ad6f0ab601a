"""Pick the engine for a backbone, and say so in one log line."""

from __future__ import annotations

import logging
from typing import Literal

from bmtpt.backbone.causal import CausalEngine, causal_supports
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.generic import HuggingFaceCausalEngine, HuggingFaceEngine
from bmtpt.backbone.model import Backbone
from bmtpt.backbone.t5 import PackedT5Engine, packed_supports
from bmtpt.errors import BackboneError, nearest

EngineName = Literal["auto", "packed", "generic"]
NAMES: tuple[EngineName, ...] = ("auto", "packed", "generic")


def choose_engine(backbone: Backbone, engine: EngineName = "auto") -> Engine:
    """Return the engine; ``auto`` is packed where it supports the backbone, else generic.

    Raises:
        BackboneError: The name is unknown, or ``packed`` was asked for and does not support the backbone.
    """
    if engine not in NAMES:
        raise BackboneError(f"unknown engine '{engine}'; {nearest(engine, NAMES)}")
    reason = causal_supports(backbone) if backbone.decoder_only else packed_supports(backbone)
    if engine == "packed" and reason:
        raise BackboneError(f"engine=packed cannot run backbone '{backbone.name}': {reason}; use engine=auto")
    if engine == "generic" or reason:
        why = f"packed cannot run this backbone: {reason}" if reason else "asked for"
        plain = HuggingFaceCausalEngine if backbone.decoder_only else HuggingFaceEngine
        return _logged(plain(backbone), "generic", why)
    if backbone.decoder_only:
        return _logged(CausalEngine(backbone), "packed", "each prompt's keys and values are shared by its examples")
    return _logged(PackedT5Engine(backbone), "packed", "asked for" if engine == "packed" else "the fastest for T5")


def _logged(engine: Engine, name: str, why: str) -> Engine:
    logging.getLogger("bmtpt").info("engine=%s (%s)", name, why)
    return engine
