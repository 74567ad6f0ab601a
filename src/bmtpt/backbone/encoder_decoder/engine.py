"""What the encoder-decoder engines share: cutting a batch into passes, and joining prompts with texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.device.prefetch import Labelled, Texts, one_ahead, sent
from bmtpt.backbone.encoder_decoder.answers import answer_together
from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes.loss import IGNORED
from bmtpt.backbone.passes.packing import TOKEN_BUDGET, Pass, passes
from bmtpt.backbone.passes.run import empty_cache, run_passes
from bmtpt.types import TokenBatch

Loaded = TypeVar("Loaded")


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

        The mask is None where every position counts, so that nobody needs to look at the numbers on a device.
        """

    @abstractmethod
    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        """Return each target's summed cross-entropy in fp32; targets hold IGNORED where they are padded.

        The R/n rows of one example stand side by side and share its targets.
        """

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens, in fp32."""
        result = prompts.new_empty(len(prompts), len(batch))

        def one_pass(part: Pass, loaded: Labelled) -> None:
            (rows, ids, mask), targets = loaded
            result[part.prompts, rows] = self._pass_losses(_of(prompts, part, rows), ids, mask, targets)

        self._run(prompts, batch.inputs, lambda part: self.labelled(prompts, batch, part), one_pass)
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

        def one_pass(part: Pass, loaded: Labelled) -> None:
            (rows, ids, mask), targets = loaded
            losses, pulled = self.pass_gradients(_of(prompts, part, rows), ids, mask, targets, factors[rows])
            result[part.prompts, rows] = losses
            _add_to(gradient, part, rows, pulled)

        self._run(prompts, batch.inputs, lambda part: self.labelled(prompts, batch, part), one_pass)
        return result, gradient

    @torch.no_grad()
    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is encoded once for all of them."""
        result = prompts.new_empty(len(prompts), len(inputs), len(answers))
        targets = self.targets(answers).transpose(0, 1)  # [1, C, T], for all rows alike

        def one_pass(part: Pass, texts: Texts) -> None:
            states, mask = self.encode_texts(_of(prompts, part, texts.rows), texts.ids, texts.mask)  # [n·m, S, D]
            loss = self.decode_losses(states, mask, targets)
            result[part.prompts, texts.rows] = -loss.view(len(part.rows), -1, len(answers)).transpose(0, 1)

        self._run(prompts, inputs, lambda part: self.texts(prompts, inputs, part), one_pass)
        return result

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts without special tokens."""
        texts = [[""] * len(inputs) for _ in prompts]

        def one_pass(part: Pass, read: Texts) -> None:
            states, mask = self.encode_texts(_of(prompts, part, read.rows), read.ids, read.mask)
            decoded = self.continued(states, mask, max_new_tokens)
            m = part.prompts.stop - part.prompts.start
            for position, text in enumerate(decoded):
                texts[part.prompts.start + position % m][part.rows[position // m]] = text

        self._run(prompts, inputs, lambda part: self.texts(prompts, inputs, part), one_pass)
        return texts

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order; each is encoded once for all that it asks."""
        return answer_together(self, queries)

    def pass_gradients(
        self,
        prompts: Float[Tensor, "m *n P D"],
        ids: Int[Tensor, "n L"],
        mask: Int[Tensor, "n S"] | None,
        targets: Int[Tensor, "n 1 T"],
        weights: Float[Tensor, " n"],
    ) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m *n P D"]]:
        """Return the losses of one pass and ∂/∂θ Σ weights·losses: no shape in it depends on a number on the device."""
        leaf = prompts.detach().requires_grad_(True)
        losses = self._pass_losses(leaf, ids, mask, targets)
        return losses.detach(), self.pulled_back((losses * weights).sum(), leaf)

    def pulled_back(self, total: Float[Tensor, ""], prompts: Float[Tensor, "m *n P D"]) -> Float[Tensor, "m *n P D"]:
        """Return the gradient of a pass's weighted loss in its prompts."""
        (gradient,) = torch.autograd.grad(total, prompts)
        return gradient

    def cut(self, lengths: Sequence[int], prompts: int) -> list[Pass]:
        """Cut examples × prompts into passes, given the examples' lengths with the prompt."""
        return passes(lengths, copies=prompts, budget=self.most_tokens())

    def most_tokens(self) -> int:
        """Return the most padded tokens of a pass."""
        return self.token_budget

    def settings(self) -> AbstractContextManager[object]:
        """What holds while passes run; undone afterwards."""
        return nullcontext()

    def padded_length(self, length: int) -> int:
        """Return the length that a pass whose longest row has ``length`` positions is padded to."""
        return length

    def padded_labels(self, length: int) -> int:
        """Return the length that targets are padded to."""
        return length

    def _run(
        self,
        prompts: Tensor,
        inputs: Sequence[Tensor],
        load: Callable[[Pass], Loaded],
        one_pass: Callable[[Pass, Loaded], None],
    ) -> None:
        self.run([len(ids) + prompts.shape[-2] for ids in inputs], len(prompts), load, one_pass)

    def run(
        self,
        lengths: Sequence[int],
        prompts: int,
        load: Callable[[Pass], Loaded],
        one_pass: Callable[[Pass, Loaded], None],
    ) -> None:
        """Run every pass over rows of these lengths; one that memory is too small for is cut in two and tried again.

        Args:
            load: Returns what a pass reads; it is called one pass ahead, where the device need not wait for it.
            one_pass: As for `run_passes`, with what was loaded.
        """
        with self.settings():
            parts = self.cut(lengths, prompts)
            run_passes(parts, one_ahead(parts, load, one_pass), self.free_memory)

    def free_memory(self) -> None:
        """Give back what is held for speed only."""
        empty_cache(self.backbone.device)

    def _pass_losses(
        self, prompts: Float[Tensor, "m *n P D"], ids: Tensor, mask: Tensor | None, targets: Int[Tensor, "n 1 T"]
    ) -> Float[Tensor, "m n"]:
        loss = self.decode_losses(*self.encode_texts(prompts, ids, mask), targets)  # [n·m, 1]
        return loss.view(len(ids), len(prompts)).T

    def labelled(self, prompts: Tensor, batch: TokenBatch, part: Pass) -> Labelled:
        """Return the texts and targets of a pass, on the device."""
        return Labelled(self.texts(prompts, batch.inputs, part), self.targets([batch.targets[i] for i in part.rows]))

    def texts(self, prompts: Tensor, inputs: Sequence[Tensor], part: Pass) -> Texts:
        """Return the texts of a pass, on the device."""
        chosen, P = [inputs[i] for i in part.rows], prompts.shape[-2]
        lengths = [len(ids) for ids in chosen]
        L = self.padded_length(P + max(lengths)) - P
        ids = F.pad(pad_sequence(chosen, batch_first=True), (0, L - max(lengths)))
        rows = self.sent(torch.tensor(part.rows))
        if min(lengths) == L:
            return Texts(rows, self.sent(ids), None)
        real = torch.arange(P + L) < P + torch.tensor(lengths)[:, None]
        return Texts(rows, self.sent(ids), self.sent(real.to(torch.int64)))

    def targets(self, targets: Sequence[Tensor]) -> Int[Tensor, "n 1 T"]:
        """Return targets padded with IGNORED, on the device."""
        padded = pad_sequence(list(targets), batch_first=True, padding_value=IGNORED)
        T = self.padded_labels(padded.shape[1])
        return self.sent(F.pad(padded, (0, T - padded.shape[1]), value=IGNORED)[:, None])

    def sent(self, tensor: Tensor) -> Tensor:
        """Send to the device without waiting for it."""
        return sent(tensor, self.backbone.device)

    def encode_texts(
        self, prompts: Float[Tensor, "m *n P D"], ids: Int[Tensor, "n L"], mask: Int[Tensor, "n S"] | None
    ) -> tuple[Float[Tensor, "R S D"], Int[Tensor, "R S"] | None]:
        """Encode [θ_m; embed(x_n)], example-major; return states [n·m, S, D] and the mask of every row."""
        m = len(prompts)
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
    """Shift the targets right behind the start token; padding becomes token 0, which no label position sees."""
    return F.pad(targets.clamp(min=0)[:, :-1], (1, 0), value=start)


def _of(prompts: Float[Tensor, "M *N P D"], part: Pass, rows: Int[Tensor, " n"]) -> Float[Tensor, "m *n P D"]:
    """Return the prompts of a pass."""
    chosen = prompts[part.prompts]
    return chosen if prompts.ndim == 3 else chosen[:, rows]


def _add_to(
    gradient: Float[Tensor, "M *N P D"], part: Pass, rows: Int[Tensor, " n"], pulled: Float[Tensor, "m *n P D"]
) -> None:
    """Add a pass's gradient where its prompts stand."""
    if gradient.ndim == 3:
        gradient[part.prompts] += pulled
    else:
        gradient[part.prompts, rows] += pulled  # no example stands twice in a pass


def _copies(prompts: Float[Tensor, "m *n P D"], n: int) -> Float[Tensor, "R P D"]:
    """Return one prompt for each row of a pass, example-major."""
    return prompts.repeat(n, 1, 1) if prompts.ndim == 3 else prompts.transpose(0, 1).flatten(0, 1)
