"""What a target stage leaves, whatever the method, and the prompts that it asks texts with."""

from __future__ import annotations

from bmtpt.artifacts.saved import Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.inference.score import Prompts
from bmtpt.methods.attempt import mixture_prompts
from bmtpt.methods.weights import TunedModel

Trained = Prompt | PromptMixture | TunedModel
"""What predicts a target, by the method that trained it."""


def prompts_of(backbone: Backbone, trained: Trained) -> Prompts:
    """Return the prompts of what was trained, on the backbone's device; a tuned model has a prompt without rows."""
    if isinstance(trained, Prompt):
        return trained.prompts.to(backbone.device)
    if isinstance(trained, TunedModel):
        return trained.engine.no_prompt
    return mixture_prompts(backbone.embed, {name: each.to(backbone.device) for name, each in trained.tensors.items()})
