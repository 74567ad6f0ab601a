"""What the encoder-decoder engines share: passes over a batch, and prompts joined with texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes.loss import IGNORED
from bmtpt.backbone.passes.packing import TOKEN_BUDGET, Pass, budget_on, passes
from bmtpt.backbone.passes.run import run_passes, sound_attention
from bmtpt.types import TokenBatch


class Texts(NamedTuple):
    """The texts of a pass, on the device.

    Attributes:
        ids: Token ids, padded at the end.
        mask: 0 where a position is padded; None if every position counts.
    """

    ids: Int[Tensor, "n L"]
    mask: Int[Tensor, "n S"] | None


@dataclass(frozen=True)
class PassEngine(ABC):
    """`Engine` in passes of bounded size; a subclass says how one pass is encoded and decoded.

    Training, scoring and generation share one encoder path, so that what is evaluated is what was trained.
    Axes of a pass: R rows (n examples × m prompts, example-major), S positions, C answers a row, T label tokens.
    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own.
    Prompts are on the backbone's device; token ids may be on the CPU, where they are padded before they are sent.
    """

    backbone: FrozenModel

    name: ClassVar[str] = "generic"
    token_budget: ClassVar[int] = TOKEN_BUDGET

    @abstractmethod
    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        """Return the encoder's output in the compute dtype; positions where the mask is 0 hold nothing of use.

        The mask is None where every position counts, so that no number has to be read from the device.
        """

    @abstractmethod
    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        """Return each target's summed cross-entropy in fp32; targets hold IGNORED where they are padded.

        The R/n rows of one example are adjacent and share its targets.
        """

    @abstractmethod
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order."""

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens, in fp32."""
        result = prompts.new_empty(len(prompts), len(batch))

        def one_pass(part: Pass) -> None:
            result[part.prompts, part.rows] = self._pass_losses(_of(prompts, part), batch, part.rows)

        self.run(_lengths(prompts, batch.inputs), len(prompts), one_pass)
        return result

    def gradients(
        self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch, weights: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and ∂/∂θ Σ_mn weights_n · loss_mn, accumulated pass by pass so that memory stays bounded.

        Returns:
            losses: As from `losses`.
            gradient: fp32, in the shape of ``prompts``.
        """
        result, gradient = prompts.new_empty(len(prompts), len(batch)), torch.zeros_like(prompts)
        factors = self.sent(weights)

        def one_pass(part: Pass) -> None:
            leaf = _of(prompts, part).detach().requires_grad_(True)
            losses = self._pass_losses(leaf, batch, part.rows)
            pulled = self.pulled_back((losses * factors[part.rows]).sum(), leaf)
            result[part.prompts, part.rows] = losses.detach()
            if gradient.ndim == 3:
                gradient[part.prompts] += pulled
            else:
                gradient[part.prompts, part.rows] += pulled  # no example is twice in a pass

        self.run(_lengths(prompts, batch.inputs), len(prompts), one_pass)
        return result, gradient

    @torch.no_grad()
    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is encoded once for all of them."""
        result = prompts.new_empty(len(prompts), len(inputs), len(answers))
        targets = self.targets(answers).transpose(0, 1)  # [1, C, T], the same for all rows

        def one_pass(part: Pass) -> None:
            states, mask = self.encode_texts(_of(prompts, part), self.texts(prompts, inputs, part.rows))  # [n·m, S, D]
            loss = self.decode_losses(states, mask, targets)
            result[part.prompts, part.rows] = -loss.view(len(part.rows), -1, len(answers)).transpose(0, 1)

        self.run(_lengths(prompts, inputs), len(prompts), one_pass)
        return result

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts without special tokens."""
        found = [[""] * len(inputs) for _ in prompts]

        def one_pass(part: Pass) -> None:
            states, mask = self.encode_texts(_of(prompts, part), self.texts(prompts, inputs, part.rows))
            m = part.prompts.stop - part.prompts.start
            for position, text in enumerate(self.continued(states, mask, max_new_tokens)):
                found[part.prompts.start + position % m][part.rows[position // m]] = text

        self.run(_lengths(prompts, inputs), len(prompts), one_pass)
        return found

    def pulled_back(self, total: Float[Tensor, ""], prompts: Float[Tensor, "m *n P D"]) -> Float[Tensor, "m *n P D"]:
        """Return the gradient of a pass's weighted loss in its prompts."""
        (gradient,) = torch.autograd.grad(total, prompts)
        return gradient

    def cut(self, lengths: Sequence[int], prompts: int) -> list[Pass]:
        """Cut examples × prompts into passes, given the examples' lengths with the prompt."""
        return passes(lengths, copies=prompts, budget=self.most_tokens())

    def most_tokens(self) -> int:
        """Return the most padded tokens of a pass on the backbone's device."""
        return budget_on(self.backbone.device, self.token_budget)

    def run(self, lengths: Sequence[int], prompts: int, one_pass: Callable[[Pass], None]) -> None:
        """Run passes over rows of these lengths, prompt included; one that memory is too small for is halved."""
        with sound_attention(self.backbone.device):
            run_passes(self.cut(lengths, prompts), one_pass, self.backbone.device)

    def _pass_losses(
        self, prompts: Float[Tensor, "m *n P D"], batch: TokenBatch, rows: list[int]
    ) -> Float[Tensor, "m n"]:
        states, mask = self.encode_texts(prompts, self.texts(prompts, batch.inputs, rows))
        loss = self.decode_losses(states, mask, self.targets([batch.targets[i] for i in rows]))  # [n·m, 1]
        return loss.view(len(rows), len(prompts)).T

    def texts(self, prompts: Float[Tensor, "m *n P D"], inputs: Sequence[Tensor], rows: list[int]) -> Texts:
        """Return some of the texts, padded, on the device; the mask covers their prompts too."""
        chosen, P = [inputs[i] for i in rows], prompts.shape[-2]
        lengths = torch.tensor([len(ids) for ids in chosen])
        ids = self.sent(pad_sequence(chosen, batch_first=True))
        if lengths.min() == lengths.max():
            return Texts(ids, None)
        real = torch.arange(P + ids.shape[1]) < P + lengths[:, None]
        return Texts(ids, self.sent(real.to(torch.int64)))

    def targets(self, targets: Sequence[Tensor]) -> Int[Tensor, "n 1 T"]:
        """Return targets padded with IGNORED, on the device."""
        return self.sent(pad_sequence(list(targets), batch_first=True, padding_value=IGNORED)[:, None])

    def sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the backbone's device."""
        return tensor.to(self.backbone.device)

    def encode_texts(
        self, prompts: Float[Tensor, "m *n P D"], texts: Texts
    ) -> tuple[Float[Tensor, "R S D"], Int[Tensor, "R S"] | None]:
        """Encode [θ_m; embed(x_n)], example-major; return states [n·m, S, D] and the mask of every row."""
        m, (ids, mask) = len(prompts), texts
        text = self.backbone.model.get_input_embeddings()(ids)  # [n, L, D]
        # Cast after the repeat: the gradient over n examples is then summed in fp32.
        copies = _copies(prompts, len(ids)).to(self.backbone.dtype)  # [n·m, P, D]
        joined = torch.cat([copies, text.repeat_interleave(m, dim=0)], dim=1)  # [n·m, S, D]
        each = None if mask is None else mask.repeat_interleave(m, dim=0)
        return self.encode(joined, each), each

    def continued(self, states: Float[Tensor, "R S D"], mask: Tensor | None, max_new_tokens: int) -> list[str]:
        """Decode greedily from encoder outputs; return texts without special tokens."""
        from transformers.modeling_outputs import BaseModelOutput

        ids = self.backbone.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=states.new_ones(states.shape[:2], dtype=torch.int64) if mask is None else mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        return [text.strip() for text in self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def decoder_inputs(targets: Int[Tensor, "R T"], start: int) -> Int[Tensor, "R T"]:
    """Shift the targets right and prepend the start token; padding becomes token 0, which no label position sees."""
    return F.pad(targets.clamp(min=0)[:, :-1], (1, 0), value=start)


def _lengths(prompts: Tensor, inputs: Sequence[Tensor]) -> list[int]:
    return [prompts.shape[-2] + len(ids) for ids in inputs]


def _of(prompts: Float[Tensor, "M *N P D"], part: Pass) -> Float[Tensor, "m *n P D"]:
    """Return the prompts of a pass."""
    chosen = prompts[part.prompts]
    return chosen if prompts.ndim == 3 else chosen[:, part.rows]


def _copies(prompts: Float[Tensor, "m *n P D"], n: int) -> Float[Tensor, "R P D"]:
    """Return one prompt for each row of a pass, example-major."""
    return prompts.repeat(n, 1, 1) if prompts.ndim == 3 else prompts.transpose(0, 1).flatten(0, 1)
