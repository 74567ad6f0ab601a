"""What a target stage leaves, whatever the method, and the prompts that it asks texts with."""

from __future__ import annotations

from bmtpt.artifacts.readouts import to_tensors
from bmtpt.artifacts.saved import Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.inference.score import Prompts
from bmtpt.methods.attempt import mixture_prompts
from bmtpt.methods.classifier import Classifier
from bmtpt.methods.weights import TunedModel

Prompted = Prompt | PromptMixture | TunedModel
"""What answers through the model."""

Trained = Prompted | Classifier
"""What predicts a target, by the method that trained it."""


def kept_bytes(trained: Trained) -> int:
    """Return how many bytes must be kept for the task, next to the frozen model: fp32 prompts, readouts or weights."""
    if isinstance(trained, Classifier):
        return trained.fitted.kept_bytes
    own = {"prompts": trained.prompts} if isinstance(trained, Prompt) else trained.tensors
    readouts = () if isinstance(trained, TunedModel) else trained.readouts
    return sum(4 * tensor.numel() for tensor in (*own.values(), *to_tensors(readouts).values()))


def prompts_of(backbone: Backbone, trained: Prompted) -> Prompts:
    """Return the prompts of what was trained, on the backbone's device; a tuned model has a prompt without rows."""
    if isinstance(trained, Prompt):
        return trained.prompts.to(backbone.device)
    if isinstance(trained, TunedModel):
        return trained.engine.no_prompt
    return mixture_prompts(backbone.embed, {name: each.to(backbone.device) for name, each in trained.tensors.items()})
