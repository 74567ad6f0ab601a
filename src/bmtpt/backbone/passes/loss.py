"""The loss of one pass: cross-entropy of the label tokens, summed over each row."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Target id that counts for nothing (padding)."""


def at_least_fp32(logits: Tensor) -> Tensor:
    """bfloat16 keeps 8 bits, too few for a log-probability."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def summed_nll(logits: Float[Tensor, "R T V"], labels: Int[Tensor, "R T"]) -> Float[Tensor, " R"]:
    """Return each row's cross-entropy, summed over its labels, in fp32; IGNORED labels count for nothing."""
    loss = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return loss.sum(dim=1)
