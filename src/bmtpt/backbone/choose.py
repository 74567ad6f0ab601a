"""Pick the engine for a backbone, and say so in one log line."""

from __future__ import annotations

import logging

from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine, causal_supports
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
    made, why = (_causal if backbone.decoder_only else _encoder_decoder)(backbone, engine, memory)
    logging.getLogger("bmtpt").info("engine=%s (%s)", made.name, why)
    return made


def _encoder_decoder(backbone: FrozenModel, engine: EngineName, memory: Memory) -> tuple[Engine, str]:
    if engine == "generic":
        if memory == "recompute":
            raise BackboneError("memory=recompute needs the packed engine; use engine=auto, or memory=keep")
        return HuggingFaceEngine(backbone), "asked for"
    asked = engine == "packed" or memory == "recompute"
    if reason := packed_supports(backbone):
        if asked:
            choice = "engine=packed" if engine == "packed" else "memory=recompute"
            raise BackboneError(f"{choice} cannot be used with backbone '{backbone.name}': {reason}; leave it out")
        return HuggingFaceEngine(backbone), f"packed cannot run this backbone: {reason}"
    if not asked and backbone.device.type != "cpu":
        return HuggingFaceEngine(backbone), "packed is made for CPUs"
    why = "asked for" if engine == "packed" else "the fastest for T5 on a CPU"
    return PackedT5Engine(backbone, memory), f"{why}; memory={memory}"


def _causal(backbone: FrozenModel, engine: EngineName, memory: Memory) -> tuple[Engine, str]:
    if memory == "recompute":
        raise BackboneError("memory=recompute is for T5, and this model is decoder-only; use memory=keep")
    if engine == "generic":
        return HuggingFaceCausalEngine(backbone), "asked for"
    if reason := causal_supports(backbone):
        if engine == "packed":
            raise BackboneError(f"engine=packed cannot be used with backbone '{backbone.name}': {reason}; leave it out")
        return HuggingFaceCausalEngine(backbone), f"packed cannot run this backbone: {reason}"
    return CausalEngine(backbone), "each prompt's keys and values are shared by its examples"
