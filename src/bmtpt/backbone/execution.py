"""How a backbone runs: no part of what an experiment is, nor of what an artifact says."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from bmtpt.errors import BackboneError, nearest
from bmtpt.parallel.torchrun import Reduce, place

Precision = Literal["auto", "float32", "bfloat16"]
EngineName = Literal["auto", "packed", "generic"]
Memory = Literal["keep", "recompute"]
SPREAD = "auto-map"
"""The device of a model that is too large for one."""

TOKEN_BUDGET = 4_096
"""Most padded tokens in one pass: it bounds the memory; on a CPU larger passes were hardly faster."""


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
        token_budget: Most tokens of one pass on a CPU, padding included; on a GPU four times as many. The ranks of
            torchrun share passes, so a smaller budget gives more of them something to do.
        reduce: How ranks add their gradients: ``exact``, in one process's order and to its bits, or ``fast``, in any
            order and with the memory of one gradient.
        shard_weights: Spread the weights of the model's blocks over the ranks, for a model that one device cannot hold.
            Runs the generic engine.
    """

    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "auto"
    memory: Memory = "keep"
    token_budget: int = TOKEN_BUDGET
    reduce: Reduce = "exact"
    shard_weights: bool = False

    def checked(self) -> Execution:
        """Return itself.

        Raises:
            BackboneError: A value is not one of those above.
        """
        known = {"precision": Precision, "engine": EngineName, "memory": Memory, "reduce": Reduce}
        for name, choices in ((name, get_args(vocabulary)) for name, vocabulary in known.items()):
            value = getattr(self, name)
            if value not in choices:
                raise BackboneError(f"unknown {name} '{value}'; {nearest(str(value), choices)}")
        if not isinstance(self.device, str):
            raise BackboneError(
                f"device is a name such as 'cpu' or 'cuda:0', not an object of type {type(self.device).__name__}"
            )
        if type(self.token_budget) is not int or self.token_budget < 1:
            raise BackboneError(f"token_budget is a number of tokens, 1 or more, not {self.token_budget!r}")
        if self.shard_weights and place().size == 1:
            raise BackboneError(
                "shard_weights spreads a model over the ranks of torchrun, and this is one process; start it with "
                "torchrun --nproc-per-node 2 -m bmtpt …"
            )
        unfit = {"engine": "packed", "memory": "recompute", "device": SPREAD}
        for name, value in unfit.items():
            if self.shard_weights and getattr(self, name) == value:
                raise BackboneError(f"shard_weights cannot be used with {name}={value}; leave one of them out")
        return self


AUTOMATIC = Execution()
"""What suits the machine and the model."""
