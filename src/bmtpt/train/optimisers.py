"""Optimisers over named groups, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bmtpt.settings import LoopSettings


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that share a learning rate.

    Attributes:
        name: For messages.
        tensors: Leaf tensors; never empty (a group emptied by a name mismatch is a known flaw of public code).
        learning_rate: Peak learning rate.
    """

    name: str
    tensors: Sequence[Tensor]
    learning_rate: float

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError(f"the optimiser group '{self.name}' holds no parameter")


def make_optimiser(groups: Sequence[ParameterGroup], settings: LoopSettings) -> torch.optim.Optimizer:
    """Build the optimiser. Weight decay is always explicit (torch's AdamW would take 0.01)."""
    if settings.optimiser == "adafactor":
        return _adafactor(groups, settings)
    options = [{"params": list(group.tensors), "lr": group.learning_rate} for group in groups]
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[settings.optimiser](options, weight_decay=settings.weight_decay)  # type: ignore[call-arg]


def _adafactor(groups: Sequence[ParameterGroup], settings: LoopSettings) -> torch.optim.Optimizer:
    """Adafactor as in the literature: a fixed learning rate, not the one relative to the parameter's size.

    It clips an update by the rms of the whole tensor, so each candidate gets a leaf of its own (a view of its part):
    side by side, candidates must train as if alone.
    """
    from transformers.optimization import Adafactor

    parts = {id(tensor): list(tensor.detach().unbind()) for group in groups for tensor in group.tensors}
    options = [
        {"params": [part for tensor in group.tensors for part in parts[id(tensor)]], "lr": group.learning_rate}
        for group in groups
    ]
    optimiser: torch.optim.Optimizer = Adafactor(
        options, scale_parameter=False, relative_step=False, weight_decay=settings.weight_decay
    )

    def hand_over(*_: object) -> None:
        for tensor in (tensor for group in groups for tensor in group.tensors):
            if tensor.grad is not None:
                for part, gradient in zip(parts[id(tensor)], tensor.grad, strict=True):
                    part.grad = gradient

    optimiser.register_step_pre_hook(hand_over)
    return optimiser


def schedule_factor(step: int, settings: LoopSettings) -> float:
    """Return the factor on every learning rate at a step: linear warm-up, then linear decay or constant.

    >>> schedule_factor(0, LoopSettings(steps=10, warmup_steps=2)), schedule_factor(6, LoopSettings(steps=10))
    (0.5, 0.4)
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    return (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
