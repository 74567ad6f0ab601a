"""How a backbone runs: no part of what an experiment is, nor of what an artifact says."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from bmtpt.errors import BackboneError, nearest

Precision = Literal["auto", "float32", "bfloat16"]
EngineName = Literal["auto", "packed", "generic"]
Memory = Literal["keep", "recompute"]
SPREAD = "auto-map"
"""The device of a model that is too large for one."""


class Execution(NamedTuple):
    """The arguments of `Backbone.from_pretrained` after the name.

    Attributes:
        device: ``auto`` (cuda if there is one, else cpu), one of torch's names, or ``auto-map``: transformers'
            ``device_map="auto"``, which fills all GPUs, then the memory; the rest of the weights stays on the disk.
        precision: Compute dtype; ``auto`` is bfloat16 where the processor multiplies it natively, else float32.
            Prompts and losses are fp32 in any case.
        engine: ``packed`` (our fast paths: T5, and decoder-only models with full attention), ``generic`` (Hugging
            Face's own forward pass), or ``auto``: packed where it is the faster one.
        memory: ``keep`` what the backward pass needs, or ``recompute`` it from each layer's input: less memory, more
            time, the same gradient. Needs the packed T5 engine.
    """

    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "auto"
    memory: Memory = "keep"

    def checked(self) -> Execution:
        """Return itself.

        Raises:
            BackboneError: A value is not one of those above.
        """
        known = {"precision": get_args(Precision), "engine": get_args(EngineName), "memory": get_args(Memory)}
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise BackboneError(f"unknown {name} '{value}'; {nearest(str(value), choices)}")
        if not isinstance(self.device, str):
            raise BackboneError(
                f"device is a name such as 'cpu' or 'cuda:0', not an object of type {type(self.device).__name__}"
            )
        return self


AUTOMATIC = Execution()
"""What suits the machine and the model."""
