"""The frozen language model: weights, tokenizer and the fingerprint that ties artifacts to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

FREQUENT_TOKENS = 5_000
"""Prompts start from rows among the most frequent tokens (METHOD.md, section 1). SentencePiece orders its pieces by
frequency, so these are the lowest ids that are not special."""


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder-decoder language model.

    Attributes:
        name: What the user called it: a hub id, a folder, or "offline".
        model: Hugging Face's T5, in ``dtype``, without gradients or dropout.
        tokenizer: Its tokenizer.
        fingerprint: SHA-256 over configuration and fp32 weights.
        embeddings: The embedding table in fp32, for prompt initialisers.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str
    embeddings: Float[Tensor, "V D"]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype; prompts and losses are fp32 whatever it is."""
        return next(iter(self.model.parameters())).dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def d_model(self) -> int:
        return self.embeddings.shape[1]

    @property
    def parameters(self) -> int:
        """Number of distinct parameters (tied weights count once)."""
        return sum(weight.numel() for weight in self.model.parameters())

    def frequent_ids(self) -> Tensor:
        """Return int64 ids of the most frequent ordinary tokens."""
        special = set(self.tokenizer.all_special_ids)
        usable = min(len(self.tokenizer), self.embeddings.shape[0])
        ids = [i for i in range(usable) if i not in special]
        return torch.tensor(ids[:FREQUENT_TOKENS], device=self.device)
