"""Pick the engine for a backbone, and say so in one log line."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine, causal_supports
from bmtpt.backbone.device.machine import CpuTuning, cpu_plan
from bmtpt.backbone.device.plan import Memory, plan_for
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine, packed_supports
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import BackboneError, nearest

EngineName = Literal["auto", "packed", "generic"]
NAMES: tuple[EngineName, ...] = ("auto", "packed", "generic")


def choose_engine(
    backbone: Backbone, engine: EngineName = "auto", memory: Memory = "keep", cpu_tuning: CpuTuning = "auto"
) -> Engine:
    """Return the engine; ``auto`` is packed where it supports the backbone, else generic.

    Args:
        memory: ``recompute`` trades time for memory (see `bmtpt.backbone.device.plan.Plan`); the packed engine only.
        cpu_tuning: ``none`` leaves the CPU's libraries as they are while calls run (`bmtpt.backbone.device.machine`).

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
        if memory == "recompute":
            raise BackboneError(f"memory=recompute needs the packed engine, and generic runs ({why}); use memory=keep")
        plain = HuggingFaceCausalEngine if backbone.decoder_only else HuggingFaceEngine
        return _logged(plain(backbone, cpu_tuning=cpu_tuning), "generic", why)
    if backbone.decoder_only:
        if memory == "recompute":
            raise BackboneError("memory=recompute is for T5, and this model is decoder-only; use memory=keep")
        why = "each prompt's keys and values are shared by its examples"
        return _logged(CausalEngine(backbone, cpu_tuning), "packed", why)
    plan = cpu_plan(replace(plan_for(backbone.device), memory=memory), cpu_tuning)
    why = "asked for" if engine == "packed" else "the fastest for T5"
    return _logged(PackedT5Engine(backbone, plan), "packed", f"{why}; memory={memory}, {plan.layers} layers")


def _logged(engine: Engine, name: str, why: str) -> Engine:
    logging.getLogger("bmtpt").info("engine=%s (%s)", name, why)
    return engine
