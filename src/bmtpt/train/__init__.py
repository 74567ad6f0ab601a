"""The one training loop, its checkpoints and its events."""

from bmtpt.train.loop import Loop, Method, Outcome, Validation

__all__ = ["Loop", "Method", "Outcome", "Validation"]
