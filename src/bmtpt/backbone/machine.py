"""What the CPU's libraries are told while an engine's call runs: undone when it returns, switched off by the `Plan`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch

from bmtpt.backbone.allocator import kept_memory
from bmtpt.backbone.plan import Plan

EXACT = 1e-6
"""Relative error of a product of 512 terms that true fp32 stays below (measured 3e-7; rounded to bfloat16: 2e-3)."""

_LOG = logging.getLogger("bmtpt")


@contextmanager
def tuned(plan: Plan, dtype: torch.dtype) -> Iterator[None]:
    """Apply a plan's CPU settings for the duration of a call in ``dtype``."""
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


@cache
def _wants_onednn(matmul: str) -> bool:
    error = math.inf if matmul == "plain" else onednn_error()
    wanted = error < EXACT or (matmul == "rounded" and math.isfinite(error))
    found = "as torch is set" if matmul == "plain" else f"oneDNN's error is {error:.1e}"
    _LOG.info("fp32 products: %s (matmul=%s, %s)", "oneDNN" if wanted else "torch's own library", matmul, found)
    return wanted


def _setting() -> Any:
    """torch's switch for oneDNN's fp32 products, or None if this version has none."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None
