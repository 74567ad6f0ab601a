"""What a device's libraries are told while an engine's call runs: undone when it returns."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmtpt.backbone.device.allocator import kept_memory, not_kept
from bmtpt.backbone.device.plan import Plan
from bmtpt.backbone.model.frozen import FrozenModel

CpuTuning = Literal["auto", "none"]

EXACT = 1e-6
"""Relative error of a product of 512 terms that true fp32 stays below (measured 3e-7; rounded to bfloat16: 2e-3)."""

_LOG = logging.getLogger("bmtpt")


def model_settings(backbone: FrozenModel, tuning: CpuTuning, engine: str) -> AbstractContextManager[None]:
    """Return what holds while an engine runs Hugging Face's forward pass on the backbone's device."""
    if backbone.device.type == "cpu":
        return tuned(cpu_plan(Plan(), tuning), backbone.dtype, engine)
    return sound_attention() if backbone.device.type == "cuda" else nullcontext()


def sound_attention() -> AbstractContextManager[None]:
    """Keep attention away from cuDNN, whose backward pass with a mask has given NaN (pytorch issue 196678).

    Of the other kernels those are used that torch may use anyway, or all if that is none.
    """
    cuda = torch.backends.cuda
    others = {
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        SDPBackend.MATH: cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
    }
    return sdpa_kernel([kernel for kernel, enabled in others.items() if enabled] or list(others))


def cpu_plan(plan: Plan, tuning: CpuTuning) -> Plan:
    """Return the plan, without its CPU settings if ``tuning`` is none."""
    return plan if tuning == "auto" else replace(plan, keep_freed=False, matmul="plain")


@contextmanager
def tuned(plan: Plan, dtype: torch.dtype, engine: str) -> Iterator[None]:
    """Apply a plan's CPU settings for the duration of a call in ``dtype``, and say so the first time.

    Args:
        engine: For the log line.
    """
    _say(engine, plan.matmul, plan.keep_freed, dtype, torch.get_num_threads())
    with ExitStack() as stack:
        if plan.keep_freed:
            stack.enter_context(kept_memory())
        if dtype == torch.float32 and _wants_onednn(plan.matmul):
            stack.enter_context(onednn_products())
        yield


@contextmanager
def onednn_products() -> Iterator[None]:
    """Send fp32 products to oneDNN. On AMD it is the fast library; with bfloat16 matrix units it rounds."""
    setting = _setting()
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@cache
def onednn_error() -> float:
    """Return the largest relative error of small fp32 products under `onednn_products`, measured against float64."""
    if _setting() is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return math.inf
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=random), torch.randn(2, 512, 512, generator=random)
    with onednn_products():
        products = [(torch.bmm(a, b), torch.bmm(a.double(), b.double())), (a[0] @ b[0], a[0].double() @ b[0].double())]
    return max(float((found - truth).norm() / truth.norm()) for found, truth in products)


def _wants_onednn(matmul: str) -> bool:
    if matmul == "plain":
        return False
    error = onednn_error()
    return error < EXACT or (matmul == "rounded" and math.isfinite(error))


@cache
def _say(engine: str, matmul: str, keep_freed: bool, dtype: torch.dtype, threads: int) -> None:
    """Log the CPU settings of an engine's calls once, and again if they change; say nothing where none is set."""
    if keep_freed or matmul != "plain":
        facts = (_products(matmul, dtype), _memory(keep_freed), f"{threads} threads (torch's setting, left as it is)")
        _LOG.info("engine=%s on a CPU, while a call runs: %s", engine, "; ".join(facts))


def _products(matmul: str, dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return f"matrix products as torch is set ({str(dtype).removeprefix('torch.')} has no other path)"
    if matmul == "plain":
        return "fp32 products as torch is set"
    library = "by oneDNN" if _wants_onednn(matmul) else "as torch is set"
    error = onednn_error()
    found = f"its error is {error:.0e}, of true fp32 below {EXACT:.0e}" if math.isfinite(error) else "not to be had"
    return f"fp32 products {library} (matmul={matmul}; oneDNN: {found})"


def _memory(keep_freed: bool) -> str:
    why_not = not_kept() if keep_freed else "switched off"
    return f"freed memory not kept ({why_not})" if why_not else "freed memory kept for the next pass"


def _setting() -> Any:
    """torch's switch for oneDNN's fp32 products, or None if this version has none."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None
