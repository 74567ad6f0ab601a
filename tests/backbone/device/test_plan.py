"""Which plan a device gets."""

from __future__ import annotations

import torch

from bmtpt.backbone.device.plan import ACCELERATOR, CUDA, Plan, plan_for
from bmtpt.backbone.passes.packing import passes

SHORT_AND_LONG = [115, 128, 147, 161, 288, 337]
"""Six tasks' texts with their prompts, as different as the paper's sources are."""


def test_each_kind_of_device_has_its_default() -> None:
    kinds = {"cpu": Plan(), "cuda": CUDA, "xpu": ACCELERATOR}
    assert {kind: plan_for(torch.device(kind)) for kind in kinds} == kinds
    assert CUDA.graphs
    assert not ACCELERATOR.graphs


def test_with_graphs_short_texts_are_not_padded_to_the_longest() -> None:
    padded = [-(-length // 64) * 64 for length in SHORT_AND_LONG]
    parts = passes(padded, copies=5, budget=2**17, pass_cost=CUDA.pass_cost)
    tokens = sum(len(part.rows) * max(padded[n] for n in part.rows) for part in parts)
    assert len(parts) == 2
    assert tokens < 1.4 * sum(SHORT_AND_LONG)
