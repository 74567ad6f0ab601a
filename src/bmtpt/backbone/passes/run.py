"""Run passes one after the other; halve one for which memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmtpt.backbone.passes.packing import Pass
from bmtpt.errors import is_out_of_memory

_LOG = logging.getLogger("bmtpt")


def sound_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without cuDNN's attention, whose backward pass with a mask has given NaN (pytorch 196678)."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


def run_passes(parts: Sequence[Pass], one_pass: Callable[[Pass], None], device: torch.device) -> None:
    """Run passes in order; one that memory is too small for is cut in two and tried again.

    Args:
        one_pass: If it fails midway, it must have changed nothing that a second run of the same examples would add to.
        device: Where they run.
    """
    waiting = list(parts)[::-1]
    while waiting:
        part = waiting.pop()
        if _fits(one_pass, part):
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
        waiting += part.halves()[::-1]
        prompts = part.prompts.stop - part.prompts.start
        _LOG.info("memory is too small for %d examples × %d prompts: halved", len(part.rows), prompts)


def _fits(one_pass: Callable[[Pass], None], part: Pass) -> bool:
    """Run a pass; return False if memory ran out and there is something to halve."""
    try:
        one_pass(part)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or not part.halves():
            raise
        return False  # leaving this function lets go of the pass's tensors, which the traceback holds
    return True
