"""The engine that runs a decoder-only model's own forward: the reference for the other one, and the fallback.

Frozen weights are cast once, and examples are grouped across prompts (`passes.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.decoder_only.engine import CausalPassEngine, Reading, folded_head
from bmtpt.backbone.engine import Shared
from bmtpt.backbone.passes import Pass


@dataclass(frozen=True)
class HuggingFaceCausalEngine(CausalPassEngine):
    """`Engine` over a decoder-only model's own forward pass, without cache, mask or positions.

    Only texts of one length share a pass: no padding comes before a token that counts, so this is right for
    every architecture that reads from left to right (sliding windows, state spaces, relative biases).
    """

    def read(self, shared: Shared, examples: int) -> Reading:
        (prompts,) = shared  # every row reads its prompt again
        # Cast after the repeat: the gradient over n examples is then summed in fp32.
        return PlainReading(self.backbone.model, prompts.repeat(examples, 1, 1).to(self.backbone.dtype))

    def pack(self, texts: Sequence[int], tokens: Sequence[int], prompts: int) -> list[Pass]:
        found = []
        for length in sorted(set(texts)):
            same = [i for i, text in enumerate(texts) if text == length]
            parts = super().pack([length] * len(same), [tokens[i] for i in same], prompts)
            found += [part._replace(rows=[same[i] for i in part.rows]) for part in parts]
        return found


@dataclass
class PlainReading(Reading):
    """Rows that are read anew from their start each time.

    Attributes:
        embeddings: All tokens so far, prompt included.
    """

    model: Any
    embeddings: Float[Tensor, "R S D"]

    def feed(self, ids: Int[Tensor, "R S"], real: Int[Tensor, "R S"], keep: int) -> Float[Tensor, "R T V"]:
        assert real.all(), "texts of one pass have one length"
        self.embeddings = torch.cat([self.embeddings, self.model.get_input_embeddings()(ids)], dim=1)
        fewer = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        with folded_head(self.model) as read:
            logits: Tensor = self.model(inputs_embeds=self.embeddings, use_cache=False, **fewer).logits
        self.last = read[0][:, -1]
        return logits[:, -keep:]

    def repeat(self, copies: int) -> None:
        self.embeddings = self.embeddings.repeat_interleave(copies, dim=0)
