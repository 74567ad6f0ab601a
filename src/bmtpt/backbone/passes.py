"""What the encoder-decoder engines share: cutting a batch into passes, and joining prompts with texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.model import Backbone
from bmtpt.backbone.packing import TOKEN_BUDGET, micro_batches
from bmtpt.types import TokenBatch

IGNORED = -100
"""Target id that counts for nothing (padding)."""


@dataclass(frozen=True)
class PassEngine(ABC):
    """`Engine` in passes of bounded size; a subclass says how one pass is encoded and decoded.

    Training, scoring and generation share one encoder path, so that what is evaluated is what was trained.
    Axes of a pass: R rows (n examples × M prompts, example-major), S positions, C answers a row, T label tokens.
    """

    backbone: Backbone

    token_budget: ClassVar[int] = TOKEN_BUDGET

    @abstractmethod
    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"]) -> Float[Tensor, "R S D"]:
        """Return the encoder's output in the compute dtype; positions where the mask is 0 hold nothing of use."""

    @abstractmethod
    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"], targets: Int[Tensor, "R C T"]
    ) -> Float[Tensor, "R C"]:
        """Return each target's summed cross-entropy in fp32; targets hold IGNORED where they are padded."""

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens, in fp32."""
        result = prompts.new_empty(len(prompts), len(batch))
        for rows in self._passes(prompts, batch.inputs):
            result[:, rows] = self._pass_losses(prompts, batch, rows)
        return result

    def gradients(
        self, prompts: Float[Tensor, "M P D"], batch: TokenBatch, weights: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P D"]]:
        """Return the losses and ∂/∂θ_m Σ_n weights_n · loss_mn, accumulated pass by pass so that memory stays bounded.

        Returns:
            losses: As from `losses`.
            gradient: fp32, in the shape of ``prompts``.
        """
        leaf = prompts.detach().clone().requires_grad_(True)
        leaf.grad = torch.zeros_like(leaf)
        result = prompts.new_empty(len(prompts), len(batch))
        for rows in self._passes(prompts, batch.inputs):
            loss = self._pass_losses(leaf, batch, rows)  # [M, n]
            (loss * weights[rows]).sum().backward()  # type: ignore[no-untyped-call]
            result[:, rows] = loss.detach()
        return result, leaf.grad

    @torch.no_grad()
    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is encoded once for all of them."""
        result = prompts.new_empty(len(prompts), len(inputs), len(answers))
        targets = pad_sequence(list(answers), batch_first=True, padding_value=IGNORED)  # [C, T]
        for rows in self._passes(prompts, inputs):
            states, mask = self._encode(prompts, [inputs[i] for i in rows])  # [n·M, S, D]
            loss = self.decode_losses(states, mask, targets.expand(len(states), -1, -1))
            result[:, rows] = -loss.view(len(rows), len(prompts), len(answers)).transpose(0, 1)
        return result

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts without special tokens."""
        from transformers.modeling_outputs import BaseModelOutput

        texts = [[""] * len(inputs) for _ in prompts]
        for rows in self._passes(prompts, inputs):
            states, mask = self._encode(prompts, [inputs[i] for i in rows])
            ids = self.backbone.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
            )
            decoded = self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for position, text in enumerate(decoded):
                texts[position % len(prompts)][rows[position // len(prompts)]] = text.strip()
        return texts

    def _passes(self, prompts: Tensor, inputs: Sequence[Tensor]) -> Iterator[list[int]]:
        lengths = [len(ids) + prompts.shape[1] for ids in inputs]
        yield from micro_batches(lengths, copies=len(prompts), budget=self.token_budget)

    def _pass_losses(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch, rows: list[int]) -> Float[Tensor, "M n"]:
        states, mask = self._encode(prompts, [batch.inputs[i] for i in rows])
        targets = pad_sequence([batch.targets[i] for i in rows], batch_first=True, padding_value=IGNORED)
        loss = self.decode_losses(states, mask, targets.repeat_interleave(len(prompts), dim=0)[:, None])
        return loss.view(len(rows), len(prompts)).T

    def _encode(self, prompts: Float[Tensor, "M P D"], inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode [θ_m; embed(x_n)], example-major; return states [n·M, S, D] and the int64 mask [n·M, S]."""
        M, P, _ = prompts.shape
        ids = pad_sequence(list(inputs), batch_first=True, padding_value=0)  # [n, L]
        real = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True)  # [n, L]
        text = self.backbone.model.get_input_embeddings()(ids)  # [n, L, D]
        # Cast after the repeat: the gradient over n examples is then summed in fp32.
        copies = prompts.repeat(len(inputs), 1, 1).to(self.backbone.dtype)  # [n·M, P, D]
        joined = torch.cat([copies, text.repeat_interleave(M, dim=0)], dim=1)  # [n·M, S, D]
        mask = F.pad(real, (P, 0), value=1).repeat_interleave(M, dim=0)  # [n·M, S]
        return self.encode(joined, mask), mask


def decoder_inputs(targets: Int[Tensor, "R T"], start: int) -> Int[Tensor, "R T"]:
    """Shift the targets right behind the start token; padding becomes token 0, which no label position sees."""
    return F.pad(targets.clamp(min=0)[:, :-1], (1, 0), value=start)


def at_least_fp32(logits: Tensor) -> Tensor:
    """bfloat16 keeps 8 bits, too few for a log-probability."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
