"""Pick the engine for a backbone, and say so in one log line."""

from __future__ import annotations

import logging
from dataclasses import replace

from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine, causal_supports
from bmtpt.backbone.device.plan import plan_for
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.execution import EngineName, Memory
from bmtpt.backbone.fast_t5.engine import PackedT5Engine, packed_supports
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.errors import BackboneError


def choose_engine(backbone: FrozenModel, engine: EngineName, memory: Memory) -> Engine:
    """Return the engine that `Execution` describes.

    Raises:
        BackboneError: The model cannot be run by the packed engine, which ``engine`` or ``memory`` asks for.
    """
    reason = causal_supports(backbone) if backbone.decoder_only else packed_supports(backbone)
    if engine == "packed" and reason:
        raise BackboneError(f"engine=packed cannot run backbone '{backbone.name}': {reason}; use engine=auto")
    if engine == "generic" or reason:
        why = f"packed cannot run this backbone: {reason}" if reason else "asked for"
        if memory == "recompute":
            raise BackboneError(f"memory=recompute needs the packed engine, and generic runs ({why}); use memory=keep")
        plain = HuggingFaceCausalEngine if backbone.decoder_only else HuggingFaceEngine
        return _logged(plain(backbone), why)
    if backbone.decoder_only:
        if memory == "recompute":
            raise BackboneError("memory=recompute is for T5, and this model is decoder-only; use memory=keep")
        why = "each prompt's keys and values are shared by its examples"
        return _logged(CausalEngine(backbone), why)
    plan = replace(plan_for(backbone.device), memory=memory)
    why = "asked for" if engine == "packed" else "the fastest for T5"
    return _logged(PackedT5Engine(backbone, plan), f"{why}; memory={memory}, {plan.layers} layers")


def _logged(engine: Engine, why: str) -> Engine:
    logging.getLogger("bmtpt").info("engine=%s (%s)", engine.name, why)
    return engine
