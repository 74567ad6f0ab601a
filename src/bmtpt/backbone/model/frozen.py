"""A frozen language model as the engines see it: weights, tokenizer and the fingerprint that ties artifacts to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.model.families import input_device
from bmtpt.backbone.model.fingerprint import tokenizer_fingerprint
from bmtpt.backbone.model.framing import Framing, framing_of
from bmtpt.errors import BackboneError

FREQUENT_TOKENS = 5_000
"""Prompts start from rows among the most frequent tokens (docs/method.md, section 1). SentencePiece orders its
pieces by frequency, and BPE its merges by the frequency of the pair when it was merged, so these are the lowest ids
that are not special. BPE vocabularies begin with 256 single bytes, most of them rare, which are left out."""


@dataclass(frozen=True)
class FrozenModel:
    """A frozen language model: encoder-decoder or decoder-only.

    Attributes:
        name: What the user called it: a hub id, a folder, or "offline".
        model: Hugging Face's model, in ``dtype``, without gradients or dropout.
        tokenizer: Its tokenizer.
        fingerprint: See `fingerprint.py`.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype; prompts and losses are fp32 whatever it is."""
        return self._table.dtype

    @property
    def device(self) -> torch.device:
        """Where prompts and token ids go."""
        return input_device(self.model)

    @property
    def d_model(self) -> int:
        return self._table.shape[1]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table, which may be more than the tokenizer has tokens."""
        return len(self._table)

    @property
    def parameters(self) -> int:
        """Number of distinct parameters (tied weights count once)."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def decoder_only(self) -> bool:
        return not self.model.config.is_encoder_decoder

    @cached_property
    def tokenizer_hash(self) -> str:
        """See `tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def framing(self) -> Framing:
        """The special tokens around texts and answers that this model was trained with."""
        return framing_of(self.tokenizer, decoder_only=self.decoder_only)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generated text, or pad one that has ended."""
        stop = getattr(self.model.config, "eos_token_id", None)
        padding = getattr(self.tokenizer, "pad_token_id", None)
        found = {self.tokenizer.eos_token_id, padding, *(stop if isinstance(stop, list) else [stop])}
        return frozenset(found - {None})

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Return what the model's first layer gets for token ids, in fp32 or better.

        Through the module: some models scale what they look up, and a prompt's rows are joined with the scaled ones.
        """
        rows: Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    @property
    def _table(self) -> Tensor:
        return self.model.get_input_embeddings().weight  # type: ignore[no-any-return]

    def frequent_ids(self) -> Tensor:
        """Return int64 ids of the most frequent ordinary tokens."""
        special = set(self.tokenizer.all_special_ids)
        usable = min(len(self.tokenizer), self.vocab_size)
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(usable)))
        # Byte-level BPE writes a byte as one character, SentencePiece as <0x0A>.
        one_byte = re.compile(r"<0x[0-9A-F]{2}>|." if self.decoder_only else r"<0x[0-9A-F]{2}>", re.DOTALL)
        ids = [i for i, each in enumerate(tokens) if i not in special and not one_byte.fullmatch(str(each))]
        return torch.tensor(ids[:FREQUENT_TOKENS], device=self.device)

    def frequent_rows(self) -> Float[Tensor, "N D"]:
        """Return the embeddings of the most frequent tokens, in fp32 or better."""
        return self.embed(self.frequent_ids())

    def require_positions(self, needed: int) -> None:
        """Check that a row of tokens fits into the model's positions.

        Raises:
            BackboneError: The model has positions for fewer tokens, prompt and answer included.
        """
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and needed > most:
            raise BackboneError(
                f"backbone '{self.name}' has {most:,} positions and prompt, text and answer need {needed:,}: "
                "set a lower max_length or prompt_length"
            )
